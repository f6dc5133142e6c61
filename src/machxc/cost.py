"""What training and serving take, computed from the settings and a few counts of the data."""

from __future__ import annotations

import itertools
import math
import os
import resource
from dataclasses import dataclass

from machxc.config import LEVELS, Config
from machxc.facts import Facts
from machxc.repetition.chunks import (
    BAND,
    CANDIDATES,
    CHUNK,
    CHUNK_VALUES,
    LEFT_OUT_BATCH,
    MEMBERS,
    MOST_ROWS,
    WINDOW,
    WINDOW_BYTES,
)
from machxc.repetition.lengths import MOST_DENSE, most_slots

RUNTIME = 150 << 20  # the interpreter, NumPy, Numba and its compiled kernels
# weights stored for each meeting of a feature and a bucket, measured where those nearer to 0 than 0.3 are pruned
KEPT, PRUNED = {"bce": 0.55, "softmax": 0.93}, 0.3
MOST_KEPT = 0.7  # share that is left where features and buckets meet all the time
CHUNK_BYTES = 4 << 20  # buffers of a repetition in training, beside its weights and its chunk of features
FAST_CACHE = 16 << 20  # bytes of weights that stay in a core's share of the caches
# bytes a second that the kernels were seen to move (benchmarks/kernels.py), on tables in the caches and in memory
LINEAR_RATES, HIDDEN_RATES = (28e9, 11e9), (60e9, 35e9)
REPEATED = -0.25  # of the meetings of features and buckets, the share that are the first: samples a label to this power
ALL_ADDED, ADDED = 28.0, 1.4  # features a sample with which associations double the entries; power of fewer
# where weights are counted: seconds a (sample, label) pair, and a meeting, of entries in the caches and in memory
PER_PAIR, COUNTING = 0.5e-6, (60e-9, 120e-9)
LEAVING_OUT = (40e-6, 12e-12, 0.45e-3)  # seconds a left-out sample: at least, more for a feature in the data, at most
OFTEN = 16  # samples of a feature from which on it is associated (FEWEST_MET)
ASSOCIATING, TABLE = 1.4e-6, 25e-9  # seconds a feature of a sample that shows what goes with what, and a pair of these
PER_SAMPLE = 0.25e-6  # seconds a sample and epoch, whatever its size
READING = (2e-6, 0.1e-6)  # seconds a sample, and a feature of it, to read it and to hash its text
ARENA = 96 << 20  # bytes that a thread's part of the heap keeps, at most, of what it was given
STARTING = 1.2  # seconds to start, and to load compiled kernels


@dataclass(frozen=True)
class Cost:
    """Bytes, and seconds of processor time.

    ``data``: the samples, ``counting``: while their labels are counted, ``repetition``: one in training,
    ``thread``: what each further thread takes that works on it, ``stored``: one on disk, ``model``: all of them on
    disk, ``serving``: resident when queries are answered one by one;
    ``in_memory``: repetitions that are trained stay in memory, else they wait on the disk.
    """

    data: int
    counting: int
    repetition: int
    thread: int
    stored: int
    model: int
    serving: int
    cpu_seconds: float
    in_memory: bool

    def training(self, jobs: int, threads: int = 1) -> int:
        """Peak resident bytes with ``jobs`` repetitions at a time, ``threads`` for each.

        At the end, a model on the disk is mapped into memory as a whole, to be checked.
        """
        at_work, trained = jobs * (self.repetition + (threads - 1) * self.thread), self.model - jobs * self.stored
        if self.in_memory:
            return RUNTIME + self.data + max(at_work + trained, self.counting + self.model)
        return RUNTIME + self.data + max(at_work, self.counting, self.model)


def physical_memory() -> int:
    """Bytes of memory that this machine has, or this process may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)


def cost_of(config: Config, facts: Facts, *, in_memory: bool = False) -> Cost:
    """The cost of training ``config`` on data of which ``facts`` were counted."""
    slots = min(config.n_features, 2**config.feature_bits)
    rows = rows_of(config, facts)
    stored, repetition, beside = (_counted if config.learner == "counts" else _learnt)(config, facts, slots, rows)
    model = config.repetitions * stored + min(4 * facts.n_labels, 8 * facts.n_seen)
    return Cost(
        data=bytes_of_samples(facts),
        counting=min(4 * facts.n_labels, 32 * facts.n_pairs),
        repetition=repetition,
        thread=_thread(config, facts, rows),
        stored=stored,
        model=model,
        serving=RUNTIME + model + beside,
        cpu_seconds=_cpu_seconds(config, facts, rows),
        in_memory=in_memory,
    )


def _learnt(config: Config, facts: Facts, slots: int, rows: int) -> tuple[int, int, int]:
    """Bytes of a repetition on disk and in training, and of what serving has beside the model."""
    width = config.layers[0] if config.hidden else config.buckets
    output = behind_table(config)
    kept = int(_kept(config, facts, rows) * rows * width)
    weights = rows * width + output + 4 * config.buckets if config.hidden else _entries(config, rows, kept)
    stored = _of_rows(config, slots, rows) + weights
    repetition = _weight(config) * rows * width + 4 * output + 16 * rows + _beside(config, facts, stored, kept)
    entries = 0 if config.hidden or kept > MOST_DENSE else 2 * kept  # dense ones are made narrow
    return stored, repetition, config.repetitions * (4 * output + _in_memory(slots, rows) + entries)


def behind_table(config: Config) -> int:
    """Weights behind the table of a repetition: of further hidden layers, and of the output layer."""
    sizes = (*config.layers, config.buckets)
    return sum(before * after for before, after in itertools.pairwise(sizes))


def _entries(config: Config, rows: int, kept: int) -> int:
    """Bytes of the weights that are kept, dense, in narrow entries, and those in between, or in wide ones (stored.py).

    Between buckets that are drawn at random the steps are geometric: a share of exp(-255 / mean) is above 255, and of
    these as many above 510.
    """
    mean_step = config.buckets * rows / max(1, kept)
    between = 1.0 / math.expm1(min(500.0, 255.0 / mean_step)) if mean_step else 0.0
    apart = int(min(4.0, 2.0 + 2.0 * between) * kept)
    dense = config.buckets <= LEVELS and kept <= MOST_DENSE and config.learner != "counts"
    return min(apart, rows * -(-config.buckets // 8) + kept) if dense else apart


def _weight(config: Config) -> int:
    """Bytes of a weight of the table in training: a linear model's are rounded (see bfloat.py)."""
    return 4 if config.hidden else 2


def _counted(config: Config, facts: Facts, slots: int, rows: int) -> tuple[int, int, int]:
    """As `_learnt`, where weights are counted: an entry for each distinct pair of a feature and a bucket that met."""
    entries = _first_meetings(facts)
    added = _added(config, facts, entries)
    stored = _of_rows(config, slots, rows) + _entries(config, rows, entries + added) + 4 * config.buckets
    pairs = 12 * facts.n_pairs + 16 * facts.n_samples
    if config.left_out:
        pairs += 24 * facts.n_pairs + 20 * rows
    beside = stored + _chunk(facts)
    if added:
        beside += 8 * added + max(_shown(config, facts, rows), 4 * (entries + added))
    repetition = 8 * entries + 20 * rows + 4 * slots + 16 * config.buckets + pairs + beside
    return stored, repetition, 4 * config.buckets + config.repetitions * _in_memory(slots, rows)


def _of_rows(config: Config, slots: int, rows: int) -> int:
    """Bytes of the slots of rows, or the rows of slots, of their weights, and of scales or lengths (see layouts.py).

    Rows of one frequency have one weight, where columns are not scaled.
    """
    of_slots = 4 * slots if slots > most_slots(rows) else (2 if slots <= 1 << 16 else 4) * rows
    return of_slots + (0 if config.l2 else 5 * rows) + (4 if config.hidden else 2) * rows


def _in_memory(slots: int, rows: int) -> int:
    """Bytes of what is made of that when a repetition answers: the rows of slots, and where they start."""
    return 4 * slots + 12 * rows


def _thread(config: Config, facts: Facts, rows: int) -> int:
    """Bytes that one more thread takes: what each row met, left-out samples with their candidates, and freed memory."""
    members = LEFT_OUT_BATCH * (1 + CANDIDATES * min(facts.per_label, MEMBERS)) * facts.per_sample
    kept = min(ARENA, bytes_of_samples(facts) // 2)
    return int(20 * rows + _chunk(facts) + 12 * config.buckets + 8 * members) + kept


def _shown(config: Config, facts: Facts, rows: int) -> int:
    """Bytes of what left-out samples show of features, and of the table in which it is counted."""
    associated = min(rows, MOST_ROWS)
    of_a_sample = min(associated, facts.per_sample * (1.0 + min(facts.per_label, MEMBERS)))
    return int(2 * min(config.associations, facts.n_pairs) * of_a_sample) + 2 * associated * min(associated, BAND)


def _added(config: Config, facts: Facts, entries: int) -> int:
    """Entries for what goes with what was counted: fewer where samples have few features that could."""
    if not config.associations or facts.per_label <= 1.0:
        return 0
    return int(entries * min(1.0, (facts.per_sample / ALL_ADDED) ** ADDED))


def bytes_of_samples(facts: Facts) -> int:
    """Bytes of the samples."""
    return 8 * facts.n_values + 4 * facts.n_pairs + 16 * facts.n_samples


def _meetings(facts: Facts) -> float:
    """How often a feature meets a label in a sample."""
    return facts.per_sample * facts.n_pairs


def _first_meetings(facts: Facts) -> int:
    """How many features and labels meet at all: those that were counted, or a guess."""
    guess = int(_meetings(facts) * min(1.0, max(1.0, facts.per_label) ** REPEATED))
    return guess if facts.n_met is None else facts.n_met


def _chunk(facts: Facts) -> int:
    """Bytes of a chunk of encoded samples."""
    return 8 * min(CHUNK_VALUES, int(facts.per_sample * min(CHUNK, facts.n_samples)))


def _beside(config: Config, facts: Facts, stored: int, kept: int) -> int:
    """What a repetition takes beside its weights: the order of samples, some of them, and copies to be stored."""
    windowed = facts.n_samples > WINDOW or bytes_of_samples(facts) > WINDOW_BYTES
    order = 16 * facts.n_samples + (2 * WINDOW_BYTES if windowed else 0)
    copies = stored if config.hidden else stored + 4 * kept  # a linear model's weights are gathered in float32 first
    best = stored if config.validation_fraction else 0
    return order + _chunk(facts) + copies + best + min(CHUNK_BYTES, 64 * facts.n_samples)


def rows_of(config: Config, facts: Facts) -> int:
    """Rows of the table: slots that enough samples use.

    Hashed features fall into slots as if thrown at random: the number of those of each frequency in a slot is Poisson.
    Rare features that meet in a slot may be enough together.
    """
    slots = min(config.n_features, 1 << config.feature_bits)
    if config.n_features <= slots:
        return min(slots, facts.rows(config.min_count))
    once = (facts.n_distinct - facts.n_repeated) / slots
    twice = (facts.n_repeated - facts.n_frequent) / slots
    none_frequent, none_twice = math.exp(-facts.n_frequent / slots), math.exp(-twice)
    if config.min_count == 1:
        unused = none_frequent * none_twice * math.exp(-once)
    elif config.min_count == 2:
        unused = none_frequent * none_twice * math.exp(-once) * (1.0 + once)
    else:
        few_once = math.exp(-once) * (none_twice * (1.0 + once + once**2 / 2.0) + none_twice * twice)
        unused = none_frequent * few_once
    return max(1, math.ceil(slots * (1.0 - unused)))


def _kept(config: Config, facts: Facts, rows: int) -> float:
    """Share of a linear model's weights that will be stored.

    Weights grow where a feature and a bucket meet in a sample; that many meetings, thrown at random at all the cells of
    the table, hit this share of them.
    """
    if config.prune == 0:
        return 1.0
    meetings = KEPT[config.loss] * (PRUNED / config.prune) * _meetings(facts)
    return MOST_KEPT * (1.0 - math.exp(-meetings / max(1, rows * config.buckets) / MOST_KEPT))


def _cpu_seconds(config: Config, facts: Facts, rows: int) -> float:
    """Start and reading; then the bytes that the kernels move, over the rate at which they were seen to move them.

    Where weights are counted: a time for each pair of a sample and a label, and each meeting.
    """
    before = STARTING + READING[0] * facts.n_samples + READING[1] * facts.n_values
    if config.learner == "counts":
        return before + config.repetitions * (_counting_seconds(facts) + _learning_seconds(config, facts))
    width = config.layers[0] if config.hidden else config.buckets
    outputs = min(config.buckets, config.negatives + 2) if config.negatives else config.buckets
    of_output = 16 if config.negatives else 8  # all outputs: half of the hidden units are 0, and are not read
    moved = 3 * _weight(config) * facts.per_sample * width + of_output * outputs * (config.layers or (0,))[-1]
    moved += 8 * (behind_table(config) - config.buckets * (config.layers or (0,))[-1])  # further layers
    rate = (HIDDEN_RATES if config.hidden else LINEAR_RATES)[_weight(config) * rows * width > FAST_CACHE]
    trained = config.repetitions * config.epochs * facts.n_samples
    return before + trained * (PER_SAMPLE + moved / rate)


def _counting_seconds(facts: Facts) -> float:
    return PER_PAIR * facts.n_pairs + COUNTING[8 * _first_meetings(facts) > FAST_CACHE] * _meetings(facts)


def _learning_seconds(config: Config, facts: Facts) -> float:
    """What counting cannot tell, learnt from some samples; the features that are associated are those of many buckets.

    Of the features that three samples have, 3 in n have n samples (Zipf's law).
    """
    least, more, most = LEAVING_OUT
    learning = config.left_out * min(most, least + more * facts.n_values)
    if not config.associations:
        return learning
    rows = min(MOST_ROWS, facts.n_frequent * 3 / OFTEN)
    return learning + ASSOCIATING * min(config.associations, facts.n_pairs) * facts.per_sample + TABLE * rows**2
