"""Which format a file has, by its name or its first bytes; and the reader of each."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from machxc.data.options import ReadOptions
from machxc.data.raw import RawBatch
from machxc.data.source import Mark, Source

_SUFFIXES = {
    ".xmc": "xmc",
    ".svm": "svmlight",
    ".svmlight": "svmlight",
    ".libsvm": "svmlight",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_XMC = re.compile(rb"[ \t]*\d+[ \t]+\d+[ \t]+\d+[ \t\r]*\n")
_SVMLIGHT = re.compile(rb"(?:[ \t]*(?:#[^\n]*|\r)?\n)*[ \t]*(?:[+-]?\d+(?:,[+-]?\d+)*[ \t]+)?\d+:[-+.\d]")


def raw_batches(source: Source, options: ReadOptions, mark: Mark | None = None) -> Iterator[RawBatch]:
    """The samples of a file in its format (see `find_format`), from a mark on."""
    format = find_format(source, options)
    if format == "xmc":
        from machxc.data.xmc import read_xmc as reader
    elif format == "svmlight":
        from machxc.data.xmc import read_svmlight as reader
    elif format == "jsonl":
        from machxc.data.jsonl import read_jsonl as reader
    elif format == "csv":
        from machxc.data.tables import read_csv as reader
    elif format == "tsv":
        from machxc.data.tables import read_tsv as reader
    elif format == "parquet":
        from machxc.data.parquet import read_parquet as reader
    else:
        raise source.error("is a file; expected the folder of a converted store")
    return reader(source, options, mark)


def find_format(source: Source, options: ReadOptions) -> str:
    """The format the options say, or the one of the file's name (without .gz or .zst), or of its first bytes."""
    if options.format is not None:
        return options.format
    suffixes = [suffix.lower() for suffix in Path(source.path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    by_name = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    found = by_name or _by_content(source.head.removeprefix(codecs.BOM_UTF8), options)
    if found is None:
        first = source.head[:60].split(b"\n")[0].decode("utf-8", "replace")
        raise source.error(
            f"the format is not clear from the name or from the first line, {first!r}; "
            "say which it is: xmc, svmlight, jsonl, csv, tsv or parquet",
            1,
        )
    return found


def _by_content(head: bytes, options: ReadOptions) -> str | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip().startswith(b"{"):
        return "jsonl"
    if _XMC.match(head):
        return "xmc"
    if _SVMLIGHT.match(head):
        return "svmlight"
    header = head.split(b"\n", 1)[0].decode(options.encoding, "replace").rstrip("\r")
    for format, delimiter in (("tsv", "\t"), ("csv", ",")):
        if {name.strip('"') for name in header.split(delimiter)} & set(options.text_columns):
            return format
    return None
