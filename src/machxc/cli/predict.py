"""``machxc predict``: rank the labels of every sample of a file. The twin of `machxc.prediction.predict`."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace, _SubParsersAction
from typing import Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console
from machxc.cli.kernels import ANSWERING, tell_of_compiling


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "predict MODEL DATA --output FILE",
        run,
        "rank the labels of every sample of a file",
        "Rank the labels of every sample of DATA, whose own labels are not looked at, and write names and scores, best "
        'first. A .jsonl file has a line {"labels": [...], "scores": [...]} a sample, a .parquet file columns of the '
        "same names; an .npz file has the arrays idx (label ids, int64 [n, K], -1 where there is none) and scores and, "
        "where label i is not just named i, label_ids and label_names. With --budget or --deadline each sample "
        "also has proven: whether no other label can be better. Memory does not grow with DATA.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder")
    parser.add_argument("data", metavar="DATA", help=common.DATA)
    parser.add_argument("--output", metavar="FILE", required=True, help="a .jsonl, .parquet or .npz file to write")
    common.add_overwrite(parser)
    common.add_top_k(parser)
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument(
        "--budget",
        type=common.positive,
        metavar="N",
        help="stop at so many members of buckets, and tell what is proven",
    )
    bound.add_argument(
        "--deadline", type=common.milliseconds, metavar="MS", help="the same, in about so many milliseconds a query"
    )
    common.add_device(parser)
    common.add_jobs(parser)
    common.add_json(parser)
    common.add_reading(parser, labels=False)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Predict, and say how many samples there were."""
    options = common.read_options(arguments)
    from machxc.model import Model
    from machxc.prediction import predict

    tell_of_compiling(console, ANSWERING)
    model, begin = Model.load(arguments.model, device=arguments.device), time.perf_counter()
    candidates = common.candidates(arguments, model.names)
    with console.progress("predicting", "B") as progress:
        n_samples = predict(
            model,
            arguments.data,
            arguments.output,
            k=arguments.top_k,
            options=options,
            candidates=candidates,
            estimator=arguments.estimator,
            budget=arguments.budget,
            deadline=arguments.deadline,
            jobs=arguments.jobs,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    seconds = time.perf_counter() - begin
    if arguments.json:
        console.json({"output": arguments.output, "n_samples": n_samples, "seconds": round(seconds, 3)})
    else:
        console.note(f"{arguments.output}: {show.count(n_samples, 'sample')} in {show.duration(seconds)}")
