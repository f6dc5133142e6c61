"""The bytes of a file of samples: from a path or standard input, decompressed, hashed on the way, cut at line ends."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import itertools
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import zstandard

from machxc.data.options import Progress, SourceFacts
from machxc.errors import DataError
from machxc.packed import Strings, joined

BLOCK = 1 << 22  # bytes of text that are parsed at a time
MAX_LINE = 1 << 28  # a longer line is a file that is not what it says it is
_ZSTD_INPUT = 1 << 13  # compressed bytes at a time: bounds what one step can blow up to
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


class ChangedError(DataError):
    """The data before a mark are not what they were when it was made."""


@dataclass(frozen=True)
class Mark:
    """How far a reader has come in a file: enough to go on from there in another process.

    ``blocks`` of decompressed bytes that were read, their ``sha256``, how many bytes at their end are still to be
    parsed (``rest``), the number of the ``line`` that these begin, and what the format's reader keeps (``state``).
    """

    blocks: int
    sha256: str
    rest: int = 0
    line: int = 1
    state: dict[str, Any] = field(default_factory=dict)


class Source:
    """A file to be read once, from begin to end. Use it as a context manager.

    ``path``: "-" is standard input. ``progress`` is called with the bytes read and the file's size. DataError when the
    file cannot be opened, is empty, or is damaged gzip or zstd data.
    """

    def __init__(self, path: Path | str, progress: Progress | None = None) -> None:
        self.path = str(path)
        self.name = "standard input" if self.path == "-" else self.path
        self._raw = _RawFile(_open(self.path, self.name), self.name, progress)
        self._fingerprint = self._raw.fingerprint()
        self._buffer = io.BufferedReader(self._raw, 1 << 20)
        try:
            self._compression = self._find_compression()
            if self._compression is None:
                self._raw.digest = None  # that of the blocks is the same
            self._blocks, self._n_blocks = self._decompressed(), 0
            self._digest = hashlib.sha256()
            self._head = next(self._blocks, b"")
            if not self._head:
                raise self.error("is empty; expected samples")
        except BaseException:
            self._buffer.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._buffer.close()

    @property
    def head(self) -> bytes:
        """The first decompressed bytes (up to a block of them), which stay to be read."""
        return self._head

    @property
    def is_file(self) -> bool:
        """Whether the path leads to a file: who reads a pipe, or standard input, may wait for ever."""
        return self.path != "-" and os.path.isfile(self.path)

    @property
    def is_plain_file(self) -> bool:
        """Whether the path leads to the very bytes that `blocks` yields."""
        return self._compression is None and self.is_file

    def blocks(self, mark: Mark | None = None) -> Iterator[bytes]:
        """The decompressed bytes, in blocks: all of them, or what was not parsed yet at a mark.

        What comes before the mark is read and hashed, which is many times faster than to parse it, and tells whether
        it is what it was. DataError when it is not, and at the end, when the file was written to meanwhile.
        """
        blocks = self._hashed()
        if mark is not None:
            yield self._skip(mark, blocks)
        yield from blocks
        self.check_unchanged()

    def mark(self, rest: int = 0, line: int = 1, **state: Any) -> Mark:
        """A mark after the blocks that were read."""
        return Mark(self._n_blocks, self._digest.copy().hexdigest(), rest, line, state)

    def facts(self, format: str) -> SourceFacts:
        """Name, size and digest; the file must have been read to its end."""
        name = "-" if self.path == "-" else Path(self.path).name
        digest = self._digest if self._raw.digest is None else self._raw.digest
        return SourceFacts(name, format, self._raw.done, digest.hexdigest())

    def error(self, message: str, line: int | None = None) -> DataError:
        """A DataError about this file."""
        return DataError(message, path=self.name, line=line)

    def _hashed(self) -> Iterator[bytes]:
        for block in itertools.chain([self._head], self._blocks):
            self._digest.update(block)
            self._n_blocks += 1
            yield block

    def _skip(self, mark: Mark, blocks: Iterator[bytes]) -> bytes:
        """Read up to a mark; returns what was not parsed yet of that."""
        rest = b""
        for block in itertools.islice(blocks, mark.blocks):
            rest = (rest + block)[-mark.rest :] if mark.rest else b""
        if self.mark().sha256 != mark.sha256 or len(rest) != mark.rest:
            raise ChangedError("is not the data that was read before: they were changed since", path=self.name)
        return rest

    def check_unchanged(self) -> None:
        """DataError when the file was written to since it was opened."""
        if self._raw.fingerprint() != self._fingerprint:
            raise self.error("was changed while it was read; read it again when nothing writes to it")

    def _find_compression(self) -> str | None:
        first = self._buffer.peek(4)
        found = next((name for magic, name in _MAGIC.items() if first.startswith(magic)), None)
        told = _SUFFIXES.get(Path(self.path).suffix.lower())
        if first and told and found != told:
            raise self.error(f"is not {told} data although its name says so; rename or compress it")
        return found

    def _decompressed(self) -> Iterator[bytes]:
        if self._compression == "gzip":
            return self._checked(_gzip_blocks(self._buffer))
        if self._compression == "zstd":
            return self._checked(_zstd_blocks(self._buffer))
        return _plain_blocks(self._buffer.read)

    def _checked(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from blocks
        except EOFError:
            raise self.error(f"ends in the middle of its {self._compression} data; copy or compress it again") from None
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise self.error(f"is damaged {self._compression} data ({error}); copy or compress it again") from None


def line_blocks(source: Source, mark: Mark | None = None) -> Iterator[tuple[int, bytes, int]]:
    """Blocks of whole lines after a mark; a byte order mark is left out.

    With each the number of its first line (from 1), and how many bytes of the line that follows were read.
    """
    if source.head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise source.error("is UTF-16 text; expected UTF-8: convert it, for example with iconv", 1)
    line, rest, held = 1 if mark is None else mark.line, [source.head[:0]], 0
    for i, given in enumerate(source.blocks(mark)):
        block = given.removeprefix(codecs.BOM_UTF8) if i == 0 and mark is None else given
        cut = block.rfind(b"\n") + 1
        if cut:
            whole = b"".join([*rest, block[:cut]])
            yield line, whole, len(block) - cut
            line += n_lines(whole)
            rest, held = [], 0
        rest.append(block[cut:])
        held += len(block) - cut
        if held > MAX_LINE:
            raise source.error(f"the line is longer than {MAX_LINE >> 20} MB; expected one sample a line", line)
    if last := b"".join(rest):
        yield line, last, 0


def n_lines(block: bytes) -> int:
    """How many line feeds a block has: where lines are short, in an eighth of the time of ``block.count``."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == 10))


def utf8(source: Source, block: bytes, line: int, encoding: str) -> bytes:
    """A block that begins at ``line``, in UTF-8; DataError with the line that is not valid in its encoding."""
    try:
        if encoding == "utf-8":
            if not block.isascii():
                block.decode()
            return block
        return block.decode(encoding).encode()
    except UnicodeDecodeError as error:
        bad = block[error.start : error.start + 1]
        raise source.error(
            f"expected {encoding} text, got the byte 0x{bad.hex()}; convert the file, or give its encoding",
            line + block.count(b"\n", 0, error.start),
        ) from None


def packed_lines(path: Path | str) -> Strings:
    """The lines of a UTF-8 text file (.gz and .zst too), without their ends: its bytes once, and some numbers a line.

    DataError as for any source.
    """
    return joined(list(lines_of(path)) or [Strings.of([])])


def lines_of(path: Path | str) -> Iterator[Strings]:
    """`packed_lines`, a block of the file at a time."""
    with Source(path) as source:
        for line, block, _ in line_blocks(source):
            yield _lines_of_block(utf8(source, block, line, "utf-8"))


def _lines_of_block(block: bytes) -> Strings:
    """The lines of a block without their ends."""
    data = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    ends = np.flatnonzero(data == 10)
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1))
    returns = (ends > starts) & (data[np.maximum(ends - 1, 0)] == 13)
    kept = np.ones(len(data), bool)
    kept[ends] = False
    kept[ends[returns] - 1] = False
    return Strings(data[kept], np.concatenate((np.zeros(1, np.int64), np.cumsum(ends - starts - returns))))


class _RawFile(io.RawIOBase):
    """A raw file that remembers how much was read of it, and the digest of that."""

    def __init__(self, file: IO[bytes], name: str, progress: Progress | None) -> None:
        self.done = 0
        self.digest: Any = hashlib.sha256()  # None: nobody asks for it
        self._file, self._name, self._progress = file, name, progress
        self._total = _size(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", path=self._name) from None
        buffer[: len(data)] = data
        if self.digest is not None:
            self.digest.update(data)
        self.done += len(data)
        if self._progress is not None:
            self._progress(self.done, self._total)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._name != "standard input":
            self._file.close()
        super().close()

    def fingerprint(self) -> tuple[int, int] | None:
        """What changes when somebody writes to the file; None for what is no file."""
        status = _status(self._file)
        return None if status is None or not stat.S_ISREG(status.st_mode) else (status.st_size, status.st_mtime_ns)


def _open(path: str, name: str) -> IO[bytes]:
    if path == "-":
        return sys.stdin.buffer
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise DataError("no such file; check the path", path=name) from None
    except IsADirectoryError:
        raise DataError("is a folder, but not a converted store; expected a file of samples", path=name) from None
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", path=name) from None


def _size(file: IO[bytes]) -> int | None:
    status = _status(file)
    return None if status is None else status.st_size or None


def _status(file: IO[bytes]) -> os.stat_result | None:
    try:
        return os.fstat(file.fileno())
    except (OSError, ValueError, AttributeError):  # no file behind it, as in tests
        return None


def _plain_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while block := read(BLOCK):
        yield block


def _gzip_blocks(file: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unzipped:
        yield from _plain_blocks(unzipped.read)


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame: the library's own stream reader takes a truncated file for a complete one."""
    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    begun, parts, size = False, list[bytes](), 0
    while data := file.read(_ZSTD_INPUT):
        while data:
            part = frame.decompress(data)
            data, begun = (frame.unused_data, False) if frame.eof else (b"", True)
            if frame.eof:
                frame = decompressor.decompressobj()
            parts.append(part)
            size += len(part)
        if size >= BLOCK:
            yield b"".join(parts)
            parts, size = [], 0
    if begun:
        raise EOFError
    if size:
        yield b"".join(parts)
