"""What a user may say about a file of samples; everything has a default that suits most files."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from machxc.errors import SettingError

FORMATS = ("xmc", "svmlight", "jsonl", "csv", "tsv", "parquet", "store")
UNKNOWN_LABELS = ("error", "count")

Progress = Callable[[int, int | None], None]
"""Called now and then with the bytes read so far and the size of the file (None when not known)."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file of samples.

    ``format``: one of `FORMATS`; None: by the name, then by the first bytes. ``text_column`` (several are joined by a
    space), ``label_column``, ``weight_column``: names of columns (CSV, TSV, Parquet) or keys (JSONL; there a weight is
    found under "weight" by itself). ``label_separator``: what stands between the labels in one cell of a table; None:
    a cell is one label. ``label_names``: a text file whose line i names label id i (.gz and .zst too), for data with
    integer labels. ``labels_required``: False for samples to predict, which need no labels. ``encoding``: of text
    files other than xmc and svmlight. SettingError when one of them makes no sense.
    """

    format: str | None = None
    text_column: str | tuple[str, ...] = "text"
    label_column: str = "labels"
    label_separator: str | None = None
    weight_column: str | None = None
    label_names: Path | str | None = None
    labels_required: bool = True
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise SettingError(f"The 'format' option must be one of {FORMATS}. Got {self.format!r} instead.")
        if self.label_separator == "":
            raise SettingError("The 'label_separator' option must be None or at least one character. Got '' instead.")
        if not self.text_columns or "" in self.text_columns:
            raise SettingError(
                f"The 'text_column' option must name one column or several. Got {self.text_column!r} instead."
            )
        _check_encoding(self.encoding)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The names of the text columns, as a tuple."""
        return (self.text_column,) if isinstance(self.text_column, str) else tuple(self.text_column)


@dataclass(frozen=True)
class SourceFacts:
    """What was read: the file's ``name`` ("-" for standard input), ``format``, ``size`` in bytes and ``sha256``.

    Size and digest are of the bytes as they lie on the disk (compressed, where the file is).
    """

    name: str
    format: str
    size: int
    sha256: str


def _check_encoding(encoding: str) -> None:
    try:
        suits = codecs.lookup(encoding)._is_text_encoding and "a\n".encode(encoding) == b"a\n"
    except (LookupError, UnicodeError):
        suits = False
    if not suits:
        raise SettingError(
            "The 'encoding' option must be a text encoding that holds ASCII as it is, as utf-8 or latin-1. "
            f"Got {encoding!r} instead."
        )
