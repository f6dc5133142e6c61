"""``machxc train``: learn from a file of samples, write a model folder. The twin of `machxc.run.train_run`."""

from __future__ import annotations

import shlex
import time
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.ahead import Ahead, compiling_ahead
from machxc.cli.console import Console
from machxc.cli.evaluate import metrics_table
from machxc.cli.kernels import TRAINING, tell_of_compiling
from machxc.cli.places import add_places, execution, view
from machxc.errors import SettingError

if TYPE_CHECKING:
    from machxc.config import Settings, TextConfig
    from machxc.data import ReadOptions
    from machxc.model import Model
    from machxc.plan import Plan


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "train DATA --output MODEL",
        run,
        "learn from a file of samples",
        "Learn from a file of samples and write a model folder. Settings that are not given choose themselves, and are "
        "printed with the reason for each. Stopped on the way, the same command goes on from the repetitions that are "
        "finished, and from the checkpoints of the others. More repetitions than MODEL has are added to it.",
        "interrupted: finished repetitions and checkpoints are kept; the same command goes on from there",
    )
    parser.add_argument("data", metavar="DATA", help=common.DATA)
    parser.add_argument("--output", metavar="MODEL", required=True, help="the model folder to write")
    parser.add_argument("--test", metavar="FILE", help="samples to evaluate the model on, at the end")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run, and never discard it; a model that is complete is fine, too",
    )
    common.add_overwrite(parser, "replace a model that exists, and discard an interrupted run of another command")
    common.add_json(parser)
    common.add_settings(parser)
    add_places(parser)
    common.add_text(parser)
    common.add_reading(parser)
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Train, and say what came out."""
    settings, text, options = common.settings(arguments), common.text_config(arguments), common.read_options(arguments)
    if arguments.data == "-":
        arguments.when_interrupted = "interrupted: standard input cannot be read again; start anew with --overwrite"
    cold = tell_of_compiling(console, TRAINING)
    _check_shard(arguments)
    with compiling_ahead(cold and arguments.device == "cpu") as ahead:
        ahead.compile_for(arguments.data, options, settings)
        _check_test(arguments, options)
        talk, begin = _PlanTalk(console, ahead), time.perf_counter()
        model = _train(arguments, settings, options, text, console, talk)
        ahead.wait()
    arguments.when_interrupted = "interrupted: the model is complete"
    if model is None:
        _tell_of_shard(arguments, console)
        return
    result = {
        "model": arguments.output,
        "bytes": show.folder_size(arguments.output),
        "seconds": round(time.perf_counter() - begin, 3),
        **talk.result,
    }
    console.note(_done(result, model))
    if arguments.test is not None:
        result["test"] = _test(arguments, options, model, console)
    if arguments.json:
        console.json(result)


def _train(
    arguments: Namespace,
    settings: Settings,
    options: ReadOptions,
    text: TextConfig | None,
    console: Console,
    on_plan: Callable[[Plan, str], None],
) -> Model | None:
    from machxc.run import train_run, train_shard

    data, output, place, on_status = arguments.data, arguments.output, execution(arguments), view(arguments, console)
    with console.progress("reading", "B") as reading, console.progress("training", " samples") as training:
        common_to_both: Any = {
            "options": options,
            "text": text,
            "jobs": arguments.jobs,
            "memory_budget": arguments.memory,
            "on_plan": on_plan,
            "progress": training if on_status is None else None,
            "reading": reading,
            "on_status": on_status,
        }
        if place.shard is not None:
            return train_shard(data, output, place, settings, **common_to_both)
        again: Any = {"overwrite": arguments.overwrite, "resume": arguments.resume}
        return train_run(data, output, settings, execution=place, **again, **common_to_both)


def _tell_of_shard(arguments: Namespace, console: Console) -> None:
    """What a shard says that is not the last."""
    from machxc.runs.status import status_of

    status = status_of(arguments.run_folder or arguments.output)
    if arguments.json:
        console.json({"model": None, "shard": list(arguments.shard), "status": status.to_dict()})
    i, n = arguments.shard
    console.note(
        f"shard {i}/{n} is done: {status.count('done')} of {len(status.repetitions)} repetitions are finished. The "
        "last shard puts the model together, or the same command without --shard"
    )


class _PlanTalk:
    """Tells the plan when it is made, and keeps it. Answering with such a model is compiled meanwhile."""

    def __init__(self, console: Console, ahead: Ahead) -> None:
        self._console, self._ahead = console, ahead
        self.result: dict[str, Any] = {}

    def __call__(self, plan: Plan, text_reason: str) -> None:
        self.result = {"plan": plan.to_dict(), "text_reason": text_reason}
        self._console.note(show.plan(plan, text_reason))
        self._ahead.compile("answer", config=plan.config.to_dict())


def _check_shard(arguments: Namespace) -> None:
    if arguments.shard is not None and (arguments.overwrite or arguments.test is not None or arguments.data == "-"):
        raise SettingError(
            "--shard goes with neither --overwrite nor --test nor standard input: what one shard does must fit what "
            "all others do. Remove an older model first, and evaluate the new one with machxc evaluate"
        )


def _check_test(arguments: Namespace, options: ReadOptions) -> None:
    """What is wrong with the test samples is said before training, not hours later."""
    from machxc.evaluation import check_samples

    if arguments.test == "-":
        raise SettingError("--test cannot be standard input, which is read once only; give a file")
    if arguments.test is not None:
        check_samples(arguments.test, options)


def _test(arguments: Namespace, options: ReadOptions, model: Model, console: Console) -> dict[str, float]:
    from machxc.evaluation import evaluate

    here = model if arguments.executor == "ray" else model.to(arguments.device)  # a cluster's devices are elsewhere
    with console.progress("evaluating", "B") as progress:
        metrics = evaluate(
            here, arguments.test, options=options, unknown_labels="count", jobs=arguments.jobs, progress=progress
        )
    if not arguments.json:
        console.out(metrics_table(metrics))
    return metrics


def _done(result: dict[str, Any], model: Model) -> str:
    path = shlex.quote(result["model"])
    if model.config.text is None:
        following = f"machxc predict {path} DATA --output predictions.jsonl"
    else:
        following = f'machxc query {path} "some text"'
    return show.facts(
        {
            "model": f"{result['model']}, {show.size(result['bytes'])}, after {show.duration(result['seconds'])}",
            "next": following,
        }
    )
