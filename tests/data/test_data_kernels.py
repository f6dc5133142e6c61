"""The kernels that read JSON and tables take what Python's own modules take, and nothing else."""

from __future__ import annotations

import csv
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.data.cells import OK, WRONG_COUNT, column, split_labels, split_rows
from machxc.data.jsonl_kernel import INTEGERS, NO_LABELS, STRINGS, Parsed, parse_lines
from machxc.packed import Strings

quick = settings(deadline=None, max_examples=200)
KEYS = (b"text", b"labels", b"weight")
BLANKS = st.text(st.sampled_from(" \t\r"), max_size=2)
TEXTS = st.text(max_size=8).map(lambda text: text.encode("utf-8", "ignore").decode())
OTHERS = TEXTS | st.integers(-99, 99) | st.booleans() | st.none() | st.sampled_from([0.5, -2.25])


def parsed(block: str, *, labels: bool = False, weight: bool = False) -> Parsed | None:
    return parse_lines(block.encode(), KEYS, needs_labels=labels, needs_weight=weight)


def records_of(found: Parsed) -> list[tuple[int, str, list[Any], float]]:
    texts = Strings(found.texts, found.text_offsets).tolist()
    values = Strings(found.strings, found.string_offsets) if found.kind == STRINGS else found.integers
    ends, listed = found.label_indptr.tolist(), values.tolist()
    labels = [listed[start:stop] for start, stop in itertools.pairwise(ends)]
    return list(zip(found.lines.tolist(), texts, labels, found.weights.tolist(), strict=True))


def spaced(data: st.DataObject, record: dict[str, Any], ascii_only: bool) -> str:
    """An object with blanks between its parts."""

    def blank() -> str:
        return data.draw(BLANKS)

    def written(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ",".join(f"{blank()}{written(item)}{blank()}" for item in value) + "]"
        return json.dumps(value, ensure_ascii=ascii_only)

    items = (f"{blank()}{written(key)}{blank()}:{blank()}{written(value)}{blank()}" for key, value in record.items())
    return f"{blank()}{{{','.join(items)}}}{blank()}\n"


@quick
@given(st.data())
def test_lines_are_read_as_json_does(data: st.DataObject) -> None:
    strings, ascii_only = data.draw(st.booleans()), data.draw(st.booleans())
    label: st.SearchStrategy[Any] = TEXTS.filter(bool) if strings else st.integers(-(10**17), 10**17)
    block, expected = "", []
    for line in range(data.draw(st.integers(0, 4))):
        given_labels = data.draw(st.lists(label, max_size=3) | label)
        record: dict[str, Any] = {"text": data.draw(TEXTS), "labels": given_labels}
        if data.draw(st.booleans()):
            record["weight"] = data.draw(st.integers(0, 99) | st.sampled_from([0.5, 12.25, 0.1]))
        if data.draw(st.booleans()):
            record["id"] = data.draw(OTHERS.filter(lambda value: value is None or not isinstance(value, float)))
        keys = data.draw(st.permutations(list(record)))
        block += spaced(data, {key: record[key] for key in keys}, ascii_only)
        labels = given_labels if isinstance(given_labels, list) else [given_labels]
        expected.append((line, record["text"], labels, float(np.float32(record.get("weight", 1.0)))))
    found = parsed(block)
    assert found is not None
    assert records_of(found) == expected
    kinds = {type(label) for *_, labels, _ in expected for label in labels}
    assert found.kind == (NO_LABELS if not kinds else STRINGS if kinds == {str} else INTEGERS)


@quick
@given(st.data())
def test_nothing_is_taken_that_json_refuses_or_reads_otherwise(data: st.DataObject) -> None:
    line = data.draw(
        st.sampled_from(
            [
                '{"text": "a\\u00e9\\ud83d\\ude42b", "labels": ["x", "y"], "weight": 0.5, "z": null}\n',
                '{"labels": [1, -20], "text": "", "id": -1.5}\n',
            ]
        )
    )
    at = data.draw(st.integers(0, len(line) - 1))
    change = data.draw(
        st.sampled_from(['"', "\\", ",", "0", "-", ".", "e", "]", "}", "{", "[", ":", " ", "u", "\n", ""])
    )
    changed = line[:at] + change + line[at + data.draw(st.integers(0, 1)) :]
    found = parsed(changed)
    if found is None:
        return
    records = [json.loads(row) for row in changed.split("\n") if row.strip()]
    expected = [
        (record["text"], record.get("labels", []), float(np.float32(record.get("weight", 1.0)))) for record in records
    ]
    assert [row[1:] for row in records_of(found)] == [
        (text, labels if isinstance(labels, list) else [labels], weight) for text, labels, weight in expected
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"labels": [1]}', '{"text": null, "labels": 1}', '{"text": "a", "text": "b"}', '{"text": "a", "labels": [""]}',
        '{"text": "a", "labels": [1, "b"]}', '{"text": "a", "labels": [1.0]}', '{"text": "a", "labels": [1e3]}',
        '{"text": "\\ud83d"}', '{"text": "a\tb"}', '{"text": "a", "features": {}}', '{"text": "a", "x": {"y": 1}}',
        '{"text": "a", "weight": -1}', '{"text": "a", "weight": NaN}', '{"text": "a", "labels": [1,]}', '{"text": "a"',
        '["text"]', '{"text": "a"} x', '{"text": "a",}', '{"text": "a", "labels": [01]}', '{"text": "a", "x": 1e5}',
        '{"text": "a", "labels": [true]}', '{"text": "a", "weight": 0.12345678901234567}', '{"te\\u0078t": "a"}',
    ],
)  # fmt: skip
def test_what_the_kernel_leaves_to_json(line: str) -> None:
    assert parsed(line) is None
    assert parsed('{"text": "good"}\n' + line) is None


def test_labels_and_weights_that_must_be_there() -> None:
    assert parsed('{"text": "a"}') is not None
    assert parsed('{"text": "a"}', labels=True) is None
    assert parsed('{"text": "a", "labels": []}', labels=True) is not None
    assert parsed('{"text": "a"}', weight=True) is None
    assert parsed('{"text": "a", "weight": 2}', weight=True) is not None


def rows_of(text: str) -> list[list[str]] | None:
    """As `csv` has them, blank lines left out; None for an error."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    try:
        return [row for row in csv.reader((line for line in lines if line), strict=True) if row]
    except csv.Error:
        return None


@quick
@given(st.text(st.sampled_from('ab",\n\ré'), max_size=30))
def test_rows_are_cut_as_csv_cuts_them(text: str) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    expected = rows_of(text)
    n = 0 if not expected else len(expected[0])
    found = split_rows(data, ord(","), np.ones(n, bool), final=True)
    if expected is None:
        assert found.code != OK
        return
    same = [row for row in expected if len(row) == n]
    if len(same) < len(expected):
        first = next(i for i, row in enumerate(expected) if len(row) != n)
        assert (found.code, found.n_cells, len(found.lines)) == (WRONG_COUNT, len(expected[first]), first)
        return
    assert (found.code, found.begin) == (OK, len(data))
    assert found.cells.tolist() == [cell for row in expected for cell in row]
    for places in ([0], [n - 1, 0]) if n else []:
        joined = column(found.cells, n, places).tolist()
        assert joined == [" ".join(row[place] for place in places) for row in expected]


@quick
@given(st.text(st.sampled_from('ab",\n\r'), max_size=30), st.integers(0, 30))
def test_rows_of_a_beginning_are_those_of_the_whole(text: str, cut: int) -> None:
    data, expected = np.frombuffer(text.encode(), np.uint8), rows_of(text)
    if not expected or any(len(row) != len(expected[0]) for row in expected):
        return
    wanted = np.ones(len(expected[0]), bool)
    first = split_rows(data[:cut], ord(","), wanted, final=False)
    assert first.code == OK
    second = split_rows(data[first.begin :], ord(","), wanted, final=True)
    cells = [cell for row in expected for cell in row]
    assert first.cells.tolist() + second.cells.tolist() == cells
    lines = split_rows(data, ord(","), wanted, final=True).lines
    skipped = bytes(data[: first.begin]).count(b"\n")
    assert [*first.lines, *(second.lines + skipped)] == lines.tolist()


@quick
@given(
    st.lists(st.text(st.sampled_from("ab|; \t\xa0\u2003\x1c\u3000é"), max_size=10)),
    st.sampled_from([None, "|", ";|", "é"]),
)
def test_labels_are_cut_as_python_cuts_them(cells: list[str], separator: str | None) -> None:
    indptr, labels = split_labels(Strings.of(cells), separator)
    expected = [[cell] if separator is None else cell.split(separator) for cell in cells]
    kept = [[part.strip() for part in parts if part.strip()] for parts in expected]
    assert labels.tolist() == [part for parts in kept for part in parts]
    assert np.diff(indptr).tolist() == [len(parts) for parts in kept]
