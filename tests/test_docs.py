"""What the documents show is run, and what they name exists.

A document is a session: its blocks run in order, in one folder of their own, Python blocks in one namespace. In output,
a line ``...`` stands for any lines and ``...`` within a line for anything; blanks at the end of a line do not count.
Figures of ``vmbusirq bench`` are those of the machine that printed them: only the words around them are compared, of a
run with one round. A scenario is played; one that begins with a comment ``# NAME.toml`` is a file of that name for the
commands that follow.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vmbusirq import Machine, cli
from vmbusirq.scenario.schema import parse_scenario

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CHANGELOG.md", "benchmarks/README.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))
EXAMPLES = sorted(path.name for path in ROOT.glob("examples/*.py"))
FOLDERS = (".ci", "benchmarks", "csrc", "docs", "examples", "tests", "tools", "vmbusirq")
LANGUAGES = {"sh", "python", "text", "toml", "c"}
SHELL_SIGNS = set("|<>&;$*`")
NOT_RUN = {"cd", "git", "sudo"}  # what a reader does to a whole system
SHELL = """
vmbusirq() { "$PYTHON" -m vmbusirq "$@"; }
python() { "$PYTHON" "$@"; }
"""


def read(name: str) -> str:
    """Return the text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of the document that its text begins at."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A line after ``$ `` and the output shown below it."""

    text: str
    shown: str
    line: int


def blocks(text: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1))
    return found


def commands(text: str, line: int) -> Iterator[Command]:
    for match in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
        yield Command(match[1], match[2], line + text.count("\n", 0, match.start()))


# ---- running


def captured(call: Callable[[], object]) -> tuple[int, str]:
    """Run something in this process; return its exit status and what it printed on both streams, in order."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            status = call()
        except SystemExit as end:
            status = end.code
    return int(status) if isinstance(status, int) else 0, raw.getvalue().decode()


def run_script(path: str, arguments: list[str]) -> tuple[int, str]:
    before, sys.argv = sys.argv, [path, *arguments]
    try:
        return captured(lambda: runpy.run_path(path, run_name="__main__") and None)
    finally:
        sys.argv = before


def run_in_shell(command: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", SHELL + command.replace(".venv/bin/", "")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode()


@cache
def recipes() -> dict[str, list[str]]:
    """Return the targets of the Makefile that a person calls, and what each runs."""
    makefile = read("Makefile")
    found = re.findall(r"^([a-z]+):.*##.*\n((?:\t.*\n)*)", makefile, re.M)
    return {target: [line.strip().lstrip("@") for line in recipe.splitlines()] for target, recipe in found}


def run_command(command: str) -> tuple[int, str] | None:
    """Run a command of a document; None for one that is not ours to run."""
    words = shlex.split(command, comments=True)
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        return run_make(arguments)
    if program in NOT_RUN:
        return None
    if SHELL_SIGNS & set(command):
        return run_in_shell(command)
    if program == "vmbusirq":
        return captured(lambda: cli.main([*arguments, "--rounds", "1"] if arguments[:1] == ["bench"] else arguments))
    assert program == "python", f"what is {program!r}?"
    assert not arguments[0].startswith("-"), command
    return run_script(arguments[0], arguments[1:])


def run_make(targets: list[str]) -> tuple[int, str] | None:
    """Run what a target's recipe runs if that is our command alone."""
    status, out = 0, ""
    for target in targets or ["build"]:
        assert target in recipes(), f"no target {target} in the Makefile"
        if target == "bench" or not all(line.startswith("$(BIN)/vmbusirq ") for line in recipes()[target]):
            return None
        for line in recipes()[target]:
            status, text = run_command(line.removeprefix("$(BIN)/")) or (0, "")
            out += text
    return status, out


def expected_pattern(shown: str) -> re.Pattern[str]:
    lines = []
    for line in shown.splitlines():
        inside = ".*?".join(re.escape(part) for part in line.rstrip().split("..."))
        lines.append(r"(?:.*\n)*?" if line.strip() == "..." else inside + r"[ \t]*\n")
    return re.compile("".join(lines))


def without_figures(text: str) -> str:
    return re.sub(r"[ ─━┏┓┗┛┡┩┳┻╇┴└┘]+", " ", re.sub(r"\d[\d,.]*", "0", text))


def check_command(command: Command) -> None:
    result = run_command(command.text)
    if result is None:
        assert not command.shown.replace("...", "").strip(), (
            f"line {command.line}: output of what is not run: {command.text}"
        )
        return
    status, out = result
    shown = command.shown.strip("\n") + "\n" if command.shown.strip() else ""
    if not shown:
        assert status == 0, f"line {command.line}: {command.text} gives {status}: {out}"
        return
    if " bench " in command.text:
        shown, out = without_figures(shown), without_figures(out)
    assert expected_pattern(shown).fullmatch(out), f"line {command.line}: {command.text} prints\n{out}"


class Session:
    """One document being run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.names: dict[str, Any] = {}
        self.printed: str | None = None

    def run(self, block: Block) -> None:
        printed, self.printed = self.printed, None
        if block.language == "sh":
            for command in commands(block.text, block.line):
                check_command(command)
        elif block.language == "python":
            self.run_python(block)
        elif block.language == "toml":
            if "[cpus]" in block.text:
                self.play(block)
            else:
                tomllib.loads(block.text)
        elif block.language == "text" and printed is not None:
            assert expected_pattern(block.text).fullmatch(printed), (
                f"line {block.line}: the block above prints\n{printed}"
            )

    def play(self, block: Block) -> None:
        machine = Machine.load(parse_scenario(block.text, f"{self.name}:{block.line}"))
        machine.run()
        table = machine.fs.read("/proc/interrupts").decode().splitlines()
        assert len(table) > 1, f"line {block.line}: the scenario shows nothing"
        if named := re.match(r"# ([\w-]+\.toml)\n", block.text):
            Path(named[1]).write_text(block.text, encoding="utf-8")

    def run_python(self, block: Block) -> None:
        if ">>> " not in block.text:
            code = compile("\n" * (block.line - 1) + block.text, self.name, "exec")
            _, self.printed = captured(lambda: exec(code, self.names))
            return
        case = doctest.DocTestParser().get_doctest(block.text, self.names, self.name, self.name, block.line - 1)
        complaints: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False).run(
            case, out=complaints.append, clear_globs=False
        )
        self.names.update(case.globs)
        assert not complaints, "".join(complaints)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository and may be written to."""
    for name in FOLDERS:
        if name != "vmbusirq":
            (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_shows_what_its_blocks_do(name: str, folder: Path) -> None:
    """Every command and every Python block runs and prints what is shown; every scenario can be read."""
    session = Session(name)
    for block in blocks(read(name)):
        assert block.language in LANGUAGES, f"line {block.line - 1}: a block of {block.language or 'no language'}"
        session.run(block)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_docstring_shows(name: str, folder: Path) -> None:
    """The docstring of an example is a session that runs it."""
    docstring = ast.get_docstring(ast.parse(read(f"examples/{name}"))) or ""
    shown = re.search(r"^    \$ .*(?:\n    .*)*", docstring, re.M)
    assert shown, "the docstring shows no run"
    session = list(commands(textwrap.dedent(shown[0]) + "\n", 1))
    assert any(f"examples/{name}" in command.text and command.shown for command in session)
    for command in session:
        check_command(command)


def test_example_scenarios_can_be_read() -> None:
    """Scenario files beside the examples."""
    scenarios = sorted(ROOT.glob("examples/*.toml"))
    assert scenarios
    for path in scenarios:
        parse_scenario(path.read_text(encoding="utf-8"), path.stem, str(path))


# ---- what is named exists


@cache
def repository() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the paths of all files and folders, the words of all sources, the names of all tests."""
    paths, words, tests = set(), set(), set()
    top = [path for path in ROOT.iterdir() if path.is_file()]
    for path in [*top, *(found for folder in FOLDERS for found in (ROOT / folder).rglob("*"))]:
        if "__pycache__" in path.parts:
            continue
        paths.add(str(path.relative_to(ROOT)))
        if path.suffix in {".py", ".c", ".h", ".toml"} and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            words |= set(re.findall(r"\w+", text))
            tests |= set(re.findall(r"^(?:async )?def (test_\w+)", text, re.M))
    return frozenset(paths) | set(FOLDERS), frozenset(words), frozenset(tests)


def missing(span: str) -> str | None:
    """Return what is wrong with a piece of code in a sentence, None if all it names exists."""
    paths, words, tests = repository()
    files = {Path(path).name for path in paths}
    place = span.partition("::")[0].rstrip("/")
    if re.fullmatch(r"[\w./*-]+", place) and (place.split("/")[0] in FOLDERS and "/" in place):
        if not list(ROOT.glob(place)):
            return f"no {place}"
    elif re.fullmatch(r"[\w-]+\.(?:py|c|h|md|toml|sh)", place) and place not in files:
        return f"no file {place}"
    stems = {Path(name).stem for name in files}
    for name in re.findall(r"\b(?:vi_|VI_|test_)\w+", span.replace("*", "")):
        known = words if not name.startswith("test_") else tests | stems
        if name not in known and not any(word.startswith(name) for word in words if f"{name}*" in span):
            return f"no {name}"
    call = re.search(r"(\w+)\(\)$", span)
    if call and call[1] not in words:
        return f"no {call[1]}()"
    if re.fullmatch(r"[A-Z]\w+(?:\.\w+)+", span) and not set(span.split(".")) <= words:
        return f"no {span}"
    return missing_command(span)


def missing_command(span: str) -> str | None:
    target = re.fullmatch(r"make ([a-z]+)", span)
    if target and target[1] not in recipes():
        return f"no target {target[1]}"
    command = re.match(r"vmbusirq ([a-z]+)", span)
    if command and importlib.util.find_spec(f"vmbusirq.cli.{command[1]}") is None:
        return f"no command {command[1]}"
    return None


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_exists(name: str) -> None:
    """Paths, C names, tests, functions, make targets and commands in backticks."""
    prose = re.sub(r"^```.*?^```$", "", read(name), flags=re.M | re.S)
    cut = [line for line in prose.splitlines() if line.count("`") % 2]
    wrong = {span: why for span in re.findall(r"`([^`\n]+)`", prose) if (why := missing(span))}
    assert [] == cut, "a line ends within backticks"
    assert {} == wrong


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_inside_the_repository_lead_somewhere(name: str) -> None:
    """Files, and headings of documents."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", read(name)):
        place, _, anchor = target.partition("#")
        file = (ROOT / name).parent / place if place else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_newest_change_is_this_version() -> None:
    """CHANGELOG.md begins with the version of pyproject.toml."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    first = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)
    assert first
    assert project["version"] == first[1]


# ---- the judge itself


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb\n", "a  \nb\n", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\n", "a\n", True),
        ("a ... z\n", "a b c z\n", True),
        ("a\n", "a\nb\n", False),
        ("a\nb\n", "b\na\n", False),
        ("1.5\n", "175\n", False),
    ],
)
def test_elided_output(shown: str, printed: str, same: bool) -> None:
    """What ``...`` stands for, and what it does not."""
    assert same is bool(expected_pattern(shown).fullmatch(printed))


@pytest.mark.parametrize(
    ("span", "why"),
    [
        ("csrc/irq/chip.c", None),
        ("csrc/irq/chop.c", "no csrc/irq/chop.c"),
        ("csrc/fs/seq*.c", None),
        ("chop.c", "no file chop.c"),
        ("vi_vcpu_run()", None),
        ("vi_vcpu_walk()", "no vi_vcpu_walk"),
        ("nowhere_defined()", "no nowhere_defined()"),
        ("Machine.load", None),
        ("make run", None),
        ("make haste", "no target haste"),
        ("vmbusirq run", None),
        ("vmbusirq walk", "no command walk"),
        ("kernel/irq/chip.c", None),
        ("/proc/irq/28", None),
    ],
)
def test_names_are_looked_up(span: str, why: str | None) -> None:
    """The rules by which a document is judged."""
    assert why == missing(span)
