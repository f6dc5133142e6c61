"""Settings that choose themselves, and what they will cost: known before training, with the reason for each.

The rules follow from counts of the data alone, never from the machine: the same samples get the same settings, and so
the same bytes, everywhere. A memory budget is the user's own word, and may shrink what was left to choose.
docs/algorithm.md has the measurements behind the rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from machxc.config import MOST_BUCKETS, Config, Settings, TextConfig
from machxc.cost import Cost, cost_of
from machxc.errors import DataError, MemoryBudgetError, SettingError
from machxc.facts import Facts
from machxc.torch.cost import SIZES, DeviceCost, device_cost
from machxc.torch.device import TORCH_CPU
from machxc.units import duration, size

MOST_LINEAR_BUCKETS = 1 << 16  # of a linear model that is learnt step by step: it computes them all
_FEW_FEATURES, _MANY_SAMPLES = 10_000, 8  # up to so many features, with so many samples for each: linear underfits
_FEW_SAMPLES = 50_000  # below, more repetitions, which cost little, and with some losses a lower learning rate
_MANY_MORE_SAMPLES = 1_000_000  # from here on, fewer
_FEW_PER_LABEL = 3.0  # samples a label: below, every token counts
_ONE_TO_ONE = 256  # labels: up to here each gets a bucket of its own
_FEW_LABELS = 1000  # up to here, where labels share buckets, small weights of many repetitions are hardly missed
_LEAST_BUCKETS = 250  # that labels share
_COUNTED_ONE_TO_ONE = 1 << 20  # and up to here where weights are counted: rows have entries for what they met only
_FEW_BITS, _MOST_BITS, _MOST_COUNTED_BITS = 8, 20, 22
# weights are counted, not learnt, where there are so many labels, with so few samples each, and so few a sample
_MANY_LABELS, _COUNTED_PER_LABEL, _COUNTED_LABELS = 10_000, 20.0, 2.0
_FEW_SAMPLED = 16  # buckets to each that is sampled, from which on softmax learns more of a draw
LEFT_OUT = 20_000  # samples, at most: more are hardly worth their time
ASSOCIATIONS = 50_000  # samples, at most
# what only learning by gradient has
_OF_GRADIENT = (
    "hidden", "normalisation", "hidden_dropout", "negatives", "loss", "epochs", "learning_rate", "dropout",
    "validation_fraction", "patience",
)  # fmt: skip


# and what counting leaves nothing to choose of: it takes no steps, every token counts, its weights have the background
_COUNTED = {
    "loss": "softmax", "hidden": 0, "epochs": 1, "learning_rate": 1.0, "prune": 0.0, "min_count": 1,
    "sublinear_tf": False, "idf": False, "normalisation": "none", "hidden_dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The settings, the reason for each that chose itself (by name), what they cost, and the repetitions at a time.

    ``threads``: how many may work on each of these; ``on_device``: what training on a device would take (None: the
    kernels train).
    """

    config: Config
    reasons: dict[str, str]
    facts: Facts
    cost: Cost
    jobs: int
    threads: int = 1
    on_device: DeviceCost | None = None

    @property
    def training_bytes(self) -> int:
        """Peak resident memory of training, ``jobs`` repetitions at a time, data included."""
        return self.cost.training(self.jobs, self.threads)

    @property
    def model_bytes(self) -> int:
        """The model folder on disk, without label names."""
        return self.cost.model

    @property
    def serving_bytes(self) -> int:
        """Resident memory of answering queries one by one, all of the model touched."""
        return self.cost.serving

    @property
    def cpu_seconds(self) -> float:
        """Processor time of training, all repetitions together, on a core like those the rates were measured on."""
        return self.cost.cpu_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "config": self.config.to_dict(),
            "reasons": dict(self.reasons),
            "facts": dataclasses.asdict(self.facts),
            "jobs": self.jobs,
            "threads": self.threads,
            "training_bytes": self.training_bytes,
            "model_bytes": self.model_bytes,
            "serving_bytes": self.serving_bytes,
            "cpu_seconds": round(self.cpu_seconds, 1),
            **({} if self.on_device is None else {"device": self.on_device.to_dict()}),
        }

    def describe(self) -> str:
        """The plan as lines to read: data, settings with reasons, cost."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        f = self.facts
        labels = f.n_pairs / max(1, f.n_samples)
        yield f"{'data':<20}{f.n_samples:,} samples, {f.n_seen:,} labels, {f.n_distinct:,} distinct features"
        yield f"{'':<20}{labels:.2f} labels and {f.per_sample:.1f} features a sample"
        for name, value in self.config.to_dict().items():
            if name in self.reasons:
                shown = f"{value:g}" if isinstance(value, float) else str(value).strip("()")
                yield f"{name:<20}{shown:<17} {self.reasons[name]}"
        if self.on_device is None:
            threads = f", {self.threads} threads each" if self.threads > 1 else ""
            at_a_time = f"{self.jobs} repetitions at a time{threads}"
            yield f"{'training':<20}{size(self.training_bytes):<17} of memory, {at_a_time}"
            yield f"{'':<20}{duration(self.cpu_seconds):<17} of processor time, about"
        else:
            yield from self._device_lines(self.on_device)
        yield f"{'model':<20}{size(self.model_bytes):<17} on disk, about; {size(self.serving_bytes)} to serve"

    def _device_lines(self, cost: DeviceCost) -> Iterator[str]:
        memory = f"of {cost.device} for a repetition, and {size(cost.step)} more for a step by {cost.batch:,} samples"
        yield f"{'training':<20}{size(cost.weights):<17} {memory}"
        yield f"{'':<20}{size(cost.host):<17} of this machine's memory"
        yield f"{'':<20}{'not measured':<17} how long: speed on devices is in no plan yet"
        if cost.device != TORCH_CPU:
            fitting = ", ".join(f"{memory} GB: {cost.together(memory * 10**9)}" for memory in SIZES)
            yield f"{'':<20}{f'of {cost.n_repetitions} together':<17} {fitting}"


def make_plan(
    facts: Facts,
    settings: Settings,
    *,
    text: TextConfig | None,
    jobs: int = 1,
    memory_budget: int | None = None,
    in_memory: bool = False,
    device: str = "cpu",
) -> Plan:
    """Choose every setting that is None, and say what training and serving will take.

    ``memory_budget``: bytes that training may take. What does not fit runs fewer repetitions at a time, then takes
    fewer feature slots, then fewer buckets, as far as these were left to choose; MemoryBudgetError with the nearest
    that fits otherwise. ``in_memory``: repetitions that are trained stay in memory, else they wait on the disk.
    ``device``: what is to train, for which the plan says what it takes; it changes no setting. DataError when there is
    nothing to learn from.
    """
    if facts.n_samples == 0 or facts.n_seen == 0:
        raise DataError(f"there is nothing to learn: {facts.n_samples} samples with {facts.n_seen} labels between them")
    chooser = _Chooser(facts, settings, text, in_memory=in_memory)
    chooser.run()
    plan = chooser.plan(max(1, jobs))
    if memory_budget is not None and plan.training_bytes > memory_budget:
        plan = _within(chooser, plan, memory_budget)
    return dataclasses.replace(plan, on_device=device_cost(plan.config, facts, device))


def within_machine(plan: Plan, memory: int) -> Plan:
    """The plan with as many repetitions at a time as fit ``memory`` bytes; MemoryBudgetError when not one does.

    For a run without a memory budget: how many run side by side changes no byte of the model, settings would.
    """
    fitting = _side_by_side(plan, memory)
    if fitting is not None:
        return fitting
    raise MemoryBudgetError(
        f"training would take {size(plan.cost.training(1), up=True)}, one repetition at a time, and this machine has "
        f"{size(memory)}. Give a memory budget of at most that, so that what was left to choose is chosen to fit, or "
        "lower 'buckets', 'feature_bits' or 'hidden'."
    )


class _Chooser:
    """The rules, one a method; a later one may look at what an earlier one chose."""

    def __init__(self, facts: Facts, settings: Settings, text: TextConfig | None, *, in_memory: bool) -> None:
        self.facts, self.text, self.in_memory = facts, text, in_memory
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self.given = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}

    def run(self) -> None:
        """Take what was given, choose the rest, in an order in which reasons build on each other."""
        for name in (
            "learner", "hidden", "normalisation", "buckets", "repetitions", "negatives", "loss", "epochs",
            "learning_rate", "dropout", "hidden_dropout",
            "smoothing", "left_out", "associations", "prune", "min_count", "feature_bits", "sublinear_tf", "idf", "l2",
            "estimator", "validation_fraction", "patience", "seed",
        ):  # fmt: skip
            if name in self.given:
                self.values[name] = self.given[name]
                if name != "seed":
                    self.reasons[name] = "as asked"
            else:
                fixed = name in _COUNTED and self.counted()
                value, reason = (_COUNTED[name], "") if fixed else getattr(self, f"_{name}")()
                self.values[name] = value
                if reason:
                    self.reasons[name] = reason
        self._check()

    def config(self) -> Config:
        """All of it."""
        f = self.facts
        return Config(n_labels=f.n_labels, n_features=f.n_features, text=self.text, **self.values)

    def plan(self, jobs: int) -> Plan:
        """All of it, with its cost."""
        config = self.config()
        at_a_time = min(jobs, config.repetitions)
        threads = jobs // at_a_time if self.counted() else 1
        cost = cost_of(config, self.facts, in_memory=self.in_memory)
        return Plan(config, dict(self.reasons), self.facts, cost, at_a_time, threads)

    def _check(self) -> None:
        if self.counted():
            self._check_counted()
            return
        if self.values["hidden"] == 0 and self.values["negatives"] > 0:
            raise SettingError("'negatives' needs a hidden layer: the linear model computes all buckets. Set 'hidden'.")
        for name in ("normalisation", "hidden_dropout"):
            if self.values["hidden"] == 0 and self.values[name] not in (0, "none"):
                raise SettingError(f"'{name}' needs a hidden layer: a linear model has no hidden units. Set 'hidden'.")
        if self.values["hidden"] == 0 and self.values["buckets"] > MOST_LINEAR_BUCKETS:
            raise SettingError(
                f"The 'buckets' parameter of a linear model must be an int in [1, {MOST_LINEAR_BUCKETS}]. "
                f"Got {self.values['buckets']} instead; set 'hidden' for more."
            )

    def _check_counted(self) -> None:
        given = [name for name in _OF_GRADIENT if name != "loss" and self.given.get(name, 0) not in (0, "none")]
        if given:
            raise SettingError(f"'{given[0]}' needs learner='gradient': counting takes no steps. Got learner='counts'.")
        if self.values["loss"] != "softmax":
            raise SettingError("learner='counts' needs loss='softmax': a bucket's share of all. Got loss='bce'.")
        if self.values["buckets"] > MOST_BUCKETS:
            raise SettingError(
                f"The 'buckets' parameter of counted weights must be an int in [1, {MOST_BUCKETS}]. "
                f"Got {self.values['buckets']} instead."
            )
        if not self.facts.counts:
            raise SettingError("learner='counts' needs features that are counts; these have other values, or negative.")

    def counted(self) -> bool:
        """Whether weights are counted, not learnt step by step."""
        return bool(self.values["learner"] == "counts")

    def _learner(self) -> tuple[str, str]:
        f = self.facts
        labels = f.n_pairs / f.n_samples
        rare = f.n_seen >= _MANY_LABELS and f.per_label < _COUNTED_PER_LABEL and labels < _COUNTED_LABELS
        if not rare or not f.counts or any(name in self.given for name in _OF_GRADIENT):
            return "gradient", ""
        return "counts", f"{f.n_seen:,} labels with {f.per_label:.1f} samples each: too few to take steps on"

    def _loss(self) -> tuple[str, str]:
        f, negatives = self.facts, self.values["negatives"]
        if f.most_labels <= 1:
            return "softmax", "every sample has one label"
        if 0 < _FEW_SAMPLED * negatives <= self.values["buckets"]:
            return "softmax", f"of {self.values['buckets']:,} buckets {negatives} are sampled: each for many"
        return "bce", f"samples have up to {f.most_labels} labels"

    def _hidden(self) -> tuple[int, str]:
        f = self.facts
        if self.given.get("negatives", 0) > 0 or self.given.get("buckets", 0) > MOST_LINEAR_BUCKETS:
            return 128, "a linear model computes all buckets, and has fewer of them"
        if self.given.get("normalisation", "none") != "none" or self.given.get("hidden_dropout", 0) > 0:
            return 128, "what is asked for needs hidden units"
        ratio = f.n_samples / max(1, f.n_distinct)
        if f.n_distinct <= _FEW_FEATURES and ratio >= _MANY_SAMPLES:
            return 128, f"{ratio:.0f} samples for each of {f.n_distinct:,} features: more than a linear model can use"
        return 0, f"linear: {f.n_distinct:,} distinct features, {ratio:.1f} samples for each"

    def _normalisation(self) -> tuple[str, str]:
        deep = not isinstance(self.values["hidden"], int)
        return ("layer", "several hidden layers") if deep else ("none", "")

    def one_to_one(self) -> bool:
        """Whether there is a bucket for each label."""
        return bool(self.values["buckets"] >= 1 << (self.facts.n_labels - 1).bit_length())

    def _buckets(self) -> tuple[int, str]:
        k = self.facts.n_labels
        if self.counted():
            return min(_COUNTED_ONE_TO_ONE, 1 << (k - 1).bit_length()), f"{k:,} labels: rows hold what was met only"
        if k <= _ONE_TO_ONE:
            return 1 << max(1, (k - 1).bit_length()), f"{k} labels: one to one, no label shares a bucket"
        root = math.sqrt(k)
        buckets = min(8192, max(_LEAST_BUCKETS, round(min(3 * root, max(500, root)) / 10) * 10))
        return buckets, f"{k:,} labels, {k / buckets:.0f} of them a bucket"

    def _repetitions(self) -> tuple[int, str]:
        if self.counted():
            return (1, "no label shares a bucket") if self.one_to_one() else (3, "labels share buckets")
        if self.facts.n_labels <= _ONE_TO_ONE:
            return 4, "nothing shares a bucket; a few repetitions steady the scores"
        n = self.facts.n_samples
        few = 16 if self.values["hidden"] else 24 if self.facts.n_labels <= _FEW_LABELS else 32
        return few if n < _FEW_SAMPLES else 16 if n < _MANY_MORE_SAMPLES else 8, f"{n:,} samples"

    def _negatives(self) -> tuple[int, str]:
        return 0, ""

    def _epochs(self) -> tuple[int, str]:
        n = self.facts.n_samples
        least, steps = (3, 20_000) if self.values["hidden"] == 0 else (8 if n < 200_000 else 3, 60_000)
        return min(50, max(least, math.ceil(steps / n))), f"{n:,} samples"

    def _learning_rate(self) -> tuple[float, str]:
        many = self.facts.n_samples >= _FEW_SAMPLES
        size = "many samples" if many else "few samples"
        if self.values["normalisation"] != "none":
            return 0.3, "normalised hidden units"
        if self.values["hidden"]:
            return 1.0, "hidden layer"
        if self.values["loss"] == "softmax":
            return 20.0 if many else 10.0, f"linear, softmax, {size}"
        if self.one_to_one() and not many:
            return 3.0, f"linear, binary cross-entropy, {size}, a bucket for each label"
        return 5.0, "linear, binary cross-entropy"

    def _dropout(self) -> tuple[float, str]:
        return 0.0, ""

    def _hidden_dropout(self) -> tuple[float, str]:
        return 0.0, ""

    def _smoothing(self) -> tuple[float, str]:
        return 1.0, "background samples a bucket" if self.counted() else ""

    def _left_out(self) -> tuple[int, str]:
        return (LEFT_OUT, "samples show, left out of their bucket, what features say") if self.counted() else (0, "")

    def _associations(self) -> tuple[int, str]:
        if not self.counted():
            return 0, ""
        if not self.one_to_one():
            return 0, "labels share buckets: what goes with what in one tells little of each"
        return ASSOCIATIONS, "samples show which features go together"

    def _prune(self) -> tuple[float, str]:
        if self.values["hidden"]:
            return 0.0, ""
        if self.one_to_one():
            return 0.3, "a bucket for each label: many small weights tell which is next"
        few = self.facts.n_labels <= _FEW_LABELS
        return 0.7 if few else 0.5, "weights nearer to 0 change no ranking"

    def _min_count(self) -> tuple[int, str]:
        f = self.facts
        if not f.text or f.per_label < _FEW_PER_LABEL or f.n_samples < 2000:
            return 1, ""
        if self.text is not None and self.text.words > 1 and not self.text.chars_max:
            return 3, "a word pair of one or two samples tells little of others"
        return 2, "a token of one sample only tells nothing of others"

    def _feature_bits(self) -> tuple[int, str]:
        f = self.facts
        most = _MOST_COUNTED_BITS if self.counted() else _MOST_BITS
        if f.n_features <= 1 << most:
            return max(1, (f.n_features - 1).bit_length()), f"{f.n_features:,} features: a slot for each"
        few = f.n_samples < _FEW_SAMPLES and f.n_labels <= _FEW_LABELS and not self.counted()
        room = 1 if few else 2  # a feature that collides in one repetition hardly does in the many others
        wanted = max(1, room * f.rows(self.values["min_count"]))
        bits = min(most, max(_FEW_BITS, (wanted - 1).bit_length()))
        return bits, f"{2**bits:,} slots for {f.rows(self.values['min_count']):,} features"

    def _sublinear_tf(self) -> tuple[bool, str]:
        return self.facts.text, "counts of tokens" if self.facts.text else ""

    def _idf(self) -> tuple[bool, str]:
        f = self.facts
        if not f.counts:
            return False, "values are measurements or weights, not counts"
        if self.values["hidden"] and not f.text:
            return False, "the hidden layer learns which features matter"
        if self.text is not None and self.text.chars_max:
            return False, "rare character n-grams are mostly chance"
        return True, "values are counts"

    def _l2(self) -> tuple[bool, str]:
        return (False, "dense values: columns are scaled instead") if self.facts.dense else (True, "sparse features")

    def _estimator(self) -> tuple[str, str]:
        return "log-probability", ""

    def _validation_fraction(self) -> tuple[float, str]:
        return 0.0, ""

    def _patience(self) -> tuple[int, str]:
        return 2, ""

    def _seed(self) -> tuple[int, str]:
        return 0, ""


def _within(chooser: _Chooser, plan: Plan, budget: int) -> Plan:
    """Shrink what may be shrunk until it fits."""
    asked = plan.training_bytes
    fitting = _side_by_side(plan, budget)
    if fitting is not None:
        return fitting
    for name, least in (("feature_bits", 12), ("buckets", 32)):
        while name not in chooser.given and chooser.values[name] > least and _shrinks(chooser, name):
            chooser.values[name] = max(
                least, chooser.values[name] - 1 if name == "feature_bits" else chooser.values[name] * 3 // 4
            )
            chooser.reasons[name] = f"what fits the memory budget of {size(budget)}"
            smaller = chooser.plan(1)
            if smaller.training_bytes <= budget:
                return smaller
    least_plan = chooser.plan(1)
    raise MemoryBudgetError(
        f"training would take {size(asked)}, the memory budget is {size(budget)}. The least that these data and "
        f"settings can do with is {size(least_plan.training_bytes, up=True)}: one repetition at a time, "
        f"feature_bits={least_plan.config.feature_bits}, buckets={least_plan.config.buckets}. "
        "Raise the budget, or lower 'buckets', 'feature_bits' or 'hidden'."
    )


def _side_by_side(plan: Plan, memory: int) -> Plan | None:
    """The plan with as many repetitions at a time, and threads, as fit ``memory`` bytes; None: not even one does."""
    for jobs, threads in [(plan.jobs, plan.threads), *((jobs, 1) for jobs in range(plan.jobs, 0, -1))]:
        if plan.cost.training(jobs, threads) <= memory:
            return dataclasses.replace(plan, jobs=jobs, threads=threads)
    return None


def _shrinks(chooser: _Chooser, name: str) -> bool:
    """Whether fewer of these take less memory: buckets do not where weights are counted, rows hold what was met."""
    if name == "buckets":
        return not chooser.counted()
    return chooser.facts.n_features > 1 << _FEW_BITS
