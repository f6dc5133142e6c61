"""The made-up shop: the same everywhere, whatever is asked for at a time, and as its docstring says."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from machxc import catalogue
from machxc.errors import DataError, SettingError
from machxc.samples import MAX_LABELS
from machxc.testing import Catalogue

COLOURS = {entry.decode() for entry in catalogue._TABLE[16:32]}
SIZES = {entry.decode() for entry in catalogue._TABLE[:16]}
BOTH = (("xlarge", "vm371"), ("medium", "tg292"))
SHOP = Catalogue(3001, seed=5)


def digest(samples: Iterable[tuple[str, list[str]]]) -> str:
    lines = (f"{text}\t{names}\n".encode() for text, names in samples)
    return hashlib.sha256(b"".join(lines)).hexdigest()[:16]


# ---- always the same


@pytest.mark.parametrize(
    ("n_labels", "seed", "stream", "expected"),
    [
        (1, 0, 0, "46f2c9487a5762a6"),
        (20_000, 0, 0, "57e20754834e9a77"),
        (20_000, 0, 1, "3ae2d9cca179c3ca"),
        (20_000, 1, 0, "77eacc6e2dcafb0e"),
        (50_000_000, 0, 0, "aecd067e1102ed8d"),
    ],
)
def test_the_bytes_are_promised(n_labels: int, seed: int, stream: int, expected: str) -> None:
    assert digest(Catalogue(n_labels, seed).samples(20_000, stream)) == expected


def test_how_it_looks() -> None:
    assert list(Catalogue(1_000_000).samples(3)) == [
        ("larlonjer nirbiro 64gb", ["lani larlonjer plus 64gb red lh9611"]),
        ("hoorgi fonvonner ronnan blue", [f"zoje fonvonner ultra {size} blue {n}" for size, n in BOTH]),
        ("birkeran gerpirvi 2kg", ["zanparmi birkeran smart 2kg teal cd796"]),
    ]


def test_the_compiler_changes_nothing() -> None:
    program = "from machxc.testing import Catalogue as C; print([*C(50_000_000, 3).samples(200, 1, 7)])"
    command = [sys.executable, "-W", "ignore:overflow:RuntimeWarning", "-c", program]
    plain = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=plain, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == f"{[*Catalogue(50_000_000, 3).samples(200, 1, 7)]}\n"


@given(start=st.integers(0, 12_100), n=st.integers(0, 40), stream=st.sampled_from([0, 1, 2**40]))
@settings(max_examples=50, deadline=None)
def test_a_part_of_a_stream_is_that_part_of_the_whole(start: int, n: int, stream: int) -> None:
    ahead = min(start, 25)
    assert list(SHOP.samples(n, stream, start)) == list(SHOP.samples(ahead + n, stream, start - ahead))[ahead:]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, names = list(SHOP.samples(1500)), SHOP.name(range(1500))
    monkeypatch.setattr(catalogue, "_CHUNK", chunk)
    assert list(SHOP.samples(1500)) == whole
    assert SHOP.name(range(1500)) == names


def test_samples_are_batches_with_names() -> None:
    samples = SHOP.samples(20_000, 3)
    for texts, labels in SHOP.batches(20_000, 3):
        labels.check()
        assert labels.n_labels == 3001
        ids = [labels.indices[i:j] for i, j in zip(labels.indptr[:-1], labels.indptr[1:], strict=True)]
        assert [(text, SHOP.name(row)) for text, row in zip(texts, ids, strict=True)] == list(
            islice(samples, len(texts))
        )
    assert next(samples, None) is None


# ---- labels


@given(n_labels=st.integers(1, 300), seed=st.integers(0, 2**70))
@example(1, 0)
@example(2**11, 0)
@settings(max_examples=30, deadline=None)
def test_every_label_is_in_the_first_samples_to_train_on(n_labels: int, seed: int) -> None:
    seen: set[int] = set()
    for texts, labels in Catalogue(n_labels, seed).batches(4 * n_labels):
        labels.check()
        sizes = np.diff(labels.indptr)
        assert 1 <= sizes.min() <= sizes.max() <= 4
        rows = np.repeat(np.arange(len(texts)), sizes)
        assert (np.diff(rows * n_labels + labels.indices.astype(np.int64)) > 0).all()  # each once, rising
        assert all(text == " ".join(text.split()) and text for text in texts)
        seen.update(labels.indices.tolist())
    assert seen == set(range(n_labels))


@pytest.mark.parametrize("n_labels", [1, 2, 3, 100_000])
def test_names_are_distinct(n_labels: int) -> None:
    assert len(set(Catalogue(n_labels).name(range(n_labels)))) == n_labels


def test_names_are_those_of_the_ids() -> None:
    ids = [7, 0, 3000, 7]
    assert SHOP.name(ids) == [SHOP.name([i])[0] for i in ids]
    assert SHOP.name([]) == []
    for wrong in (-1, 3001):
        with pytest.raises(DataError, match=r"\[0, 3001\)"):
            SHOP.name([0, wrong])


def test_labels_are_the_variants_that_fit() -> None:
    every = [name.split() for name in SHOP.name(range(3001))]
    sizes: Counter[int] = Counter()
    for texts, labels in SHOP.batches(12_004):
        for i, text in enumerate(texts):
            ids = labels.indices[labels.indptr[i] : labels.indptr[i + 1]].tolist()
            names, words = [every[label] for label in ids], set(text.split())
            assert len({tuple(name[:3]) for name in names}) == 1  # brand, model, series
            assert ids[-1] - ids[0] < 8
            if any(name[5] in words for name in names):  # the model number
                assert len(names) == 1
            for place in (3, 4):  # size, colour
                if any(name[place] in words for name in names):
                    assert len({name[place] for name in names}) == 1
            sizes[len(ids)] += 1
    assert sizes[1] > sizes[2] > sizes[4] > 1000
    assert {name[3] for name in every} <= SIZES
    assert {name[4] for name in every} == COLOURS


def test_popularity_is_zipfs() -> None:
    shop, n = Catalogue(1000), 100_000
    counts = np.zeros(1000)
    for _, labels in shop.batches(n, 1):
        counts += labels.counts()
    for top in (1, 10, 100):  # a share of the queries, and those for which variants of a line stand together
        share = ((top + 1) ** 0.2 - 1) / (1001**0.2 - 1)
        assert 0.97 * share < np.sort(counts)[::-1][:top].sum() / n < 2 * share


# ---- as large as one likes


@pytest.mark.parametrize("n_labels", [1000, 50_000_000, MAX_LABELS])
def test_memory_does_not_grow(n_labels: int) -> None:
    shop = Catalogue(n_labels)
    for _ in shop.samples(1):  # compiles
        pass
    tracemalloc.start()
    highest = 0
    for _, labels in shop.batches(100_000, start=n_labels):
        highest = max(highest, int(labels.indices.max()))
    shop.name([0, n_labels - 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
    assert 0.9 * n_labels < highest < n_labels


# ---- neither trivial nor hopeless


def test_words_tell_labels_but_not_all() -> None:
    shop = Catalogue(2000)
    samples = list(shop.samples(8000))
    owners: dict[str, set[str]] = defaultdict(set)
    for text, names in samples:
        for entry in text.split():
            owners[entry].update(names)
    right = 0
    for text, names in shop.samples(1000, 1):
        scores: Counter[str] = Counter()
        for entry in set(text.split()):
            for name in owners[entry]:
                scores[name] += math.log(2000 / len(owners[entry]))  # type: ignore[assignment]
        right += bool(scores) and scores.most_common(1)[0][0] in names
    assert 300 < right < 700


# ---- mistakes


@pytest.mark.parametrize("wrong", [{"n_labels": 0}, {"n_labels": MAX_LABELS + 1}, {"n_labels": 5, "seed": -1}])
def test_what_cannot_be_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match=r"1 <= n_labels <= 4294967295 and seed >= 0"):
        Catalogue(**wrong)
