"""What training on a device takes: bytes there and on its machine, from the settings and a few counts of the data.

No seconds: no GPU was measured. Imports no torch. docs/gpu.md has the formulas in words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from machxc.config import Config
from machxc.cost import CHUNK_BYTES, RUNTIME, behind_table, bytes_of_samples, rows_of
from machxc.facts import Facts
from machxc.repetition.chunks import WINDOW_BYTES
from machxc.torch.device import KERNELS, TORCH_CPU

STEPS = 64  # of an epoch, about, as long as batches have
LEAST, MOST = 16, 8192  # samples
TORCH = 190 << 20  # PyTorch on the machine, as built for processors: one for GPUs takes more
CONTEXT = 1 << 30  # of a GPU: what CUDA and PyTorch keep for themselves, generously
SIZES = (16, 24, 40, 80, 141)  # GB that GPUs have
ROW = 36  # bytes of a feature value in a repetition, while a step is computed: its row by sample and by row
ENCODING = 100  # and while it is encoded
AHEAD = 5  # batches on the machine: ready, sent, and prepared


def batch_size(n: int) -> int:
    """The samples of a batch, a power of 2: so few that an epoch over ``n`` has many steps, and enough to do."""
    return max(LEAST, min(MOST, 1 << (n // STEPS).bit_length()))


@dataclass(frozen=True)
class DeviceCost:
    """Bytes of training on a device.

    ``batch``: samples of a batch; ``weights``: of a repetition, and what it keeps beside them; ``step``: more of it
    while a step is computed, ``least``: the same where repetitions take turns, and samples are cut to one at a time;
    ``host``: on the machine, however many repetitions; ``n_repetitions``: how many there are.
    """

    device: str
    batch: int
    weights: int
    step: int
    least: int
    host: int
    n_repetitions: int

    def together(self, memory: int) -> int:
        """How many repetitions compute a step together in so many bytes of a device."""
        return min(self.n_repetitions, max(0, memory - CONTEXT) // (self.weights + self.step))

    def at_all(self, memory: int) -> int:
        """How many train in one group in so many bytes: steps are taken by parts where memory is short."""
        return min(self.n_repetitions, max(0, memory - CONTEXT - self.least) // self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        sizes = {f"{size} GB": {"together": self.together(n), "at_all": self.at_all(n)} for size, n in _sizes().items()}
        return {**asdict(self), "seconds": None, "repetitions_in": sizes}


def device_cost(config: Config, facts: Facts, device: str) -> DeviceCost | None:
    """The cost of training on ``device`` (as `machxc.torch.device` names them); None where the kernels do it."""
    if device == KERNELS or config.learner == "counts":
        return None
    item = 4 if device == TORCH_CPU else 2  # bytes of a number in matrix products
    rows, slots = rows_of(config, facts), min(config.n_features, 2**config.feature_bits)
    n = batch_size(facts.n_samples - int(config.validation_fraction * facts.n_samples))
    weights = _weights(config, rows, slots, item)
    step, least = _step(config, facts, n, n, item), _step(config, facts, n, 1, item)
    host = _host(config, facts, n, rows, slots)
    if device == TORCH_CPU:  # the device is the machine
        host += config.repetitions * (weights + step)
    return DeviceCost(device, n, weights, step, least, host, config.repetitions)


def _weights(config: Config, rows: int, slots: int, item: int) -> int:
    """Weights and sums of squares in float32, copies of the dense layers that are multiplied in 16 bits, slots."""
    sizes = (*config.layers, config.buckets)
    table = 4 * rows * sizes[0] + 4 * rows
    dense = behind_table(config) * (4 + (item if item < 4 else 0)) + 4 * sum(sizes[1:])
    return table + dense + 4 * (sum(sizes) + config.buckets) + 4 * slots + 4 * rows


def _step(config: Config, facts: Facts, n: int, at_a_time: int, item: int) -> int:
    """What a step computes, where most of it is in memory: rows of features, or logits, hidden units, gradients."""
    n_buckets, hidden, values = config.buckets, sum(config.layers), facts.per_sample
    encoding = (ROW * (n - at_a_time) + ENCODING * at_a_time) * values
    if not hidden:
        return int(max(encoding, ROW * n * values + 4 * n * n_buckets))
    copies, logits = (item if item < 4 else 0) * n * hidden, item * at_a_time * n_buckets
    each = 4 + item + (8 if config.normalisation == "layer" else 0)  # what is normalised is kept, and multiplied
    units = each * n * hidden + max(n * hidden, copies + logits)  # a mask of them, once the logits are gone
    return int(max(encoding, ROW * n * values + units + item * behind_table(config)))


def _host(config: Config, facts: Facts, n: int, rows: int, slots: int) -> int:
    """PyTorch, samples, encoders, batches that are ready, and the weights of one repetition on their way."""
    width = (*config.layers, config.buckets)[0]
    one = 4 * rows * width + 4 * behind_table(config)
    batches = AHEAD * int(n * (12 * facts.per_sample + 8 * facts.n_pairs / max(1, facts.n_samples) + 24))
    encoders = config.repetitions * 4 * (slots + rows)
    return RUNTIME + TORCH + bytes_of_samples(facts) + 2 * WINDOW_BYTES + CHUNK_BYTES + encoders + batches + 2 * one


def _sizes() -> dict[int, int]:
    return {size: size * 10**9 for size in SIZES}
