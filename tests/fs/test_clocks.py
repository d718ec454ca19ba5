"""Clocksource and clockevent files (kernel/time/clocksource.c, clockevents.c, v6.10; synic.md 12)."""

from __future__ import annotations

import errno

import pytest

from vmbusirq import Machine
from vmbusirq.core import TICKS_PER_S
from vmbusirq.errors import IrqError
from vmbusirq.scenario.schema import parse_scenario

FOLDER = "/sys/devices/system/clocksource/clocksource0"
PAGE, MSR = "hyperv_clocksource_tsc_page", "hyperv_clocksource_msr"


def machine(text: str = "") -> Machine:
    return Machine.load(parse_scenario("cpus.possible = 2\n" + text, "clocks"))


def available(m: Machine) -> bytes:
    return m.fs.read(f"{FOLDER}/available_clocksource")


def current(m: Machine) -> bytes:
    return m.fs.read(f"{FOLDER}/current_clocksource")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", (PAGE, MSR, "acpi_pm")),
        ("timers.invariant_tsc = true", ("tsc", PAGE, MSR, "acpi_pm")),
        ('arch = "arm64"', ("arch_sys_counter",)),
    ],
)
def test_the_best_is_in_use(text: str, names: tuple[str, ...]) -> None:
    """By rating, each name followed by a blank; an invariant TSC lowers Hyper-V's own from 500 to 250."""
    m = machine(text)
    assert "".join(f"{name} " for name in names).encode() + b"\n" == available(m)
    assert f"{names[0]}\n".encode() == current(m)


def test_modes() -> None:
    """0444, 0644, 0200."""
    m = machine()
    modes = [m.fs.stat(f"{FOLDER}/{name}_clocksource").st_mode & 0o777 for name in ("available", "current", "unbind")]
    assert [0o444, 0o644, 0o200] == modes


@pytest.mark.parametrize("data", [b"acpi_pm\n", b"acpi_pm", b"acpi_pm\0rubbish\n"])
def test_another_can_be_chosen(data: bytes) -> None:
    """With or without newline; all bytes are taken."""
    m = machine()
    assert len(data) == m.fs.write(f"{FOLDER}/current_clocksource", data)
    assert b"acpi_pm\n" == current(m)
    assert available(m).startswith(PAGE.encode())


def test_an_unknown_name_is_taken_and_the_best_is_used() -> None:
    """The override is kept, finds nobody, and clocksource_select falls back on the rating."""
    m = machine()
    m.fs.write(f"{FOLDER}/current_clocksource", b"acpi_pm\n")
    assert 5 == m.fs.write(f"{FOLDER}/current_clocksource", b"hpet\n")
    assert f"{PAGE}\n".encode() == current(m)


@pytest.mark.parametrize(("data", "refused"), [(b"", True), (b"x" * 31, False), (b"x" * 32, True)])
def test_names_have_1_to_31_bytes(data: bytes, refused: bool) -> None:
    """CS_NAME_LEN is 32 (sysfs_get_uname)."""
    m = machine()
    for name in ("current", "unbind"):
        if not refused and name == "current":
            assert len(data) == m.fs.write(f"{FOLDER}/{name}_clocksource", data)
            continue
        with pytest.raises(IrqError) as error:
            m.fs.write(f"{FOLDER}/{name}_clocksource", data)
        assert (errno.EINVAL if refused else errno.ENODEV) == error.value.errno


def test_unbinding() -> None:
    """One in use is replaced by the next best; the last one stays (clocksource_unbind)."""
    m = machine()
    for name, following in ((PAGE, MSR), (MSR, "acpi_pm")):
        m.fs.write(f"{FOLDER}/unbind_clocksource", name.encode() + b"\n")
        assert f"{following}\n".encode() == current(m)
    with pytest.raises(IrqError) as error:
        m.fs.write(f"{FOLDER}/unbind_clocksource", b"acpi_pm\n")
    assert errno.EBUSY == error.value.errno
    with pytest.raises(IrqError) as error:
        m.fs.write(f"{FOLDER}/unbind_clocksource", PAGE.encode())
    assert errno.ENODEV == error.value.errno


@pytest.mark.parametrize("text", ["", "timers.invariant_tsc = true", 'arch = "arm64"'])
def test_every_clocksource_counts_at_its_own_rate(text: str) -> None:
    """A second is a second by each of them."""
    m = machine(text)
    before = {source.name: source.read() for source in m.clocksources.available}
    m.clock.advance(TICKS_PER_S)
    for source in m.clocksources.available:
        assert source.read() - before[source.name] in (source.hz - 1, source.hz)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "Hyper-V clockevent"),
        ('timers.mode = "message"', "Hyper-V clockevent"),
        ('timers.mode = "lapic"', "lapic"),
        ('arch = "arm64"', "arch_sys_timer"),
    ],
)
def test_clockevents(text: str, name: str) -> None:
    """A directory per possible CPU; one that never came has no device."""
    m = machine("cpus.present = 1\n" + text)
    base = "/sys/devices/system/clockevents"
    assert ["clockevent0", "clockevent1"] == m.fs.listdir(base)
    assert name.encode() + b"\n" == m.fs.read(f"{base}/clockevent0/current_device")
    assert b"" == m.fs.read(f"{base}/clockevent1/current_device")
    with pytest.raises(IrqError):
        m.fs.read(f"{base}/clockevent2/current_device")
