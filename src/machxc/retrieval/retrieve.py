"""top_k: checks what it is given, and shares the queries out to the kernels.

Three ways give the same bytes: the scan goes through all K labels, the search scores members of the best buckets only,
and the sieve, where scores are sums and labels very many, scores few of those. Which is faster depends on the sketch:
search and sieve open few buckets when some of them stand out, and all of them when none does. So they are given a
limit, after which the scan takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from machxc.errors import DataError, SettingError
from machxc.partition import HashPartition, Partition, TablePartition
from machxc.retrieval.best_buckets import rank
from machxc.retrieval.estimators import MEDIAN, SUM, check_names, contributions, finish, merge_of
from machxc.retrieval.single import is_single, probabilities
from machxc.samples import Array, Float32, Int64, UInt32, frozen
from machxc.threads import share_out

if TYPE_CHECKING:
    from machxc.retrieval.scoring import Lookup

METHODS = ("auto", "scan", "search", "sieve")

LARGEST_LOGIT = 1e30  # R <= 4096 of them add up without overflow
_BLOCK_FLOATS = 1 << 24  # bucket values prepared at a time: 64 MB, and once more for the scan
_BLOCK_QUERIES = 128
_MOST_LANES = 32  # queries that the scan scores side by side
_LANES = 8  # at a time: whole vectors; three queries take longer one by one
_CACHE_FLOATS = 1 << 21  # beyond so many bucket values, side by side they would be fetched from memory again and again
_FEWEST_TO_SEARCH = 20_000  # labels
_FEWEST_TO_SIEVE = 500_000
_FEWEST_A_BUCKET = 100  # to sieve: fewer, and what is done for each bucket takes longer than its members
_MOST_COARSE = 256  # repetitions: so many bytes add up to 16 bits
_SCAN_MEMBERS = 1 / 2  # members of buckets that are sieved while a label of one query is scanned, for each repetition
_PROBES = 1 / 64  # of the time of a scan, for the sieve to find out how long the proof takes; more if it looks short


def top_k(
    logits: Float32,
    partition: Partition,
    k: int,
    *,
    loss: str,
    estimator: str,
    seen: Array | None = None,
    candidates: Array | None = None,
    method: str = "auto",
    jobs: int = 1,
    in_place: bool = False,
) -> tuple[Int64, Float32]:
    """The k best labels of n queries: ids int64 [n, k] and scores float32 [n, k], best first.

    ``logits`` float32 [n, R, B]: the sketches, as repetitions of this ``loss`` ("softmax" or "bce") give them;
    ``estimator``: see `machxc.retrieval.estimators`. Of equal scores the smaller id comes first; where there are fewer
    than k labels to return, id -1 and score -inf. The result is exact, and the same to the last bit for every
    ``method`` ("scan", "search", "sieve", or "auto", the one that looks faster), every number of ``jobs`` (threads),
    and however queries are batched.

    ``seen``: labels that may be returned (those that training saw): bool [K], or packed into uint8 [ceil(K / 8)], the
    least significant bit first. ``candidates``: the only ids to return, in any order; they are scanned. ``in_place``:
    the logits are not needed any more and may be written over, which saves a copy.

    SettingError: a parameter out of its bounds; DataError: logits, seen or candidates do not fit the partition, or
    logits are not finite.
    """
    check_names(loss, estimator)
    check_settings(k, method, jobs)
    _check_logits(logits, partition)
    bitmap = _bitmap(seen, partition.n_labels)
    chosen = None if candidates is None else seen_candidates(candidates, bitmap, partition.n_labels)
    available = partition.n_labels if chosen is None else len(chosen)
    ids, scores = np.full((len(logits), k), -1, np.int64), np.full((len(logits), k), -np.inf, np.float32)
    if available:
        task = _Task(
            partition, min(k, available), loss, estimator, bitmap, chosen, method, len(logits), in_place=in_place
        )
        _in_blocks(lambda rows: task.fill(logits[rows], ids[rows], scores[rows]), len(logits), partition, jobs)
    return ids, scores


def top_k_within(
    logits: Float32,
    partition: Partition,
    k: int,
    budget: int,
    *,
    loss: str,
    estimator: str,
    seen: Array | None = None,
    jobs: int = 1,
) -> tuple[Int64, Float32, Array]:
    """`top_k` in bounded time: the best labels found, their scores, and whether they are known to be the best (bool
    [n]; where True, they are what `top_k` returns).

    ``budget``: how many members of buckets may be looked at for a query, a label that is scored counting as 25: with
    sums a millisecond or two a million, and one to two beside that for the sketch. At least the best bucket of each
    repetition is looked at, and at most that much more than the budget; `budget_within` tells what a number of
    milliseconds is. Other parameters, results and errors are those of `top_k`; SettingError for a budget below 1.
    """
    check_names(loss, estimator)
    check_settings(k, "auto", jobs, budget)
    _check_logits(logits, partition)
    n, n_labels = len(logits), partition.n_labels
    ids, scores = np.full((n, k), -1, np.int64), np.full((n, k), -np.inf, np.float32)
    proven = np.ones(n, np.bool_)
    task = _Task(partition, min(k, n_labels), loss, estimator, _bitmap(seen, n_labels), None, "auto", n, budget)
    _in_blocks(lambda rows: task.fill(logits[rows], ids[rows], scores[rows], proven[rows]), n, partition, jobs)
    return ids, scores, proven


def _in_blocks(fill: Callable[[slice], None], n: int, partition: Partition, jobs: int) -> None:
    share_out(fill, _blocks(n, partition, jobs), jobs)


class _Task:
    """What is the same for all queries of a call; `fill` answers a block of them, on any thread.

    ``budget``: what a query may cost if it need not be proven; `_sieve_limit` has the unit.
    """

    def __init__(
        self,
        partition: Partition,
        k: int,
        loss: str,
        estimator: str,
        seen: Array,
        candidates: UInt32 | None,
        method: str,
        n_queries: int,
        budget: int | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        self.k, self.in_place = k, in_place
        self.loss, self.estimator, self.merge = loss, estimator, merge_of(estimator)
        self.candidates = frozen(np.empty(0, np.uint32) if candidates is None else candidates)
        self.seen = frozen(seen)
        self.lanes = _lanes(partition, self.merge, n_queries)
        self.limit = self.sieve_limit = 0
        self.bounded = budget is not None
        self.patient = method in ("search", "sieve") or self.bounded
        self.ranks = candidates is None and method != "scan" and is_single(partition)
        if candidates is None and not self.ranks:
            self.sieve_limit = _sieve_limit(partition, self.merge, method, self.lanes, budget)
            if not self.sieve_limit:
                self.limit = budget or _search_limit(partition, k, method, self.lanes)
        self.coarse = self.sieve_limit > 0 and partition.n_repetitions <= _MOST_COARSE
        self.lookup = lookup_of(partition, inverted=self.limit + self.sieve_limit > 0)

    def fill(self, logits: Float32, ids: Int64, scores: Float32, proven: Array | None = None) -> None:
        """Write the answers of a block of queries into ids and scores [n, >= k]; ``proven``: with a budget, [n]."""
        n, n_repetitions, n_buckets = logits.shape
        logits = _finite(np.ascontiguousarray(logits))
        values = logits
        if n_repetitions > 1:
            values = contributions(logits, self.loss, self.estimator, in_place=self.in_place)
        best_scores, best_labels = self._empty(n)
        open_rows = self._find(logits, values, best_scores, best_labels)
        if proven is not None:
            proven[open_rows] = False
        elif len(open_rows):
            found = best_scores[open_rows], best_labels[open_rows]
            self._scan(values if len(open_rows) == n else values[open_rows], *found)
            best_scores[open_rows], best_labels[open_rows] = found
        if n_repetitions == 1:
            scores[:, : self.k] = probabilities(logits, best_scores, self.loss, self.estimator)
        else:
            scores[:, : self.k] = finish(best_scores, self.estimator, n_repetitions, n_buckets)
        ids[:, : self.k] = np.where(best_scores == -np.inf, -1, best_labels)

    def _find(self, logits: Float32, values: Float32, best_scores: Float32, best_labels: Int64) -> Int64:
        """The rows that are not proven, having found what there is to find without a scan."""
        if self.ranks:
            rank(logits[:, 0], self.lookup, self.seen, best_scores, best_labels)
            return np.empty(0, np.int64)
        if self.limit or self.sieve_limit:
            return self._search(values, best_scores, best_labels)
        return np.arange(len(values))

    def _empty(self, n: int) -> tuple[Float32, Int64]:
        from machxc.retrieval.heap import NO_LABEL

        return np.full((n, self.k), -np.inf, np.float32), np.full((n, self.k), NO_LABEL, np.int64)

    def _search(self, values: Float32, best_scores: Float32, best_labels: Int64) -> Int64:
        """The rows that the search did not prove. When most are like that, the blocks to come are not searched."""
        proven = np.zeros(len(values), np.bool_)
        if self.sieve_limit:
            from machxc.retrieval.sieve import sieve

            limit = float(self.sieve_limit)
            probes = limit if self.bounded else limit * _PROBES
            sieve(values, self.lookup, self.seen, probes, limit, best_scores, best_labels, proven)
            return np.flatnonzero(~proven)
        from machxc.retrieval.search import search

        aside, limit, patient = values[..., None], self.limit, self.bounded
        search(aside, self.lookup, self.seen, self.merge, limit, patient, best_scores, best_labels, proven)
        if not self.patient and 2 * proven.sum() < len(proven):
            self.limit = 0
        return np.flatnonzero(~proven)

    def _scan(self, values: Float32, best_scores: Float32, best_labels: Int64) -> None:
        """Scan for each query; alone, one starts from the labels that were found already."""
        from machxc.retrieval.coarse import coarse_scan
        from machxc.retrieval.scan import scan

        lanes = self.lanes if len(values) > 2 else 1
        for start in range(0, len(values), lanes):
            rows = slice(start, start + lanes)
            aside = _side_by_side(values[rows])
            scores, labels = self._empty(aside.shape[-1])
            if lanes == 1:
                scores[:], labels[:] = best_scores[rows, ::-1], best_labels[rows, ::-1]  # the worst first: a heap
            if lanes == 1 and self.coarse:
                coarse_scan(values[start], self.lookup, self.seen, scores[0], labels[0])
            else:
                scan(aside, self.lookup, self.candidates, self.seen, self.merge, scores, labels)
            n = len(values[rows])
            best_scores[rows], best_labels[rows] = scores[:n], labels[:n]


def lookup_of(partition: Partition, *, inverted: bool) -> Lookup:
    """The partition as the kernels read it; for a TablePartition, its inverted index only if asked for."""
    from machxc.retrieval.scoring import Lookup

    size = (partition.n_labels, partition.n_buckets)
    table, index = np.empty((0, 0), np.uint32), np.empty((0, 0), np.int64)
    if isinstance(partition, HashPartition):
        numbers = (frozen(partition.forward), frozen(partition.inverse))
        return Lookup(*size, partition.bits, *numbers, frozen(table), frozen(table), frozen(index))
    if not isinstance(partition, TablePartition):
        raise SettingError(f"expected a HashPartition or a TablePartition, got a {type(partition).__name__}")
    members, starts = partition.inverted if inverted else (table, index)
    none = np.empty((partition.n_repetitions, 6), np.uint64)
    arrays = (none, none, partition.assignment, members, starts)
    return Lookup(*size, 1, *(frozen(array) for array in arrays))


def _side_by_side(values: Float32) -> Float32:
    """Values [n, R, B] as [R, B, lanes]: whole vectors of queries for each bucket; the rest is NaN, and never wins."""
    n, n_repetitions, n_buckets = values.shape
    if n == 1:
        return values.reshape(n_repetitions, n_buckets, 1)
    lanes = _whole_vectors(n)
    aside = np.empty((n_repetitions, n_buckets, lanes), np.float32)
    aside[..., :n] = values.transpose(1, 2, 0)
    aside[..., n:] = np.nan
    return aside


def _blocks(n: int, partition: Partition, jobs: int) -> list[slice]:
    fit = _BLOCK_FLOATS // (partition.n_repetitions * partition.n_buckets)
    size = max(1, min(_BLOCK_QUERIES, fit, -(-n // jobs)))
    size = size // _MOST_LANES * _MOST_LANES or size
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _lanes(partition: Partition, merge: int, n_queries: int) -> int:
    """How many queries the scan should score side by side (medians are vectors of labels instead)."""
    if n_queries <= 2 or merge == MEDIAN:
        return 1
    fit = _CACHE_FLOATS // (partition.n_repetitions * partition.n_buckets)
    return max(1, min(fit, _MOST_LANES, _whole_vectors(n_queries)) // _LANES * _LANES)


def _whole_vectors(n_queries: int) -> int:
    return -(-n_queries // _LANES) * _LANES


def _search_limit(partition: Partition, k: int, method: str, lanes: int) -> int:
    """How many members of buckets a search may open for a query; 0: do not search.

    Measured (benchmarks/retrieval.py): a member takes about as long as a label in the scan of one query, and up to 8
    times as long as one in a scan of 32 queries side by side. A search that will fail can tell at a quarter of it.
    Few labels are scanned in a fraction of a millisecond: not worth the seconds that the search's kernels compile.
    """
    n_labels, n_repetitions, n_buckets = partition.n_labels, partition.n_repetitions, partition.n_buckets
    if method in ("search", "sieve"):
        return n_labels * n_repetitions
    limit = int(n_labels * min(3 / 4, 4 / lanes))
    first = n_repetitions * n_labels // n_buckets  # members of the best bucket of each repetition
    many = n_labels >= max(_FEWEST_TO_SEARCH, 4 * n_buckets)
    worth = method == "auto" and many and max(4 * first, 16 * k) <= limit
    return limit if worth else 0


def _sieve_limit(partition: Partition, merge: int, method: str, lanes: int, budget: int | None) -> int:
    """How many members of buckets the sieve may look at for a query; 0: do not sieve. A scan takes as long as that.

    Side by side, a scan takes an eighth for each of 32 queries, as `_search_limit` has it.
    """
    n_labels, n_repetitions = partition.n_labels, partition.n_repetitions
    able = merge == SUM and n_repetitions > 1 and method in ("auto", "sieve")
    large = n_labels >= max(_FEWEST_TO_SIEVE, _FEWEST_A_BUCKET * partition.n_buckets)
    if not able or not (large or method == "sieve"):
        return 0
    if method == "sieve":
        return 8 * n_labels * n_repetitions
    return budget or max(1, int(n_labels * n_repetitions * _SCAN_MEMBERS * min(1, 4 / lanes)))


def check_settings(k: int, method: str, jobs: int, budget: int = 1) -> None:
    """SettingError when one of these parameters of `top_k` is out of its bounds."""
    for name, value in (("k", k), ("jobs", jobs), ("budget", budget)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise SettingError(f"The '{name}' parameter of top_k must be an int in [1, inf). Got {value!r} instead.")
    if method not in METHODS:
        raise SettingError(f"The 'method' parameter of top_k must be one of {METHODS}. Got {method!r} instead.")


def _check_logits(logits: Array, partition: Partition) -> None:
    expected = (partition.n_repetitions, partition.n_buckets)
    if np.ndim(logits) != 3 or logits.shape[1:] != expected or logits.dtype != np.float32:
        raise DataError(
            f"expected logits float32 [queries, {expected[0]}, {expected[1]}] (repetitions, buckets), "
            f"got {getattr(logits, 'dtype', type(logits).__name__)} {list(np.shape(logits))}"
        )


def _finite(logits: Float32) -> Float32:
    check_sizes(np.maximum(logits.max(axis=(1, 2)), -logits.min(axis=(1, 2))))
    return logits


def check_sizes(sizes: Float32) -> None:
    """DataError unless the largest magnitudes of the logits of queries (float32 [n]) are finite, and not too large."""
    if not (sizes <= LARGEST_LOGIT).all():
        row = np.flatnonzero(~(sizes <= LARGEST_LOGIT))[0]
        raise DataError(f"the sketch of a query has a logit that is not finite, or too large: {sizes[row]}")


def _bitmap(seen: Array | None, n_labels: int) -> Array:
    if seen is None:
        return np.empty(0, np.uint8)
    seen = np.asarray(seen)
    if seen.dtype == np.bool_ and seen.shape == (n_labels,):
        return np.packbits(seen, bitorder="little")
    if seen.dtype == np.uint8 and seen.shape == (-(-n_labels // 8),):
        return seen
    raise DataError(
        f"expected seen labels as bool [{n_labels}] or packed into uint8 [{-(-n_labels // 8)}], "
        f"got {seen.dtype} {list(seen.shape)}"
    )


def seen_candidates(candidates: Array, bitmap: Array, n_labels: int) -> UInt32:
    """The distinct candidates that were seen, increasing: uint32."""
    given = np.asarray(candidates)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise DataError(f"expected candidates as a list of label ids, got {given.dtype} {list(given.shape)}")
    ids = given if len(given) and (given[1:] > given[:-1]).all() else np.unique(given)
    if len(ids) and (int(ids[0]) < 0 or int(ids[-1]) >= n_labels):
        wrong = ids[0] if int(ids[0]) < 0 else ids[-1]
        raise DataError(f"candidate label id {wrong} is out of range: expected ids in [0, {n_labels})")
    ids = ids.astype(np.uint32, copy=False)
    if len(bitmap):
        ids = ids[(bitmap[ids >> 3] >> (ids & 7)) & 1 == 1]
    return ids
