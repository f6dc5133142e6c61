"""One output layer on its way to an accuracy: what `../head_to_head.py` runs, each step in a process of its own.

    python race.py make FOLDER --labels K --samples N --columns D       samples of the made-up shop, hashed
    python race.py run FOLDER OUT --settings JSON --seconds S           train, and look at P@1 now and then

``run`` writes what it measured to OUT as JSON: see `measured`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

TEST = 1000
_FIRST, _GROWTH = 1.0, 1.35  # seconds of training before the first look, and from one to the next
_ROWS = 64  # samples whose scores are computed at a time, so that looking takes less memory than training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=1 << 16)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.step == "make":
        make(given.folder, given.labels, given.samples, given.columns)
    else:
        found = measured(given.folder, given.settings, given.seconds, given.threads)
        given.out.write_text(json.dumps(found))


def make(folder: Path, n_labels: int, n_samples: int, n_columns: int) -> None:
    """Training and test samples as CSR matrices: words and pairs of words, hashed to columns."""
    from machxc.testing import Catalogue
    from shop import samples_of

    for name, n, stream in (("train", n_samples, 0), ("test", TEST, 1)):
        samples = samples_of(Catalogue(n_labels), n, stream)
        features, labels = samples.features, samples.labels
        columns = (features.indices % np.uint32(n_columns)).astype(np.int32)
        matrix = sp.csr_matrix((features.values, columns, features.indptr), (n, n_columns))
        matrix.sum_duplicates()
        ones = np.ones(len(labels.indices), np.float32)
        sp.save_npz(folder / f"{name}_features.npz", matrix, compressed=False)
        wanted = sp.csr_matrix((ones, labels.indices.astype(np.int32), labels.indptr), (n, n_labels))
        sp.save_npz(folder / f"{name}_labels.npz", wanted, compressed=False)


class Looks:
    """P@1 on the test samples at times that grow, the first after a second of training.

    ``points``: seconds of training and CPU seconds (both from before there was a network), samples trained on, and P@1
    of each look; ``device_bytes``: the most that PyTorch had on a GPU while it trained; ``answer_seconds``: what the
    last look took.
    """

    def __init__(self, features: Any, labels: Any, device: str) -> None:
        self._features, self._labels, self._device = features, labels, device
        self._start, self._start_cpu, self._next, self._before = time.perf_counter(), time.process_time(), _FIRST, 0.0
        self.points: list[tuple[float, float, float, float]] = []
        self.device_bytes, self.answer_seconds, self.seconds, self.done = 0, 0.0, 0.0, 0.0

    @property
    def cpu_seconds(self) -> float:
        """Of training so far."""
        return time.process_time() - self._start_cpu

    def __call__(self, network: Any, done: float, seconds: float) -> None:
        """After a batch."""
        if not self.done:
            self._before = time.perf_counter() - self._start - seconds  # making the network
        self.seconds, self.done = self._before + seconds, done
        if self.seconds >= self._next:
            self._next = self.seconds * _GROWTH
            self.look(network)

    def look(self, network: Any) -> None:
        """Now."""
        import torch

        start, start_cpu = time.perf_counter(), time.process_time()
        on_gpu = self._device.startswith("cuda")
        if on_gpu:
            self.device_bytes = max(self.device_bytes, torch.cuda.max_memory_allocated(self._device))
        best = network.top(self._features, 1, _ROWS)[:, 0]
        right = self._labels[np.arange(len(best)), best]
        self._start_cpu += time.process_time() - start_cpu
        self.points.append((self.seconds, self.cpu_seconds, self.done, float(np.asarray(right).mean())))
        self.answer_seconds = time.perf_counter() - start
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)


def measured(folder: Path, options: dict[str, Any], seconds: float, threads: int) -> dict[str, Any]:
    """Train for so many seconds, or all epochs: what that took, and what came out.

    ``points`` as in `Looks`, the last one the end; ``parameters`` that are learnt; ``n_samples`` of an epoch;
    ``peak_bytes``: the most memory of the process, less what it had before there was a network; ``device_bytes``;
    ``answer_seconds`` for 1,000 queries.
    """
    from context import unit_rows
    from peers.torch_heads import Settings, fit  # before torch: it sets how torch's threads wait

    import torch  # isort: skip

    torch.set_num_threads(threads)
    settings = Settings(**options)
    (features, labels), test = (read(folder, part) for part in ("train", "test"))
    features = unit_rows(features)
    warm(torch, settings.device)
    before, looks = resident(), Looks(unit_rows(test[0]), test[1], settings.device)
    network, _ = fit(features, labels, settings, seconds, looks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    looks.look(network)
    learnt = [network.rows, network.bias, *network.head.parameters()]
    return {
        "points": looks.points,
        "parameters": sum(tensor.numel() for tensor in learnt),
        "n_samples": features.shape[0],
        "peak_bytes": peak - before,
        "device_bytes": looks.device_bytes,
        "answer_seconds": looks.answer_seconds,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(settings.device) if settings.device.startswith("cuda") else "cpu",
    }


def warm(torch: Any, device: str) -> None:
    """A step of an optimiser: what PyTorch loads then, it has not to load while a clock runs."""
    weight = torch.zeros(1, device=device, requires_grad=True)
    weight.sum().backward()
    torch.optim.Adam([weight], fused=True).step()


def read(folder: Path, part: str) -> tuple[Any, Any]:
    """Features and labels of a part."""
    return sp.load_npz(folder / f"{part}_features.npz").tocsr(), sp.load_npz(folder / f"{part}_labels.npz").tocsr()


def resident() -> int:
    """The memory of this process that is resident now, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
