"""A neural classifier with either of two output layers: one output a label, or a sparsely gated mixture of experts.

Both have the same encoder (an embedding bag of the features, hashed to 2^18 rows at most, into 256 hidden units with
ReLU), the same optimiser (Adam; its sparse form for the embeddings) and, but for a gate, the same number of weights.

ova  A linear output for each of the K labels. Loss: softmax cross-entropy where each sample has one label, else binary
     cross-entropy of all labels. A sample costs K outputs.
moe  A sparsely gated mixture of experts: noisy top-k gating with its two balancing losses as in Shazeer et al. 2017,
     "Outrageously large neural networks: the sparsely-gated mixture-of-experts layer", for an output layer in the way
     of Liao et al. 2019, "Doubly sparse: sparse mixture of sparse experts for efficient softmax inference". Each of E
     experts, about sqrt(K) / 2, is a linear softmax over labels of its own, and
     p(label | x) = gate(the label's expert | x) * expert(label | x). The gate keeps the k = 4 best experts of a sample;
     only their K * k / E labels are scored. Loss: cross-entropy, shared evenly by a sample's labels. As an expert gives
     no probability to labels of others, it needs the outputs of the labels' own experts only, K / E for each, and the
     gate's softmax can be over all experts in training, by which it learns from the labels' experts among all others
     (over those kept, as in the paper, it learns too slowly once experts are many). Labels are dealt to the experts
     before training, evenly, those of similar samples to the same (balanced 2-means, time and again).

Biases start from the labels' frequencies. Settings were chosen for ova, by precision on samples of cooking_se's
training file that were held out. moe takes them over, but for batches that grow with its experts, so that each expert
sees some samples of a batch; its gate and its groups were chosen there and on 50,000 samples of yso_finna_en, 4,000 of
that set's test samples judging, which can only flatter it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from context import Context, OutOfTime, single_rows, unit_rows

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by torch: its waiting threads burn CPU seconds otherwise
import torch
from torch.nn import functional

_ROWS = 1 << 18  # of the embeddings, at most
_OUTPUTS = 1 << 28  # of a batch, at most: 1 GiB, some four times over
_EACH = 16  # samples of a batch for each expert
_DIMENSIONS = 1024  # of the vectors by which labels are grouped, at most,
_VECTORS = 1 << 27  # and of all of them together
_TO_SAVE = 0.03  # share of the time limit


@dataclass(frozen=True)
class Settings:
    """``head``: "ova" or "moe"; ``kept``: experts that the gate keeps; ``balance``: weight of its balancing losses."""

    head: str = "ova"
    hidden: int = 256
    epochs: int = 10
    batch: int = 256
    rate: float = 0.01
    dropout: float = 0.3
    kept: int = 4
    balance: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """What training came to: the epochs done, and computed from them, the seconds of an epoch and of it all.

    ``cpu_seconds``: of the process, from its start to the end of the last epoch.
    """

    epochs: float
    epoch_seconds: float
    cpu_seconds: float


def train(ctx: Context) -> None:
    settings = Settings(**ctx.options)
    torch.set_num_threads(ctx.threads)
    features, labels = unit_rows(ctx.features("train")), ctx.labels("train")
    start = time.perf_counter()
    network, progress = fit(features, labels, settings, ctx.seconds_left() - _TO_SAVE * ctx.time_limit)
    if progress.epochs < settings.epochs:
        seconds, hours = time.perf_counter() - start, progress.epoch_seconds / 3600
        done = f"{progress.epochs:.3g} of {settings.epochs} epochs in {seconds:.0f} s"
        why = f"{done}: an epoch would take {hours:.2g} h (computed)"
        raise OutOfTime(why, train_cpu_s_computed=progress.cpu_seconds, epochs_done=progress.epochs)
    network.save(ctx.model / "model.pt")


def predict(ctx: Context) -> Any:
    torch.set_num_threads(ctx.threads)
    with ctx.timed("load_s"):
        network = Network.load(ctx.model / "model.pt")
    features = unit_rows(ctx.features("test"))
    with ctx.timed("predict_s"):
        ids = network.top(features, ctx.top)
    ctx.time_single(lambda row: network.top(row, 10), single_rows(features))
    return ids


def fit(features: Any, labels: Any, settings: Settings, seconds: float) -> tuple[Network, Progress]:
    """Train on CSR matrices with rows of length 1; when the time is over, what is left of the epochs is left out."""
    end = time.perf_counter() + seconds
    torch.manual_seed(settings.seed)
    torch.sparse.check_sparse_tensor_invariants.disable()
    network = Network(settings, started(features, labels, settings))
    one_label = bool((np.diff(labels.indptr) == 1).all())
    dense = [network.bias, *network.head.parameters()]
    optimisers = [torch.optim.SparseAdam([network.rows]), torch.optim.Adam(dense, fused=True)]
    n, done = features.shape[0], 0
    start, start_cpu = time.perf_counter(), time.process_time()
    for rows in batches(n, network.head.batch, settings):
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = settings.rate * (1 - done / (n * settings.epochs))
            optimiser.zero_grad()
        hidden = functional.dropout(network.hidden(features[rows]), settings.dropout)
        network.head.loss(hidden, Positives(labels[rows]), one_label).backward()
        for optimiser in optimisers:
            optimiser.step()
        done += len(rows)
        if time.perf_counter() > end:
            break
    epoch_seconds = (time.perf_counter() - start) * n / done
    cpu_seconds = start_cpu + (time.process_time() - start_cpu) * n * settings.epochs / done
    return network, Progress(done / n, epoch_seconds, cpu_seconds)


def batches(n: int, size: int, settings: Settings) -> Iterator[Any]:
    """The rows of the batches of all epochs, each in an order of its own."""
    source = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order = source.permutation(n)
        yield from (order[first : first + size] for first in range(0, n, size))


class Positives:
    """The labels of a batch: of each, its row, its id, and its share of the row's labels."""

    def __init__(self, labels: Any) -> None:
        counts = torch.from_numpy(np.diff(labels.indptr).astype(np.int64))
        self.rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self.ids = torch.from_numpy(labels.indices.astype(np.int64))
        self.shares = 1 / counts[self.rows]


def started(features: Any, labels: Any, settings: Settings) -> dict[str, Any]:
    """The weights before training. Those of the output layer lie by label, for moe by expert and then by label."""
    n_labels, size = labels.shape[1], settings.hidden
    frequencies = (np.bincount(labels.indices, minlength=n_labels) + 0.5) / (labels.shape[0] + 1)
    tensors = {
        "rows": torch.empty(min(features.shape[1], _ROWS), size).normal_(0, size**-0.5),
        "bias": torch.zeros(size),
        "weights": torch.empty(n_labels, size).uniform_(-(size**-0.5), size**-0.5),
        "biases": torch.logit(torch.from_numpy(frequencies)).float(),
    }
    if settings.head == "moe":
        n_experts = max(2, round(n_labels**0.5 / 2))
        experts = torch.from_numpy(grouped(features, labels, n_experts, settings.seed))
        ids = torch.argsort(experts, stable=True)
        tensors |= {"ids": ids, "biases": tensors["biases"][ids], "sizes": torch.bincount(experts, minlength=n_experts)}
        tensors |= {"gate": torch.zeros(n_experts, size), "noise": torch.zeros(n_experts, size)}
    return tensors


def grouped(features: Any, labels: Any, n_groups: int, seed: int) -> Any:
    """The group of each label: of equal sizes, labels whose samples have similar features together."""
    source = np.random.default_rng(seed)
    n, size = features.shape[1], min(_DIMENSIONS, max(1, _VECTORS // labels.shape[1]))
    signs = np.where(source.random(n) < 0.5, -1, 1).astype(np.float32)
    projection = sp.csr_matrix((signs, (np.arange(n), source.integers(0, size, n))), (n, size))
    vectors = unit_rows(labels.T.tocsr() @ (features @ projection).tocsr()).toarray()
    groups = np.zeros(labels.shape[1], np.int64)

    def split(ids: Any, first: int, n_groups: int) -> None:
        if n_groups == 1:
            groups[ids] = first
            return
        left = n_groups // 2
        cut = len(ids) * left // n_groups
        mine = vectors[ids]
        direction = mine[source.integers(len(ids))] - mine[source.integers(len(ids))]
        for _ in range(5):
            order = np.argsort(-(mine @ direction), kind="stable")
            means = np.full(len(ids), -1 / (len(ids) - cut), np.float32)
            means[order[:cut]] = 1 / cut
            direction = means @ mine
        split(ids[order[:cut]], first, left)
        split(ids[order[cut:]], first + left, n_groups - left)

    split(np.arange(labels.shape[1]), 0, n_groups)
    return groups


class Network:
    """An encoder and an output layer, which work on the given tensors themselves."""

    def __init__(self, settings: Settings, tensors: dict[str, Any]) -> None:
        self.settings, self.tensors = settings, tensors
        self.rows, self.bias = tensors["rows"].requires_grad_(), tensors["bias"].requires_grad_()
        self.head: OneVsAll | Experts = (Experts if settings.head == "moe" else OneVsAll)(tensors, settings)

    @classmethod
    def load(cls, path: Path) -> Network:
        settings, tensors = torch.load(path, weights_only=True)
        return cls(Settings(**settings), tensors)

    def save(self, path: Path) -> None:
        tensors = {name: tensor.detach() for name, tensor in self.tensors.items()}
        torch.save((dataclasses.asdict(self.settings), tensors), path)

    def hidden(self, features: Any) -> Any:
        """What the encoder makes of CSR rows: [n, hidden]."""
        ids, n_rows = features.indices.astype(np.uint64), np.uint64(len(self.rows))
        if features.shape[1] > len(self.rows):
            ids = (ids * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % n_rows
        bags = functional.embedding_bag(
            torch.from_numpy(ids.astype(np.int64)), self.rows, torch.from_numpy(features.indptr[:-1].astype(np.int64)),
            mode="sum", per_sample_weights=torch.from_numpy(features.data), sparse=True,
        )  # fmt: skip
        return functional.relu(bags + self.bias)

    def top(self, features: Any, k: int) -> Any:
        """The ids of the k best labels of each row, best first, as int32 [n, k]; -1 where there are fewer."""
        ids = np.full((features.shape[0], k), -1, np.int32)
        with torch.no_grad():
            for first in range(0, len(ids), self.head.batch):
                found = self.head.top(self.hidden(features[first : first + self.head.batch]), k).numpy()
                ids[first : first + len(found), : found.shape[1]] = found
        return ids


class OneVsAll:
    """A linear output a label."""

    def __init__(self, tensors: dict[str, Any], settings: Settings) -> None:
        self.weights, self.biases = tensors["weights"].requires_grad_(), tensors["biases"].requires_grad_()
        self.batch = max(1, min(settings.batch, _OUTPUTS // len(self.biases)))

    def parameters(self) -> list[Any]:
        return [self.weights, self.biases]

    def outputs(self, hidden: Any) -> Any:
        return torch.addmm(self.biases, hidden, self.weights.T)

    def loss(self, hidden: Any, positives: Positives, one_label: bool) -> Any:
        """The mean over samples of the softmax cross-entropy, or of the sum of all labels' binary ones."""
        outputs = self.outputs(hidden)
        rest = torch.logsumexp(outputs, 1) if one_label else functional.softplus(outputs)
        return (rest.sum() - outputs[positives.rows, positives.ids].sum()) / len(hidden)

    def top(self, hidden: Any, k: int) -> Any:
        return torch.topk(self.outputs(hidden), min(k, len(self.biases))).indices


class Experts:
    """Linear softmaxes over some labels each, and a gate that keeps a few of them."""

    def __init__(self, tensors: dict[str, Any], settings: Settings) -> None:
        ids, sizes = tensors["ids"], tensors["sizes"]
        self.ids = ids.split(sizes.tolist())
        self.weights = [part.detach().requires_grad_() for part in tensors["weights"].split(sizes.tolist())]
        self.biases = [part.detach().requires_grad_() for part in tensors["biases"].split(sizes.tolist())]
        self.gate, self.noise = tensors["gate"].requires_grad_(), tensors["noise"].requires_grad_()
        self.expert_of = torch.empty_like(ids)
        self.place_of = torch.empty_like(ids)
        self.expert_of[ids] = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self.place_of[ids] = torch.cat([torch.arange(size) for size in sizes.tolist()])
        self.kept, self.balance = min(settings.kept, len(sizes)), settings.balance
        self.batch = max(settings.batch, _EACH * len(sizes))

    def parameters(self) -> list[Any]:
        return [*self.weights, *self.biases, self.gate, self.noise]

    def outputs(self, expert: int, hidden: Any) -> Any:
        return functional.log_softmax(torch.addmm(self.biases[expert], hidden, self.weights[expert].T), 1)

    def loss(self, hidden: Any, positives: Positives, one_label: bool) -> Any:
        """The mean over samples of the cross-entropy (of one label or more), and the balancing losses."""
        gates, uneven = self.gates(hidden)
        order, found, counts = by_expert(self.expert_of[positives.ids])
        rows, ids, shares = positives.rows[order], positives.ids[order], positives.shares[order]
        logs = [
            self.outputs(expert, mine).gather(1, places[:, None])[:, 0]
            for expert, mine, places in zip(
                found, hidden[rows].split(counts), self.place_of[ids].split(counts), strict=True
            )
        ]
        likelihoods = gates[rows, self.expert_of[ids]] + torch.cat(logs)
        return self.balance * uneven - (likelihoods * shares).sum() / len(hidden)

    def gates(self, hidden: Any) -> tuple[Any, Any]:
        """The logarithms of the noisy gates; and how uneven they are, to be made less.

        That is the squared coefficients of variation of the experts' importance (the sum of their gates) and, where
        some are left out, load (how probable it is that the gate keeps them, were their noise drawn anew).
        """
        clean = hidden @ self.gate.T
        deviation = functional.softplus(hidden @ self.noise.T) + 0.01
        noisy = clean + torch.randn_like(clean) * deviation
        gates = functional.log_softmax(noisy, 1)
        uneven = unevenness(gates.exp().sum(0))
        if self.kept < noisy.shape[1]:
            best = torch.topk(noisy, self.kept + 1).values
            others = torch.where(noisy >= best[:, -2:-1], best[:, -1:], best[:, -2:-1])  # the last kept but for itself
            uneven = uneven + unevenness(torch.special.ndtr((clean - others) / deviation).sum(0))
        return gates, uneven

    def top(self, hidden: Any, k: int) -> Any:
        gates = torch.topk(hidden @ self.gate.T, self.kept)
        logs = functional.log_softmax(gates.values, 1).flatten()
        scores = torch.full((len(logs), k), -torch.inf)
        ids = torch.full((len(logs), k), -1)
        order, found, counts = by_expert(gates.indices.flatten())
        for expert, mine in zip(found, order.split(counts), strict=True):
            outputs = self.outputs(expert, hidden[mine // self.kept])
            best = torch.topk(outputs, min(k, outputs.shape[1]))
            scores[mine, : best.values.shape[1]] = best.values + logs[mine, None]
            ids[mine, : best.values.shape[1]] = self.ids[expert][best.indices]
        scores, ids = scores.view(len(hidden), -1), ids.view(len(hidden), -1)
        return ids.gather(1, torch.topk(scores, k).indices)


def by_expert(experts: Any) -> tuple[Any, list[int], list[int]]:
    """The order that puts the same experts side by side, the experts that occur, and how often each does."""
    order = torch.argsort(experts, stable=True)
    found, counts = torch.unique_consecutive(experts[order], return_counts=True)
    return order, found.tolist(), counts.tolist()


def unevenness(sums: Any) -> Any:
    """The squared coefficient of variation."""
    return sums.var(unbiased=False) / (sums.mean() ** 2 + 1e-10)
