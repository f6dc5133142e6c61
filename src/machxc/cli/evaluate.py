"""``machxc evaluate``: the metrics of a model on labelled samples. The twin of `machxc.evaluation.evaluate`."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console
from machxc.cli.kernels import ANSWERING, tell_of_compiling

METRICS = ("P", "R", "nDCG", "PSP")
KS, PROPENSITY_A, PROPENSITY_B = (1, 3, 5, 10, 100), 0.55, 1.5  # as in metrics.py, without its imports


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "evaluate MODEL DATA",
        run,
        "how good a model is on labelled samples",
        "Rank the labels of every sample and print precision, recall, nDCG and propensity-scored precision at k, in "
        "percent: their standard definitions; P@k is divided by k. With --json: in [0, 1].",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder")
    parser.add_argument("data", metavar="DATA", help=common.DATA)
    ks = ",".join(map(str, KS))
    parser.add_argument("--k", type=common.positives, metavar="K,...", default=KS, help=f"the depths (default: {ks})")
    parser.add_argument("--predictions", metavar="FILE", help="write the rankings, too: as `machxc predict --output`")
    common.add_overwrite(parser)
    parser.add_argument(
        "--unknown-labels",
        choices=("error", "count"),
        help="what labels are that the model does not have: an error, or counted as missed "
        "(default: an error if label names are strings)",
    )
    for name, default in (("a", PROPENSITY_A), ("b", PROPENSITY_B)):
        help = f"parameter {name.upper()} of the propensities (default: {default})"
        parser.add_argument(f"--propensity-{name}", type=float, metavar=name.upper(), default=default, help=help)
    common.add_estimator(parser)
    common.add_device(parser)
    common.add_jobs(parser)
    common.add_json(parser)
    common.add_reading(parser)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Evaluate and print the metrics."""
    options = common.read_options(arguments)
    from machxc.evaluation import evaluate
    from machxc.model import Model

    tell_of_compiling(console, ANSWERING)
    model, begin = Model.load(arguments.model, device=arguments.device), time.perf_counter()
    with console.progress("evaluating", "B") as progress:
        metrics = evaluate(
            model,
            arguments.data,
            options=options,
            ks=arguments.k,
            a=arguments.propensity_a,
            b=arguments.propensity_b,
            unknown_labels=arguments.unknown_labels,
            estimator=arguments.estimator,
            jobs=arguments.jobs,
            predictions=arguments.predictions,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    if arguments.json:
        console.json(metrics)
    else:
        console.out(metrics_table(metrics))
        console.note(f"in {show.duration(time.perf_counter() - begin)}")


def metrics_table(metrics: dict[str, float]) -> str:
    """The metrics in percent: a line a depth."""
    ks = sorted({int(name.partition("@")[2]) for name in metrics if "@" in name})
    rows = [["k", *(f"{metric}@k" for metric in METRICS)]]
    for k in ks:
        rows.append([str(k), *(f"{100 * metrics[f'{metric}@{k}']:.2f}" for metric in METRICS)])
    unknown = metrics["unknown_labels"]
    missed = f"; missed are also {show.count(unknown, 'label')} that the model does not have" if unknown else ""
    return f"{show.table(rows)}\n\n{show.count(metrics['n_samples'], 'sample')}, metrics in percent{missed}"
