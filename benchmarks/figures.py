"""The figures and the tables about B, R and memory in docs/algorithm.md, from quick runs: minutes, one core.

    python benchmarks/figures.py [--docs] [--datasets NAME ...]

Repetitions know nothing of each other: R of them are trained once for each B, and the first 1, 2, 4, ... of them are
what fewer repetitions would have given. Settings other than B are those that choose themselves. A linear repetition is
trained without pruning and pruned afterwards, which gives the same as training with it. Draws SVG files into
docs/figures/, with all numbers in figures.json beside them; --docs puts the tables into docs/algorithm.md.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import common
import datasets
from machxc.config import ESTIMATORS, Config, Settings, TextConfig
from machxc.data import Dataset, read
from machxc.facts import Facts, facts_of
from machxc.metrics import precision_at_k
from machxc.partition import HashPartition
from machxc.plan import make_plan
from machxc.repetition.bfloat import to_bfloat
from machxc.repetition.encode import encoder_of
from machxc.repetition.loop import train_repetition
from machxc.repetition.scorer import scorer_of
from machxc.repetition.stored import pack, unpack
from machxc.retrieval import top_k
from machxc.samples import Float32

FOLDER = common.ROOT / "docs" / "figures"
MOST_TESTS = 3000
PRUNES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")
MARKERS = "osD^vP"
_Tensors = dict[str, npt.NDArray[Any]]
_Found = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A data set, and the buckets to try, each with so many repetitions; ``middle``: where all else is varied."""

    name: str
    buckets: dict[int, int]
    middle: int
    samples: int | None = None

    @property
    def title(self) -> str:
        """The name of the panel."""
        return self.name if self.samples is None else f"{self.name}, {self.samples:,} samples"


SWEEPS = (
    Sweep("cooking_se", {25: 32, 50: 32, 100: 32, 200: 16, 1024: 4}, 100),
    Sweep("delicious", {25: 32, 50: 32, 100: 32, 200: 16, 1024: 4}, 100),
    Sweep("yso_finna_en", {125: 16, 250: 16, 500: 16, 1000: 8}, 500, samples=100_000),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [sweep.name for sweep in SWEEPS]
    parser.add_argument("--datasets", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/algorithm.md")
    arguments = parser.parse_args()
    print(common.header(), end="\n\n", flush=True)
    results = {}
    for sweep in SWEEPS:
        if sweep.name in arguments.datasets:
            try:
                results[sweep.title] = {"middle": sweep.middle, "points": run(sweep, datasets.files(sweep.name))}
            except datasets.AbsentError as absent:
                print(f"left out: {absent}", flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    facts = {"versions": common.header().splitlines()[0], "command": common.command_line(), "results": results}
    (FOLDER / "figures.json").write_text(json.dumps(facts, indent=1) + "\n")
    draw(results)
    tell(results, write=arguments.docs)


# the runs


def run(sweep: Sweep, files: datasets.Files) -> list[_Found]:
    """All points of a data set: precision by B, R, estimator and pruning."""
    train = read(files.train)
    if sweep.samples is not None:
        train = train.rows(0, sweep.samples)
    known: _Found = {"text": train.text} if train.text else {"n_features": train.samples.features.n_features}
    test = read(files.test, names=train.names, unknown_labels="count", **known)
    test = test.rows(0, min(MOST_TESTS, len(test)))
    facts = facts_of(train.samples, text=train.text is not None)
    points = []
    for buckets, repetitions in sweep.buckets.items():
        settings = Settings(buckets=buckets, repetitions=repetitions)
        config = make_plan(facts, settings, text=train.text).config
        start = time.process_time()
        points += list(measure(config, train, test, everything=buckets == sweep.middle))
        print(f"{sweep.title}, B={buckets}: {time.process_time() - start:.0f} s of CPU", flush=True)
    return points


def measure(config: Config, train: Dataset, test: Dataset, *, everything: bool) -> Iterator[_Found]:
    """Train R repetitions of one B and see what the first 1, 2, 4, ... of them answer.

    ``everything``: with each way of pruning, too, and, as they are pruned by default, with each estimator.
    """
    prunes = sorted({*PRUNES, config.prune}) if everything and not config.hidden else [config.prune]
    sketches, sizes = sketch(config, train, test, prunes)
    seen = train.samples.labels.counts() > 0
    for prune in prunes:
        for estimator in ESTIMATORS if everything and prune == config.prune else [config.estimator]:
            for n in numbers(config.repetitions):
                partition = HashPartition(config.n_labels, config.buckets, n, config.seed)
                logits = np.ascontiguousarray(sketches[prune][:, :n])
                ids, _ = top_k(logits, partition, 5, loss=config.loss, estimator=estimator, seen=seen)
                yield {
                    "buckets": config.buckets, "repetitions": n, "prune": prune, "estimator": estimator,
                    "hidden": config.hidden, "default": (prune, estimator) == (config.prune, config.estimator),
                    "bytes": sum(sizes[prune][:n]) + 4 * config.n_labels,
                    "P@1": precision_at_k(ids, test.samples.labels, 1),
                    "P@5": precision_at_k(ids, test.samples.labels, 5),
                }  # fmt: skip


def sketch(
    config: Config, train: Dataset, test: Dataset, prunes: list[float]
) -> tuple[dict[float, Float32], dict[float, list[int]]]:
    """The test samples' sketches [n, R, B] and the bytes of each repetition, for each way of pruning.

    Only one repetition is in memory at a time.
    """
    shape = (len(test), config.repetitions, config.buckets)
    sketches = {prune: np.empty(shape, np.float32) for prune in prunes}
    sizes: dict[float, list[int]] = {prune: [] for prune in prunes}
    partition = HashPartition(config.n_labels, config.buckets, config.repetitions, config.seed)
    for r in range(config.repetitions):
        tensors = train_repetition(train.samples, replace(config, prune=prunes[0]), partition, r)
        rows = encoder_of(config, r, tensors)(test.samples.features)
        for prune in prunes:
            tensors = tensors if config.hidden else pruned(tensors, prune)
            scorer_of(config, tensors).logits(rows, sketches[prune][:, r])
            sizes[prune].append(sum(tensor.nbytes for tensor in tensors.values()))
    return sketches, sizes


def pruned(tensors: _Tensors, prune: float) -> _Tensors:
    """A linear repetition without the weights that are nearer to 0."""
    starts, buckets, weights = unpack(tensors)
    kept = np.abs(weights) > prune
    before = np.concatenate([[0], np.cumsum(kept)])
    rest = {name: array for name, array in tensors.items() if name not in ("present", "codes", "lengths", "entries")}
    return {**rest, **pack(before[starts], buckets[kept], to_bfloat(weights[kept]), len(tensors["bias"]))}


def numbers(most: int) -> list[int]:
    """1, 2, 4, ... repetitions."""
    return [1 << i for i in range(most.bit_length()) if 1 << i <= most]


def variance(n_labels: int = 10_000, draws: int = 2048) -> list[list[str]]:
    """One repetition's unbiased estimate over so many hashes: mean and variance beside the formula, as table rows.

    The bucket probabilities are the true ones, so that nothing but the hashing varies. Labels' are Zipf's, p ~ 1 / n;
    what is shown is the mean over labels of similar rank.
    """
    p = 1.0 / np.arange(1, n_labels + 1)
    p /= p.sum()
    rows = []
    for buckets in (10, 100, 1000):
        partition = HashPartition(n_labels, buckets, draws, 0)
        estimates = np.empty((draws, 1000))
        for r in range(draws):
            bucket = partition.buckets(np.arange(n_labels), r)
            shared = np.bincount(bucket, p, buckets)[bucket[:1000]]
            estimates[r] = (shared - 1 / buckets) * buckets / (buckets - 1)
        formula = (np.square(p).sum() - np.square(p[:1000])) / (buckets - 1)
        moments = (p[:1000], estimates.mean(axis=0), formula, estimates.var(axis=0))
        for first, last in ((0, 10), (10, 100), (100, 1000)):
            means = (moment[first:last].mean() for moment in moments)
            rows.append([str(buckets), f"{first + 1} to {last}", *(f"{mean:.2e}" for mean in means)])
    return rows


def millions() -> list[list[str]]:
    """Plans for very many labels: short texts, ten samples a label, a feature of its own in every fifth sample."""
    rows = []
    for n_labels in (100_000, 1_000_000, 10_000_000):
        n = 10 * n_labels
        facts = Facts(
            n_samples=n, n_labels=n_labels, n_seen=n_labels, n_pairs=2 * n, most_labels=20, n_features=2**32,
            n_values=20 * n, n_distinct=n // 5, n_repeated=n // 10, n_frequent=n // 15, counts=True, dense=False,
            text=True,
        )  # fmt: skip
        for settings in (Settings(), Settings(buckets=1000), Settings(buckets=10_000, hidden=256, negatives=200)):
            plan = make_plan(facts, settings, text=TextConfig(words=1))
            c = plan.config
            kind = f"hidden {c.hidden}, {c.negatives} sampled" if c.hidden else "linear"
            how = f"R={c.repetitions} B={c.buckets:,} {kind}" + (" (default)" if settings == Settings() else "")
            costs = (plan.training_bytes / 1e9, plan.model_bytes / 1e9, plan.cpu_seconds / 3600)
            rows.append([f"{n_labels:,}", how, *(f"{cost:,.1f}" for cost in costs)])
    return rows


# what comes of them


def draw(results: dict[str, _Found]) -> None:
    """The three figures."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "machxc", "font.size": 9, "font.sans-serif": ["DejaVu Sans"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
        "legend.frameon": False, "legend.fontsize": 8,
    })  # fmt: skip
    figure("repetitions", results, ("repetitions R", "P@1, %"), repetition_lines, shown=25)
    figure("memory", results, ("model, MB", "P@1, %"), memory_lines, shown=10)
    figure("estimators", results, ("repetitions R", "P@5, %"), estimator_lines, shown=12)


def figure(name: str, results: dict[str, _Found], axes_names: tuple[str, str], lines: Any, shown: float) -> None:
    """A panel for each data set, a curve for each of its lines: (label, x, y). ``shown``: y this far below the best."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    drawn = Figure(figsize=(3.4 * len(results), 3.0), layout="constrained", facecolor="white")
    axes = drawn.subplots(1, len(results), squeeze=False)[0]
    for panel, (title, found) in zip(axes, results.items(), strict=True):
        best = 0.0
        for i, (label, x, y) in enumerate(lines(found)):
            colour = "#333333" if label.endswith("pruned") else COLOURS[i % 6]
            panel.plot(x, y, label=label, color=colour, marker=MARKERS[i % 6], markersize=4, linewidth=1.2)
            best = max(best, *y)
        panel.set_title(title, fontsize=9)
        panel.set_xscale("log", base=2 if axes_names[0].endswith("R") else 10)
        if not axes_names[0].endswith("R"):
            panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_ylim(best - shown, best + shown / 20)
        panel.set_xlabel(axes_names[0])
        panel.legend(loc="lower right")
    axes[0].set_ylabel(axes_names[1])
    path = FOLDER / f"{name}.svg"
    drawn.savefig(path, metadata={"Date": None, "Creator": None})
    drawing = re.sub(r"\s*\n\s*", "\n", path.read_text())
    drawing = re.sub(r' transform="rotate\(-0 [^"]*"', "", drawing)
    path.write_text(re.sub(r"(\.\d\d)\d+", r"\1", drawing))  # a hundredth of a point is close enough


def select(found: _Found, **wanted: Any) -> list[_Found]:
    """The points with these values."""
    return [point for point in found["points"] if all(point[key] == value for key, value in wanted.items())]


def line(points: list[_Found], x: str, y: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """The coordinates of points; precision in percent."""
    return [point[x] * scale for point in points], [100 * point[y] for point in points]


def all_buckets(found: _Found) -> list[int]:
    """The numbers of buckets, rising."""
    return sorted({point["buckets"] for point in found["points"]})


def repetition_lines(found: _Found) -> Iterator[tuple[str, list[float], list[float]]]:
    """P@1 against R, a line for each B."""
    for buckets in all_buckets(found):
        yield f"B = {buckets}", *line(select(found, buckets=buckets, default=True), "repetitions", "P@1")


def memory_lines(found: _Found) -> Iterator[tuple[str, list[float], list[float]]]:
    """P@1 against bytes: R varied, a line for each B, and pruning varied at one of them."""
    for buckets in all_buckets(found):
        yield f"B = {buckets}", *line(select(found, buckets=buckets, default=True), "bytes", "P@1", 1e-6)
    points = pruning_points(found)
    if len(points) > 1:
        first = points[0]
        label = f"B = {first['buckets']}, R = {first['repetitions']}, pruned"
        yield label, *line(points, "bytes", "P@1", 1e-6)


def pruning_points(found: _Found) -> list[_Found]:
    """The points of the middle B with 16 repetitions and the default estimator, by pruning."""
    (default,) = select(found, buckets=found["middle"], repetitions=16, default=True)
    wanted = {name: default[name] for name in ("buckets", "repetitions", "estimator")}
    return select(found, **wanted)


def estimator_lines(found: _Found) -> Iterator[tuple[str, list[float], list[float]]]:
    """P@5 against R at the middle B; the unbiased estimate ranks as the mean does."""
    prune = select(found, default=True, buckets=found["middle"])[0]["prune"]
    for estimator in ESTIMATORS:
        if estimator != "unbiased":
            points = select(found, estimator=estimator, buckets=found["middle"], prune=prune)
            yield estimator, *line(points, "repetitions", "P@5")


def tell(results: dict[str, _Found], *, write: bool) -> None:
    """The tables."""
    repetitions = ("data", "B", *(f"R = {n}" for n in numbers(32)), "MB at most R")
    common.report("repetitions", common.table(repetitions, list(repetition_rows(results))), write=write)
    prunings = ("data", "B, R", "pruned below", "MB", "P@1", "P@5")
    common.report("pruning", common.table(prunings, list(pruning_rows(results))), write=write)
    columns = ("data", "R", *ESTIMATORS)
    common.report("estimators", common.table(columns, list(estimator_rows(results))), write=write)
    moments = ("B", "labels ranked", "p", "mean of estimates", "variance by formula", "variance of estimates")
    common.report("variance", common.table(moments, variance()), write=write)
    plans = ("labels", "model", "training GB", "model GB", "CPU hours")
    common.report("millions", common.table(plans, millions()), write=write)


def repetition_rows(results: dict[str, _Found]) -> Iterator[list[str]]:
    """P@1 by B and R."""
    for title, found in results.items():
        for buckets in all_buckets(found):
            points = select(found, buckets=buckets, default=True)
            cells = {point["repetitions"]: f"{100 * point['P@1']:.1f}" for point in points}
            shown = [cells.get(n, "") for n in numbers(32)]
            yield [title, str(buckets), *shown, f"{points[-1]['bytes'] / 1e6:,.1f}"]


def pruning_rows(results: dict[str, _Found]) -> Iterator[list[str]]:
    """Size and precision by pruning."""
    for title, found in results.items():
        for point in pruning_points(found) if len(pruning_points(found)) > 1 else []:
            sizes = [f"{point['prune']:g}", f"{point['bytes'] / 1e6:,.1f}"]
            metrics = [f"{100 * point[name]:.1f}" for name in ("P@1", "P@5")]
            yield [title, f"{point['buckets']}, {point['repetitions']}", *sizes, *metrics]


def estimator_rows(results: dict[str, _Found]) -> Iterator[list[str]]:
    """P@1 and P@5 by estimator, with few repetitions and with many."""
    for title, found in results.items():
        prune = select(found, default=True, buckets=found["middle"])[0]["prune"]
        for n in (4, 16):
            cells = []
            for estimator in ESTIMATORS:
                wanted = {"estimator": estimator, "buckets": found["middle"], "prune": prune, "repetitions": n}
                (point,) = select(found, **wanted)
                cells.append(f"{100 * point['P@1']:.1f} / {100 * point['P@5']:.1f}")
            yield [f"{title}, B = {found['middle']}", str(n), *cells]


if __name__ == "__main__":
    main()
