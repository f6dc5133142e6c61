"""Names of millions of labels: bytes a name, time of a lookup, and the memory that lookups take.

    python benchmarks/label_names.py [--labels 5000000] [--files]

Names of the made-up catalogue (`machxc.testing.Catalogue`), sorted, in blocks as stores and models have them; beside
it the same names one after the other with offsets, as they were stored before. Lookups are of names, and of ids, drawn
at random, one at a time, in a process that has only mapped the files.

``--files``: instead, what `machxc convert --label-names` takes, of the names in the order of the catalogue and sorted,
for one sample; the row of a hundred names shows what the process takes by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import common
from machxc.errors import DataError
from machxc.front_coding import encode
from machxc.labels import LabelNames
from machxc.maps import map_array
from machxc.packed import Strings, joined, sorted_order, take
from machxc.testing import Catalogue

LOOKUPS = 2000
CHUNK = 1 << 20
FORMS = {"blocks": {"coded": np.uint8, "blocks": np.uint64}, "offsets": {"bytes": np.uint8, "offsets": np.uint64}}


def write(n_labels: int, folder: Path) -> None:
    """Both forms of the names, a file for each array."""
    catalogue, parts = Catalogue(n_labels), []
    for start in range(0, n_labels, CHUNK):
        parts.append(Strings.of(catalogue.name(np.arange(start, min(start + CHUNK, n_labels)))))
    given = joined(parts)
    names = take(given, sorted_order(given, np.arange(n_labels)))
    coded, blocks = encode(names)
    offsets = names.offsets.astype(np.uint64)
    arrays: dict[str, Any] = {"coded": coded, "blocks": blocks, "bytes": names.bytes, "offsets": offsets}
    for name, array in arrays.items():
        array.tofile(folder / name)


def looked_up(n_labels: int, folder: Path, form: str) -> dict[str, float]:
    """Microseconds of a lookup each way, and the MB that all of them took."""
    arrays = {name: map_array(folder / name, dtype, DataError) for name, dtype in FORMS[form].items()}
    names = LabelNames.from_arrays("strings", n_labels, arrays, verify=False)
    ids = np.random.default_rng(0).integers(0, n_labels, LOOKUPS)
    known = LabelNames.strings(["a", "b"])
    known.ids_of(known.names([0, 1]))  # kernels are compiled, or loaded
    before = resident()
    listed, of_ids = timed(lambda i: names.names(ids[i : i + 1])[0])
    found, of_names = timed(lambda i: int(names.ids_of([listed[i]])[0]))
    assert found == ids.tolist()
    return {"id to name, us": of_ids, "name to id, us": of_names, "MB, resident": (resident() - before) / 1e6}


def timed(ask: Callable[[int], Any]) -> tuple[list[Any], float]:
    """The answers, and the median in microseconds."""
    answers, times = [], []
    for i in range(LOOKUPS):
        start = time.perf_counter()
        answers.append(ask(i))
        times.append(time.perf_counter() - start)
    return answers, float(np.median(times)) * 1e6


def resident() -> int:
    """Bytes of this process that are in memory, those of mapped files with them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def name_files(n_labels: int, folder: Path) -> None:
    """Text files of names: few, all, and all of them sorted."""
    given = Catalogue(n_labels).name
    with open(folder / "as they come", "w") as file:
        for start in range(0, n_labels, CHUNK):
            file.writelines(f"{name}\n" for name in given(np.arange(start, min(start + CHUNK, n_labels))))
    lines = (folder / "as they come").read_text().splitlines()
    (folder / "few").write_text("".join(f"{name}\n" for name in lines[:100]))
    (folder / "sorted").write_text("".join(f"{name}\n" for name in sorted(lines)))
    (folder / "data.jsonl").write_text(json.dumps({"text": "one sample", "labels": [5]}) + "\n")


def converted(folder: Path) -> None:
    """A row for each file."""
    rows = []
    for name in ("few", "as they come", "sorted"):
        convert = [sys.executable, "-m", "machxc.cli", "convert", str(folder / "data.jsonl"), str(folder / "store")]
        ran = common.run([*convert, "--label-names", str(folder / name), "--overwrite", "--json"])
        size = (folder / name).stat().st_size / 1e6
        stored = json.loads(ran.output)["bytes"] / 1e6
        rows.append([name, *(f"{number:,.0f}" for number in (size, ran.cpu_seconds, ran.peak_bytes / 1e6, stored))])
    print(common.table(["names", "MB of lines", "CPU s", "MB peak", "MB of store"], rows))


def main() -> None:
    """Print the machine and the table; or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=5_000_000)
    parser.add_argument("--files", action="store_true", help="what converting with a file of names takes")
    parser.add_argument("--worker", choices=["write", "files", *FORMS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "write":
        write(arguments.labels, arguments.folder)
    elif arguments.worker == "files":
        name_files(arguments.labels, arguments.folder)
    elif arguments.worker:
        print(json.dumps(looked_up(arguments.labels, arguments.folder, arguments.worker)))
    else:
        print(f"{common.header()}\n{arguments.labels:,} names\n")
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments.labels, Path(folder), files=arguments.files)


def compare(n_labels: int, folder: Path, *, files: bool) -> None:
    """A row for each form, or for each file."""
    command = [sys.executable, __file__, f"--labels={n_labels}", "--folder", str(folder), "--worker"]
    if files:
        common.run([*command, "files"])
        converted(folder)
        return
    common.run([*command, "write"])
    rows, head = [], ["names in", "bytes a name"]
    for form, arrays in FORMS.items():
        size = sum((folder / name).stat().st_size for name in arrays)
        found = json.loads(common.run([*command, form]).output)
        rows.append([form, f"{size / n_labels:.1f}", *(f"{value:.1f}" for value in found.values())])
    print(common.table([*head, *found], rows))


if __name__ == "__main__":
    main()
