"""Queries of the made-up catalogue, with the products they are for, as a file of samples in any format.

    python benchmarks/sample_files.py NAME FILE LABELS MEGABYTES [SAMPLES]

Prints the file's size after decompression (of Parquet: the bytes of its columns in memory).
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from machxc.catalogue import Catalogue
from machxc.config import TextConfig
from machxc.features.text import token_features

Rows = Iterator[tuple[list[str], list[list[int]]]]


def rows(catalogue: Catalogue, samples: int) -> Rows:
    for texts, labels in catalogue.batches(samples):
        ends = labels.indptr.tolist()
        ids = labels.indices.tolist()
        yield texts, [ids[start:stop] for start, stop in itertools.pairwise(ends)]


def jsonl_ids(catalogue: Catalogue, samples: int) -> Iterator[bytes]:
    for texts, labels in rows(catalogue, samples):
        pairs = zip(texts, labels, strict=True)
        yield "".join(json.dumps({"text": text, "labels": ids}) + "\n" for text, ids in pairs).encode()


def jsonl_names(catalogue: Catalogue, samples: int) -> Iterator[bytes]:
    for texts, labels in rows(catalogue, samples):
        names = iter(catalogue.name([id_ for ids in labels for id_ in ids]))
        pairs = [(text, [next(names) for _ in ids]) for text, ids in zip(texts, labels, strict=True)]
        yield "".join(json.dumps({"text": text, "labels": names}) + "\n" for text, names in pairs).encode()


def csv(catalogue: Catalogue, samples: int) -> Iterator[bytes]:
    yield b"text,labels\n"
    for texts, labels in rows(catalogue, samples):
        pairs = zip(texts, labels, strict=True)
        yield "".join(f"{text},{'|'.join(map(str, ids))}\n" for text, ids in pairs).encode()


def xmc(catalogue: Catalogue, samples: int) -> Iterator[bytes]:
    yield f"{samples} {2**32} {catalogue.n_labels}\n".encode()
    for texts, labels in rows(catalogue, samples):
        features = token_features(texts, TextConfig(words=1))
        ends, tokens = features.indptr.tolist(), [f"{id_}:1.5" for id_ in features.indices.tolist()]
        lines = (" ".join([",".join(map(str, ids)), *tokens[ends[i] : ends[i + 1]]]) for i, ids in enumerate(labels))
        yield "".join(line + "\n" for line in lines).encode()


def write_parquet(path: Path, catalogue: Catalogue, samples: int) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("text", pa.string()), ("labels", pa.list_(pa.int64()))])
    size = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for texts, labels in rows(catalogue, samples):
            table = pa.table([pa.array(texts), pa.array(labels, pa.list_(pa.int64()))], schema)
            size += table.nbytes
            writer.write_table(table)
    return size


# content by chunks (Parquet has none), and about how many bytes a sample has
FORMATS: dict[str, tuple[Callable[[Catalogue, int], Iterator[bytes]] | None, int]] = {
    "jsonl": (jsonl_ids, 58),
    "names": (jsonl_names, 150),
    "csv": (csv, 33),
    "xmc": (xmc, 60),
    "parquet": (None, 50),
}


def _write(path: Path, parts: Iterator[bytes]) -> int:
    size = 0
    with _opened(path) as file:
        for part in parts:
            file.write(part)
            size += len(part)
    return size


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 6)
    return zstandard.open(path, "wb") if path.suffix == ".zst" else path.open("wb")


def main() -> None:
    name, file, labels, megabytes, *exactly = sys.argv[1:]
    content, per_sample = FORMATS[name]
    catalogue, samples = Catalogue(int(labels)), max(1, int(megabytes) * 10**6 // per_sample)
    samples = int(exactly[0]) if exactly else samples
    path = Path(file)
    print(write_parquet(path, catalogue, samples) if content is None else _write(path, content(catalogue, samples)))


if __name__ == "__main__":
    main()
