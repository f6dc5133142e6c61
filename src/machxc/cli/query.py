"""``machxc query``: ask a model for the labels of texts. The twin of `machxc.prediction.answer`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterator
from typing import Any, BinaryIO

from machxc.cli import arguments as common
from machxc.cli import console as show
from machxc.cli.console import Console
from machxc.cli.kernels import ANSWERING, tell_of_compiling
from machxc.errors import DataError, SettingError

_CHUNK = 1 << 16  # bytes of standard input that are answered at a time


def add(verbs: _SubParsersAction[Any]) -> ArgumentParser:
    """Add the verb."""
    parser = common.new_verb(
        verbs,
        "query MODEL [TEXT ... | -]",
        run,
        "ask for the labels of a text",
        "Print the best labels of each TEXT with their scores. With - (or with no TEXT, from a pipe) every line of "
        "standard input is a text, answered as it comes.",
        "interrupted",
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, trained on texts")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text; - for the lines of standard input")
    common.add_top_k(parser)
    common.add_device(parser)
    common.add_jobs(parser)
    parser.add_argument(
        "--json", action="store_true", help='an object a text: {"text": ..., "labels": [...], "scores": [...]}'
    )
    return parser


def run(arguments: Namespace, console: Console) -> None:
    """Answer all texts."""
    from_input = arguments.texts == ["-"] or not arguments.texts
    if not arguments.texts and (sys.stdin is None or sys.stdin.isatty()):
        raise SettingError("query needs a text: give one, or - to type them line by line")
    from machxc.model import Model
    from machxc.prediction import check_takes_texts

    model = Model.load(arguments.model, device=arguments.device)
    check_takes_texts(model)
    tell_of_compiling(console, ANSWERING)
    answers = _Answers(arguments, console, model, several=from_input or len(arguments.texts) > 1)
    if not from_input:
        answers.print(arguments.texts)
        return
    for lines in _lines_as_they_come(sys.stdin.buffer):
        answers.print(lines)
        console.flush()


class _Answers:
    """Answers texts and prints that."""

    def __init__(self, arguments: Namespace, console: Console, model: Any, *, several: bool) -> None:
        self._arguments, self._console, self._model, self._several = arguments, console, model, several
        self._candidates = common.candidates(arguments, model.names)
        self._separator = ""

    def print(self, texts: list[str]) -> None:
        """Answer some texts."""
        from machxc.prediction import answer, named

        _check_unicode(texts)
        arguments = self._arguments
        ids, scores = answer(
            self._model,
            texts,
            k=arguments.top_k,
            candidates=self._candidates,
            estimator=arguments.estimator,
            jobs=arguments.jobs,
        )
        for text, (labels, values) in zip(texts, named(self._model.names, ids, scores), strict=True):
            if arguments.json:
                self._console.json({"text": text, "labels": labels, "scores": values})
            else:
                self._console.out(self._shown(text, labels, values))

    def _shown(self, text: str, labels: list[Any], scores: list[float]) -> str:
        lines = [f"{score:10.4f}  {show.printable(str(name))}" for name, score in zip(labels, scores, strict=True)]
        if self._several:
            lines.insert(0, self._separator + show.printable(text))
            self._separator = "\n"
        return "\n".join(lines) if lines else "(no labels)"


def _check_unicode(texts: list[str]) -> None:
    for i, text in enumerate(texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"text {i} is not valid Unicode: {text[:60]!r}; give it in the terminal's encoding"
            ) from None


def _lines_as_they_come(stream: BinaryIO) -> Iterator[list[str]]:
    """The lines of a stream: at any time all that are there, so that an answer need not wait for the next question."""
    first, rest = 1, b""
    while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield [_decoded(line, number) for number, line in enumerate(lines, first)]
            first += len(lines)
    if rest:
        yield [_decoded(rest, first)]


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 text ({error.reason}); convert it to UTF-8", path="standard input", line=number
        ) from None
