"""The neural heads of benchmarks/compare: what they compute, against plain oracles; that they learn and stop."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "compare"))
context = importlib.import_module("context")
heads = importlib.import_module("peers.torch_heads")

race = importlib.import_module("race")

HEADS = pytest.mark.parametrize("head", ["ova", "moe", "mach"])
torch.set_num_threads(1)
SMALL = heads.Settings(hidden=32, epochs=15, batch=32, dropout=0.0, repetitions=4, buckets=20)


def made(n: int, each: int, n_labels: int = 40) -> tuple[Any, Any]:
    """Samples of ``each`` labels, and of the four features of each label, and one of anyone's."""
    source = np.random.default_rng(n)
    labels = np.array([source.permutation(n_labels)[:each] for _ in range(n)])
    columns = [
        {*(4 * row[:, None] + np.arange(4)).ravel().tolist(), int(source.integers(4 * n_labels))} for row in labels
    ]
    return context.unit_rows(csr(columns, 4 * n_labels)), csr(labels.tolist(), n_labels)


def csr(rows: Any, width: int) -> Any:
    rows = [sorted(row) for row in rows]
    data = np.ones(sum(map(len, rows)), np.float32)
    return sp.csr_matrix((data, np.concatenate(rows), np.cumsum([0, *map(len, rows)])), (len(rows), width))


def labels_of(labels: Any) -> list[list[int]]:
    return [labels.indices[a:b].tolist() for a, b in zip(labels.indptr, labels.indptr[1:], strict=False)]


def untrained(head: str, features: Any, labels: Any, **settings: Any) -> Any:
    """A network whose weights are random, all of them."""
    torch.manual_seed(1)
    chosen = replace(SMALL, head=head, **settings)
    tensors = heads.started(features, labels, chosen)
    for name in {"gate", "noise", "biases"} & tensors.keys():
        tensors[name].normal_()
    return heads.Network(chosen, tensors)


def log_probabilities(head: Any, hidden: Any) -> Any:
    """log p(label | x) of a mixture of experts of which the gate keeps all: [n, labels], label by label."""
    logs = torch.empty(len(hidden), len(head.expert_of))
    gates = torch.log_softmax(hidden @ head.gate.T, 1)
    for expert, ids in enumerate(head.ids):
        outputs = hidden @ head.weights[expert].T + head.biases[expert]
        logs[:, ids] = gates[:, expert, None] + torch.log_softmax(outputs, 1)
    return logs


@HEADS
@pytest.mark.parametrize("each", [1, 2])
def test_learns(head: str, each: int) -> None:
    network, progress = heads.fit(*made(1000, each), replace(SMALL, head=head), 100)
    features, labels = made(100, each)
    ids = network.top(features, each)
    assert ids.dtype == np.int32
    assert ids.shape == (100, each)
    assert progress.epochs == SMALL.epochs
    right = [len({*found} & {*true}) for found, true in zip(ids.tolist(), labels_of(labels), strict=True)]
    assert sum(right) > 0.9 * each * 100


@HEADS
def test_the_seed_decides_all(head: str) -> None:
    def weights(seed: int) -> dict[str, Any]:
        return dict(
            heads.fit(*made(200, 2), replace(SMALL, head=head, epochs=2, dropout=0.5, seed=seed), 100)[0].tensors
        )

    first, second = weights(3), weights(3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["weights"], weights(4)["weights"])


@pytest.mark.parametrize("each", [1, 3])
def test_loss_of_one_vs_all(each: int) -> None:
    features, labels = made(20, each)
    network = untrained("ova", features, labels)
    hidden = network.hidden(features)
    outputs, wanted = hidden @ network.head.weights.T + network.head.biases, torch.from_numpy(labels.toarray())
    if each == 1:
        expected = torch.nn.functional.cross_entropy(outputs, wanted.argmax(1))
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="sum") / 20
    torch.testing.assert_close(network.head.loss(hidden, heads.Positives(labels, "cpu"), each == 1), expected)
    shared = -(outputs.log_softmax(1) * wanted).sum() / (20 * each)
    torch.testing.assert_close(network.head.loss(hidden, heads.Positives(labels, "cpu"), True), shared)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("each", [1, 3])
def test_loss_and_ranking_of_mach(each: int, shared: bool) -> None:
    features, labels = made(20, each)
    network = untrained("mach", features, labels, shared=shared)
    hidden, wanted = network.hidden(features), torch.from_numpy(labels.toarray()) / each
    assert hidden.shape == (20, 32 if shared else 4 * 32)
    loss, scores = torch.zeros(()), torch.zeros(20, 40)
    for r, buckets in enumerate(network.head.buckets.long()):
        mine = hidden if shared else hidden[:, 32 * r : 32 * (r + 1)]
        outputs = mine @ network.head.weights[r].T + network.head.biases[r]
        loss = loss - (outputs.log_softmax(1)[:, buckets] * wanted).sum() / 20
        scores += outputs.softmax(1)[:, buckets] / 4
    torch.testing.assert_close(network.head.loss(hidden, heads.Positives(labels, "cpu"), False), loss)
    ids = torch.from_numpy(network.top(features, 40, 7)).long()
    torch.testing.assert_close(scores.gather(1, ids), scores.sort(1, descending=True).values)


def test_looks_at_the_accuracy_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, n in (("train", 400), ("test", 50)):
        for kind, matrix in zip(("features", "labels"), made(n, 2), strict=True):
            sp.save_npz(tmp_path / f"{part}_{kind}.npz", matrix)
    monkeypatch.setattr(race, "_FIRST", 0.0)
    options = {"head": "mach", "hidden": 32, "batch": 32, "repetitions": 4, "buckets": 20, "softmax": True}
    found = race.measured(tmp_path, options, 1e6, 1)
    seconds, cpu_seconds, samples, right = zip(*found["points"], strict=True)
    assert len(samples) >= 2
    assert (samples[0], samples[-1]) == (32, 10 * 400)
    assert list(seconds) == sorted(seconds)
    assert list(cpu_seconds) == sorted(cpu_seconds)
    assert right[-1] > 0.9 > right[0]
    assert found["parameters"] == 160 * 4 * 32 + 4 * 32 + 4 * 20 * 33


@pytest.mark.parametrize("each", [1, 3])
def test_loss_of_experts(each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = made(20, each)
    network = untrained("moe", features, labels, balance=0.0)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    hidden = network.hidden(features)
    wanted = torch.from_numpy(labels.toarray()) / each
    expected = -(log_probabilities(network.head, hidden) * wanted).sum() / 20
    torch.testing.assert_close(network.head.loss(hidden, heads.Positives(labels, "cpu"), False), expected)


def test_balancing_losses() -> None:
    assert heads.unevenness(torch.full((5,), 3.0)) == 0
    assert heads.unevenness(torch.tensor([0.0, 2.0])) == pytest.approx(1)
    network = untrained("moe", *made(20, 1, 200))
    even, uneven = torch.zeros(20, SMALL.hidden), torch.ones(20, SMALL.hidden)
    network.head.gate.detach()[0] = 1.0  # the first expert's, whatever the sample
    assert network.head.gates(uneven)[1] > network.head.gates(even)[1] + 1


def test_experts_rank_as_their_probabilities_do() -> None:
    features, labels = made(20, 1, 200)
    network = untrained("moe", features, labels, kept=1000)
    logs = log_probabilities(network.head, network.hidden(features))
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(20))
    ids = torch.from_numpy(network.top(features, 200)).long()
    assert (ids.sort(1).values == torch.arange(200)).all()
    torch.testing.assert_close(logs.gather(1, ids), logs.sort(1, descending=True).values)  # but for rounding


def test_the_gate_keeps_the_best_experts() -> None:
    features, labels = made(20, 1, 200)
    network = untrained("moe", features, labels, kept=2)
    best = torch.topk(network.hidden(features) @ network.head.gate.T, 2).indices
    ids = network.top(features, 100)
    for row, experts in zip(ids, best.tolist(), strict=True):
        known = {int(label) for expert in experts for label in network.head.ids[expert]}
        assert {*row.tolist()} - {-1} == known
        assert (row[: len(known)] >= 0).all()


@HEADS
def test_features_are_hashed(head: str) -> None:
    features, labels = made(50, 1)
    network = untrained(head, features, labels, rows=100)
    assert network.rows.shape == (100, SMALL.hidden * (4 if head == "mach" else 1))
    assert network.top(features, 40).max() == 39


def test_groups_are_even_and_of_similar_labels() -> None:
    labels = sp.identity(60, np.float32, format="csr")
    kinds = np.random.default_rng(0).permutation(60) % 2
    features = context.unit_rows(
        csr([{*range(30 * kind, 30 * kind + 20), 60 + i} for i, kind in enumerate(kinds)], 120)
    )
    groups = heads.grouped(features, labels, 6, 0)
    assert np.bincount(groups, minlength=6).tolist() == [10] * 6
    assert all(len({*kinds[groups == group]}) == 1 for group in range(6))


@HEADS
def test_stops_when_its_time_is_over(head: str) -> None:
    _, progress = heads.fit(*made(1000, 1), replace(SMALL, head=head), 0)
    assert 0 < progress.epochs < 1
    assert progress.cpu_seconds > 0
    assert progress.epoch_seconds > 0


@HEADS
def test_the_peer_from_end_to_end(head: str, tmp_path: Path) -> None:
    for part, n in (("train", 300), ("test", 30)):
        features, labels = made(n, 1)
        sp.save_npz(tmp_path / f"{part}_features.npz", features)
        sp.save_npz(tmp_path / f"{part}_labels.npz", labels)
    (tmp_path / "facts.json").write_text(json.dumps({"n_train": 300, "n_test": 30}))
    work = tmp_path / "work"
    (work / "model").mkdir(parents=True)
    options = {"head": head, "hidden": 32}
    heads.train(context.Context(tmp_path, work, options, threads=1, time_limit=1e6))
    ctx = context.Context(tmp_path, work, {}, threads=1, time_limit=1e6)
    ids = heads.predict(ctx)
    assert ids.shape == (30, 100)
    assert (ids[:, 40:] == -1).all()
    assert {"load_s", "predict_s", "single_ms"} <= ctx.notes.keys()
    kept = heads.Network.load(work / "model" / "model.pt")
    assert (kept.top(context.unit_rows(ctx.features("test")), 100) == ids).all()
    with pytest.raises(context.OutOfTime, match=r"of 10 epochs in .* h \(computed\)") as stopped:
        heads.train(context.Context(tmp_path, work, options, threads=1, time_limit=0))
    assert stopped.value.facts["train_cpu_s_computed"] > 0
