"""Imports run downwards only, in both languages; a test reads them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vmbusirq"

# A room may import rooms of a lower storey, and itself. Rooms of one storey do not know each other.
STOREYS = (
    {"_core"},
    {"_ffi"},
    {"errors"},
    {"limits", "cpumask", "steps", "log", "generations", "designs"},
    {"core"},
    {"irq", "wire", "hyperv"},
    {"vmbus", "host"},
    {"scenario", "fs"},
    {"platform", "script", "hotplug"},
    {"machine"},
    {"lab"},
    {"report", "plots"},
    {"cli", "pytest_plugin"},
    {"__main__"},
)
# Exceptions would stand here, each with its reason.
ALLOWED_SIDEWAYS: set[tuple[str, str]] = set()
OPTIONAL = {"plots", "pytest_plugin"}
RICH_USERS = {"report"}


def storey(room: str) -> int:
    return next(i for i, rooms in enumerate(STOREYS) if room in rooms)


def rooms_imported(path: Path) -> set[str]:
    """Return the first component below ``vmbusirq`` of everything a file imports, annotations included."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "vmbusirq" else [f"vmbusirq.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("vmbusirq.")}
    return rooms


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_storey() -> None:
    """A new room must be given its place."""
    rooms = {room_of(path) for path in sources()}
    known = set().union(*STOREYS)
    assert set() == rooms - known
    assert set() == known - rooms - OPTIONAL - {"_core"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards_only(path: Path) -> None:
    """design.md 3.

    Cli -> report -> lab -> machine -> scenario, fs -> vmbus | host -> hyperv, wire, irq -> base files.
    """
    room = room_of(path)
    for other in rooms_imported(path) - {room}:
        assert storey(other) < storey(room) or (room, other) in ALLOWED_SIDEWAYS, f"{room} imports {other}"


def test_guest_and_host_never_import_each_other() -> None:
    """They meet through rings, flags, slots and hypercalls only: the strongest rule of the house."""
    for path in sources():
        if room_of(path) == "vmbus":
            assert "host" not in rooms_imported(path), path
        if room_of(path) == "host":
            assert "vmbus" not in rooms_imported(path), path


def test_only_the_report_imports_rich() -> None:
    """The only module that draws."""
    for path in sources():
        if room_of(path) not in RICH_USERS:
            assert not re.search(r"^\s*(from|import) rich\b", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.parametrize("folder", [PACKAGE / "irq", ROOT / "csrc" / "irq"], ids=["python", "c"])
def test_irq_never_names_hyper_v(folder: Path) -> None:
    """The genirq core knows no bus and no hypervisor, in either language."""
    word = re.compile(r"vmbus(?!irq)|hyper-?v|synic|relid|vi_channel|vi_vsp|sint\b", re.I)
    for path in sorted(folder.glob("*.*")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not word.search(line), f"{path}:{number}: {line.strip()}"


def test_the_interface_header_is_what_cffi_can_read() -> None:
    """One text for the compiler and for cffi: no #include, no #if."""
    api = (ROOT / "csrc" / "vmbusirq_api.h").read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", api, flags=re.S)
    assert "#include" not in code
    assert "#if" not in code


def test_c_files_keep_no_state_outside_their_objects() -> None:
    """No mutable file-scope variables: everything hangs from struct vi_machine."""
    mutable = re.compile(r"^(?:static )?(?!const\b|inline\b)[\w ]+[ *]\w+(?:\[[^\]]*\])? *(?:=[^=].*)?;$")
    for path in sorted((ROOT / "csrc").rglob("*.c")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line[:1].isspace() or line.startswith(
                ("typedef", "struct", "enum", "_Static_assert", "return", "#", "/*", " *")
            ):
                continue
            if "const " in line or "(" in line:
                continue
            assert not mutable.match(line), f"{path}:{number}: {line}"
