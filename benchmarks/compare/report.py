"""All results there are, as tables and plots: python report.py RESULTS [--docs] [--command WORDS]"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
import datasets
from methods import METHODS, NAMES

METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@10", "R@100")
COSTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "training CPU s": lambda row: number(row, "train_cpu_s", 1, ",.1f"),
    "wall s": lambda row: number(row, "train_wall_s", 1, ",.1f"),
    "features CPU s": lambda row: number(row, "prepare_cpu_s", 1, ",.1f"),
    "peak MB": lambda row: number(row, "train_peak_bytes", 1e-6, ",.0f"),
    "model MB": lambda row: number(row, "model_bytes", 1e-6, ",.1f"),
    "load ms": lambda row: number(row, "load_s", 1e3, ",.0f"),
    "s/1,000": lambda row: number(row, "predict_s_per_1000", 1, ",.3f"),
    "answering MB": lambda row: number(row, "predict_peak_bytes", 1e-6, ",.0f"),
    "one ms": lambda row: number(row, "single_ms", 1, ",.2f"),
    "load before": lambda row: number(row, "load_before", 1, ".1f"),
}
PLOTS = {
    "compare_cpu": ("train_cpu_s", 1.0, "training, CPU seconds", "P@1 against CPU seconds of training"),
    "compare_bytes": ("model_bytes", 1e-6, "model, MB", "P@1 against the size of the model"),
}
COLOURS = (
    "#cc3311", "#4477aa", "#66ccee", "#228833", "#aa3377", "#ccbb44", "#999933", "#882255", "#777777", "#000000",
    "#ee7733", "#009988",
)  # fmt: skip
MARKERS = "*osD^vPX<>ph"
FAMILIES = list(dict.fromkeys(method.family for method in METHODS))
DOCUMENT, FIGURES = common.ROOT / "docs" / "benchmarks.md", common.ROOT / "docs" / "figures"
_Rows = dict[str, list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the folder of rows: DATA/METHOD.json")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md and its figures")
    parser.add_argument("--command", default="make compare", help="what was run, to be shown")
    given = parser.parse_args()
    rows = read_rows(given.results)
    text = report(rows)
    print(text)
    if given.docs:
        shown = [drawn for name in PLOTS if (drawn := draw(name, rows, FIGURES))]
        figures = [f"![{PLOTS[path.stem][3]}](figures/{path.name})" for path in shown]
        command = given.command.replace(" --docs", "")
        write(DOCUMENT, "\n\n".join([f"    {command}", text, *figures]))


def read_rows(folder: Path) -> _Rows:
    """The rows of each data set, in the order of the methods."""
    found: _Rows = {}
    for data in datasets.NAMES:
        paths = [folder / data / f"{name}.json" for name in NAMES]
        rows = [json.loads(path.read_text()) for path in paths if path.exists()]
        if rows:
            found[data] = rows
    return found


def report(rows: _Rows) -> str:
    """All of it as Markdown."""
    return "\n\n".join([origin(rows), methods_table(rows), *(section(data, found) for data, found in rows.items())])


def origin(rows: _Rows) -> str:
    """Where and when the rows were measured."""
    flat = [row for found in rows.values() for row in found]
    machines = sorted({row["machine"] for row in flat})
    days = sorted({row["when"][:10] for row in flat})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    threads = flat[0]["threads"]
    return f"Measured {when} on {'; '.join(machines)}; {threads} threads. Limits are named where a row ran into one."


def methods_table(rows: _Rows) -> str:
    """What each method is, and the versions that were run."""
    versions: dict[str, set[str]] = {}
    for row in (row for found in rows.values() for row in found):
        shown = ", ".join(f"{name} {number}" for name, number in row.get("versions", {}).items())
        versions.setdefault(row["method"], set()).update([shown] if shown else [])
    lines = [
        (method.name, method.setting, method.reads, "; ".join(sorted(versions[method.name])))
        for method in METHODS
        if method.name in versions
    ]
    return left_table(("method", "setting", "reads", "versions"), lines)


def section(data: str, rows: Sequence[dict[str, Any]]) -> str:
    """A data set: what it is, how good the methods are, what they cost, and those that did not end well."""
    facts = rows[0]["facts"]
    kind = {"texts": "texts", "names": "names", "features": "vectors"}[facts["kind"]]
    about = (
        f"{facts['n_samples']:,} training and {facts['n_test']:,} test samples ({kind}), {facts['n_labels']:,} labels "
        f"({facts['n_train_labels'] / facts['n_train']:.2f} a sample), {facts['n_features']:,} features for peers."
    )
    quality = [[row["method"], *(number(row, name, 100, ".2f") for name in METRICS)] for row in rows if "P@1" in row]
    cost = [[row["method"], *(cell(row) for cell in COSTS.values())] for row in rows if "train_cpu_s" in row]
    parts = [f"### {data}", about]
    if quality:
        parts.append(common.table(("%", *METRICS), quality))
    if cost:
        parts.append(common.table(("cost", *COSTS), cost))
    failed = [
        f"- {row['method']}: {row['status']}: {row['why']}{computed(row)}" for row in rows if row["status"] != "ok"
    ]
    return "\n\n".join([*parts, *(["\n".join(failed)] if failed else [])])


def computed(row: dict[str, Any]) -> str:
    """The training time of what did not end, where it could be computed."""
    seconds = row.get("train_cpu_s_computed")
    return "" if seconds is None else f"; training would take {seconds:,.0f} CPU s (computed)"


def number(row: dict[str, Any], name: str, scale: float, form: str) -> str:
    """A value of a row; a dash where there is none."""
    value = row.get(name)
    return "-" if value is None else format(value * scale, form)


def left_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of words, which stand at the left."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *lines])


def write(document: Path, text: str) -> None:
    """Put the results between the marks of a document."""
    before = document.read_text(encoding="utf-8")
    marked = re.compile("<!-- begin results -->.*<!-- end results -->", re.DOTALL)
    if not marked.search(before):
        raise RuntimeError(
            f"{document} has no place for results: write <!-- begin results --><!-- end results --> there"
        )
    block = f"<!-- begin results -->\n{text}\n<!-- end results -->"
    document.write_text(marked.sub(lambda _: block, before), encoding="utf-8")


def draw(name: str, rows: _Rows, folder: Path) -> Path | None:
    """A panel for each data set, a line for each family, a point for each of its settings; None where there is none."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    column, scale, label, _ = PLOTS[name]
    points = {data: [row for row in found if row["status"] == "ok" and row.get(column)] for data, found in rows.items()}
    points = {data: found for data, found in points.items() if found}
    if not points:
        return None
    mpl.use("svg")
    mpl.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "machxc", "font.size": 9, "font.sans-serif": ["DejaVu Sans"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    })  # fmt: skip
    across = min(3, len(points))
    down = math.ceil(len(points) / across)
    drawn = Figure(figsize=(3.4 * across, 2.8 * down + 0.9), layout="constrained", facecolor="white")
    axes = drawn.subplots(down, across, squeeze=False).ravel()
    legend: dict[str, Any] = {}
    for panel, (data, found) in zip(axes, points.items(), strict=False):
        for family, (x, y) in curves(found, column, scale).items():
            i = FAMILIES.index(family)
            (legend[family],) = panel.plot(x, y, color=COLOURS[i], marker=MARKERS[i], markersize=6, linewidth=1)
        panel.set_title(data, fontsize=9)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel(label)
        panel.set_ylabel("P@1, %")
    for panel in axes[len(points) :]:
        panel.set_axis_off()
    shown = [family for family in FAMILIES if family in legend]
    handles = [legend[family] for family in shown]
    drawn.legend(handles, shown, loc="outside lower center", ncols=min(5, len(shown)), frameon=False, fontsize=8)
    path = folder / f"{name}.svg"
    drawn.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def curves(rows: Sequence[dict[str, Any]], column: str, scale: float) -> dict[str, tuple[list[float], list[float]]]:
    """For each family the coordinates of its points, from the cheapest on."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row["family"], []).append((row[column] * scale, 100 * row["P@1"]))
    return {
        family: ([x for x, _ in sorted(points)], [y for _, y in sorted(points)]) for family, points in found.items()
    }


if __name__ == "__main__":
    main()
