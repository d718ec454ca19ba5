"""House rules that a reader would otherwise have to keep watch over."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 62
C_LINE_MAX = 100


def files(*patterns: str) -> list[Path]:
    skip = {".venv", "build", "dist"}
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not skip & set(path.relative_to(ROOT).parts))


PYTHON = files("vmbusirq/**/*.py", "csrc/*.py", "benchmarks/*.py", "examples/*.py")
C_FILES = files("csrc/**/*.[ch]", "tests/c/*.c")


@pytest.mark.parametrize("path", PYTHON + [path for path in C_FILES if path.suffix == ".c"], ids=lambda path: path.name)
def test_no_file_outgrows_its_reader(path: Path) -> None:
    """A file past about 500 lines hides a seam."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_no_function_outgrows_its_reader(path: Path) -> None:
    """About 60 lines, docstring included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", C_FILES, ids=lambda path: path.name)
def test_c_lines_fit(path: Path) -> None:
    """Lines of C, tabs counted as eight."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert len(line.expandtabs(8)) <= C_LINE_MAX, f"{path}:{number}"


def test_no_markers_are_left_over() -> None:
    """What is not done is said in the documents, not in the code."""
    word = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    for path in PYTHON + C_FILES + files("tests/**/*.py"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not word.search(line), f"{path}:{number}"


def test_every_c_file_is_compiled_into_the_core() -> None:
    """The list in pyproject.toml is what ships; a file outside it is dead."""
    listed = set(re.findall(r'"(csrc/[\w/]+\.c)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    present = {str(path.relative_to(ROOT)) for path in files("csrc/**/*.c")}
    assert present == listed
