"""A neural classifier with one of three output layers: an output a label, a sparsely gated mixture of experts, or MACH.

All have the same encoder (an embedding bag of the features, hashed to 2^18 rows at most, into 256 hidden units with
ReLU) and the same optimiser (Adam; its sparse form for the embeddings); the first two, but for a gate, the same number
of weights.

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
mach R linear softmaxes over B buckets of labels each, by R hashes; p(label | x) is the mean of the R probabilities of
     its buckets. With an encoder each (R networks that have nothing in common, trained in step: for Adam, which sees
     every weight alone, that is each on its own), or one encoder for all. Loss: cross-entropy, shared by a sample's
     labels. `../../head_to_head.py` compares it with the others, at the same loss.

Biases start from the labels' frequencies. Settings were chosen for ova, by precision on samples of cooking_se's
training file that were held out. moe takes them over, but for batches that grow with its experts, so that each expert
sees some samples of a batch; its gate and its groups were chosen there and on 50,000 samples of yso_finna_en, 4,000 of
that set's test samples judging, which can only flatter it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from context import WARMING, Context, OutOfTime, single_rows, unit_rows

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by torch: its waiting threads burn CPU seconds otherwise
import torch
from torch.nn import functional

_OUTPUTS = 1 << 28  # of a batch, at most: 1 GiB, some four times over
_EACH = 16  # samples of a batch for each expert
_DIMENSIONS = 1024  # of the vectors by which labels are grouped, at most,
_VECTORS = 1 << 27  # and of all of them together
_TO_SAVE = 0.03  # share of the time limit
_PRIME = (1 << 31) - 1  # of the hashes of labels, which are fewer


@dataclass(frozen=True)
class Settings:
    """``head``: "ova", "moe" or "mach"; ``kept``: experts that the gate keeps; ``balance``: weight of its losses.

    ``softmax``: ova has a softmax over all labels also where samples have several; ``repetitions``, ``buckets``: of
    mach; ``shared``: its repetitions have one encoder; ``rows``: of the embeddings, at most; ``device``: of PyTorch.
    """

    head: str = "ova"
    hidden: int = 256
    epochs: int = 10
    batch: int = 256
    rate: float = 0.01
    dropout: float = 0.3
    kept: int = 4
    balance: float = 0.1
    seed: int = 0
    softmax: bool = False
    repetitions: int = 8
    buckets: int = 256
    shared: bool = False
    rows: int = 1 << 18
    device: str = "cpu"


Watch = Callable[["Network", float, float], None]
"""Called after each batch with the network, the samples trained on so far, and the seconds that training took."""


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
    network.top(features[:WARMING], ctx.top)
    with ctx.timed("predict_s"):
        ids = network.top(features, ctx.top)
    ctx.time_single(lambda row: network.top(row, 10), single_rows(features))
    return ids


def fit(
    features: Any, labels: Any, settings: Settings, seconds: float, watch: Watch | None = None
) -> tuple[Network, Progress]:
    """Train on CSR matrices with rows of length 1; when the time is over, what is left of the epochs is left out.

    The time that ``watch`` takes is not counted.
    """
    end = time.perf_counter() + seconds
    torch.manual_seed(settings.seed)
    torch.sparse.check_sparse_tensor_invariants.disable()
    network = Network(settings, started(features, labels, settings))
    softmax = settings.softmax or bool((np.diff(labels.indptr) == 1).all())
    dense = [network.bias, *network.head.parameters()]
    optimisers = [torch.optim.SparseAdam([network.rows]), torch.optim.Adam(dense, fused=True)]
    n, done = features.shape[0], 0
    start, start_cpu, watched = time.perf_counter(), time.process_time(), 0.0
    for rows in batches(n, network.head.batch, settings):
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = settings.rate * (1 - done / (n * settings.epochs))
            optimiser.zero_grad()
        hidden = functional.dropout(network.hidden(features[rows]), settings.dropout)
        network.head.loss(hidden, Positives(labels[rows], settings.device), softmax).backward()
        for optimiser in optimisers:
            optimiser.step()
        done += len(rows)
        if watch is not None:
            synchronise(settings.device)
            before = time.perf_counter()
            watch(network, done, before - start - watched)
            watched += time.perf_counter() - before
        if time.perf_counter() - watched > end:
            break
    epoch_seconds = (time.perf_counter() - start - watched) * n / done
    cpu_seconds = start_cpu + (time.process_time() - start_cpu) * n * settings.epochs / done
    return network, Progress(done / n, epoch_seconds, cpu_seconds)


def batches(n: int, size: int, settings: Settings) -> Iterator[Any]:
    """The rows of the batches of all epochs, each in an order of its own."""
    source = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order = source.permutation(n)
        yield from (order[first : first + size] for first in range(0, n, size))


def synchronise(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Positives:
    """The labels of a batch: of each, its row, its id, and its share of the row's labels."""

    def __init__(self, labels: Any, device: str) -> None:
        counts = torch.from_numpy(np.diff(labels.indptr).astype(np.int64))
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self.rows, self.shares = rows.to(device), (1 / counts[rows]).to(device)
        self.ids = torch.from_numpy(labels.indices.astype(np.int64)).to(device)


def started(features: Any, labels: Any, settings: Settings) -> dict[str, Any]:
    """The weights before training. Those of the output layer lie by label, for moe by expert and then by label."""
    n_labels, size = labels.shape[1], settings.hidden
    counts = torch.from_numpy(np.bincount(labels.indices, minlength=n_labels) + 0.0)
    encoders = settings.repetitions if settings.head == "mach" and not settings.shared else 1
    tensors = {
        "rows": torch.empty(min(features.shape[1], settings.rows), encoders * size).normal_(0, size**-0.5),
        "bias": torch.zeros(encoders * size),
    }
    if settings.head == "mach":
        return tensors | started_mach(counts, labels.shape[0], settings)
    tensors |= {
        "weights": torch.empty(n_labels, size).uniform_(-(size**-0.5), size**-0.5),
        "biases": torch.logit((counts + 0.5) / (labels.shape[0] + 1)).float(),
    }
    if settings.head == "moe":
        n_experts = max(2, round(n_labels**0.5 / 2))
        experts = torch.from_numpy(grouped(features, labels, n_experts, settings.seed))
        ids = torch.argsort(experts, stable=True)
        tensors |= {"ids": ids, "biases": tensors["biases"][ids], "sizes": torch.bincount(experts, minlength=n_experts)}
        tensors |= {"gate": torch.zeros(n_experts, size), "noise": torch.zeros(n_experts, size)}
    return tensors


def started_mach(counts: Any, n: int, settings: Settings) -> dict[str, Any]:
    """The output layers of mach before training, from how many of n samples have each label; and the hashes."""
    n_repetitions, n_buckets, size = settings.repetitions, settings.buckets, settings.hidden
    a, b = torch.randint(1, _PRIME, (2, n_repetitions, 1))
    buckets = (a * torch.arange(len(counts)) + b) % _PRIME % n_buckets
    of_buckets = torch.zeros(n_repetitions, n_buckets, dtype=counts.dtype)
    of_buckets.scatter_add_(1, buckets, counts.expand(n_repetitions, -1))
    return {
        "weights": torch.empty(n_repetitions, n_buckets, size).uniform_(-(size**-0.5), size**-0.5),
        "biases": torch.log((of_buckets + 0.5) / (n + 1)).float(),
        "buckets": buckets.int(),
    }


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
        self.settings, self.tensors = settings, {name: t.to(settings.device) for name, t in tensors.items()}
        self.rows, self.bias = self.tensors["rows"].requires_grad_(), self.tensors["bias"].requires_grad_()
        self.head: OneVsAll | Experts | Repetitions = HEADS[settings.head](self.tensors, settings)

    @classmethod
    def load(cls, path: Path) -> Network:
        settings, tensors = torch.load(path, weights_only=True)
        return cls(Settings(**settings), tensors)

    def save(self, path: Path) -> None:
        tensors = {name: tensor.detach() for name, tensor in self.tensors.items()}
        torch.save((dataclasses.asdict(self.settings), tensors), path)

    def hidden(self, features: Any) -> Any:
        """What the encoder makes of CSR rows: [n, hidden], for all encoders side by side."""
        ids, n_rows, device = features.indices.astype(np.uint64), np.uint64(len(self.rows)), self.settings.device
        if features.shape[1] > len(self.rows):
            ids = (ids * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % n_rows
        bags = functional.embedding_bag(
            torch.from_numpy(ids.astype(np.int64)).to(device), self.rows,
            torch.from_numpy(features.indptr[:-1].astype(np.int64)).to(device),
            mode="sum", per_sample_weights=torch.from_numpy(features.data).to(device), sparse=True,
        )  # fmt: skip
        return functional.relu(bags + self.bias)

    def top(self, features: Any, k: int, batch: int = 0) -> Any:
        """The ids of the k best labels of each row, best first, as int32 [n, k]; -1 where there are fewer.

        ``batch``: rows at a time, default as in training.
        """
        ids, batch = np.full((features.shape[0], k), -1, np.int32), batch or self.head.batch
        with torch.no_grad():
            for first in range(0, len(ids), batch):
                found = self.head.top(self.hidden(features[first : first + batch]), k).cpu().numpy()
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

    def loss(self, hidden: Any, positives: Positives, softmax: bool) -> Any:
        """The mean over samples of the softmax cross-entropy, or of the sum of all labels' binary ones."""
        outputs = self.outputs(hidden)
        rest = torch.logsumexp(outputs, 1) if softmax else functional.softplus(outputs)
        wanted = outputs[positives.rows, positives.ids]
        return (rest.sum() - (wanted * positives.shares if softmax else wanted).sum()) / len(hidden)

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
        self.expert_of[ids] = torch.repeat_interleave(torch.arange(len(sizes), device=ids.device), sizes)
        self.place_of[ids] = torch.cat([torch.arange(size, device=ids.device) for size in sizes.tolist()])
        self.kept, self.balance = min(settings.kept, len(sizes)), settings.balance
        self.batch = max(settings.batch, _EACH * len(sizes))

    def parameters(self) -> list[Any]:
        return [*self.weights, *self.biases, self.gate, self.noise]

    def outputs(self, expert: int, hidden: Any) -> Any:
        return functional.log_softmax(torch.addmm(self.biases[expert], hidden, self.weights[expert].T), 1)

    def loss(self, hidden: Any, positives: Positives, softmax: bool) -> Any:
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
        scores = torch.full((len(logs), k), -torch.inf, device=hidden.device)
        ids = torch.full((len(logs), k), -1, device=hidden.device)
        order, found, counts = by_expert(gates.indices.flatten())
        for expert, mine in zip(found, order.split(counts), strict=True):
            outputs = self.outputs(expert, hidden[mine // self.kept])
            best = torch.topk(outputs, min(k, outputs.shape[1]))
            scores[mine, : best.values.shape[1]] = best.values + logs[mine, None]
            ids[mine, : best.values.shape[1]] = self.ids[expert][best.indices]
        scores, ids = scores.view(len(hidden), -1), ids.view(len(hidden), -1)
        return ids.gather(1, torch.topk(scores, k).indices)


class Repetitions:
    """MACH: R linear softmaxes over B buckets of labels each."""

    def __init__(self, tensors: dict[str, Any], settings: Settings) -> None:
        self.weights, self.biases = tensors["weights"].requires_grad_(), tensors["biases"].requires_grad_()
        self.buckets, self.batch = tensors["buckets"], settings.batch

    def parameters(self) -> list[Any]:
        return [self.weights, self.biases]

    def outputs(self, hidden: Any) -> Any:
        """Of each repetition, from its own hidden units or those of all: [R, n, B]."""
        n_repetitions, _, size = self.weights.shape
        mine = hidden.view(len(hidden), -1, size).transpose(0, 1).expand(n_repetitions, -1, -1)
        return torch.baddbmm(self.biases[:, None], mine, self.weights.transpose(1, 2))

    def loss(self, hidden: Any, positives: Positives, softmax: bool) -> Any:
        """The mean over samples, and the sum over repetitions, of the softmax cross-entropy."""
        outputs = self.outputs(hidden)
        repetitions = torch.arange(len(outputs), device=outputs.device)[:, None]
        wanted = outputs[repetitions, positives.rows, self.buckets[:, positives.ids].long()]
        return (torch.logsumexp(outputs, 2).sum() - (wanted * positives.shares).sum()) / len(hidden)

    def top(self, hidden: Any, k: int) -> Any:
        scores = torch.zeros(len(hidden), self.buckets.shape[1], device=hidden.device)
        for probabilities, buckets in zip(self.outputs(hidden).softmax(2), self.buckets, strict=True):
            scores += probabilities.index_select(1, buckets)
        return torch.topk(scores, min(k, scores.shape[1])).indices


HEADS: dict[str, Any] = {"ova": OneVsAll, "moe": Experts, "mach": Repetitions}


def by_expert(experts: Any) -> tuple[Any, list[int], list[int]]:
    """The order that puts the same experts side by side, the experts that occur, and how often each does."""
    order = torch.argsort(experts, stable=True)
    found, counts = torch.unique_consecutive(experts[order], return_counts=True)
    return order, found.tolist(), counts.tolist()


def unevenness(sums: Any) -> Any:
    """The squared coefficient of variation."""
    return sums.var(unbiased=False) / (sums.mean() ** 2 + 1e-10)
