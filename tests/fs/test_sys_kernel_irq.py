"""/sys/kernel/irq and the CPU lists of /sys/devices/system/cpu (genirq.md 3.1, 5; traps 6, 34, 36)."""

from __future__ import annotations

import stat
from errno import EACCES, ENODEV, ENOENT, EPERM

import pytest

from tests.fs.kernel import Kernel, refused
from vmbusirq.irq import Flow, IrqChip, nop
from vmbusirq.irq.settings import IRQ_LEVEL, IRQF_SHARED

FILES = ["actions", "chip_name", "hwirq", "name", "per_cpu_count", "type", "wakeup"]


@pytest.fixture
def kernel():
    """Four CPUs, v6.10, x86."""
    return Kernel(4)


def files(kernel, irq):
    """Return the text of all files of an IRQ."""
    return {name: kernel.fs.read(f"/sys/kernel/irq/{irq}/{name}") for name in FILES}


def test_a_mapped_channel_irq_is_there_before_anybody_requests_it(kernel):
    """5: mapped means chip VMBus, hwirq 7, actions empty; nothing in /proc/irq."""
    desc = kernel.rig.irq(7)
    assert {
        "actions": b"",
        "chip_name": b"VMBus\n",
        "hwirq": b"7\n",
        "name": b"",
        "per_cpu_count": b"0,0,0,0\n",
        "type": b"edge\n",
        "wakeup": b"disabled\n",
    } == files(kernel, desc.irq)
    assert not kernel.fs.exists(f"/proc/irq/{desc.irq}")


def test_an_allocated_irq_without_chip_domain_or_action(kernel):
    """no_irq_chip has a name; an empty file has no newline either."""
    irq = kernel.irq.alloc_descs()
    shown = files(kernel, irq)
    assert (b"none\n", b"", b"", b"") == (shown["chip_name"], shown["hwirq"], shown["name"], shown["actions"])


def test_a_requested_shared_level_irq(kernel):
    """Trap 36: names are joined by "," here and by ", " in procfs."""
    irq = kernel.irq.alloc_descs()
    chip = IrqChip(None, irq_mask=nop, irq_unmask=nop)
    kernel.irq.set_chip_and_handler(irq, chip, Flow.FASTEOI, "fasteoi")
    kernel.irq.modify_status(irq, set_=IRQ_LEVEL)
    for name in ("acpi", None):
        kernel.irq.request_irq(irq, kernel.rig.handler, IRQF_SHARED, name, str(name))
    kernel.rig.fire(kernel.irq.irq_to_desc(irq), 2)
    assert {
        "actions": b"acpi,(null)\n",
        "chip_name": b"",
        "hwirq": b"",
        "name": b"fasteoi\n",
        "per_cpu_count": b"0,0,1,0\n",
        "type": b"level\n",
        "wakeup": b"disabled\n",
    } == files(kernel, irq)


def test_per_cpu_count_is_of_the_possible_cpus(kernel):
    """Trap 6."""
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, 3)
    kernel.irq.online = 0b0001
    assert b"0,0,0,1\n" == kernel.fs.read(f"/sys/kernel/irq/{desc.irq}/per_cpu_count")


@pytest.mark.parametrize(("nr_cpus", "size"), [(2047, 4094), (2048, 4095)])
def test_a_text_ends_where_its_page_ends(nr_cpus, size):
    """A page holds 4095 bytes and a NUL: 2047 zeros and their newline take 4094, one more CPU loses the newline."""
    kernel = Kernel(nr_cpus)
    shown = kernel.fs.read(f"/sys/kernel/irq/{kernel.rig.irq().irq}/per_cpu_count")
    assert size == len(shown)
    assert ("0," * nr_cpus)[: 2 * nr_cpus - 1].encode() + (b"\n" if nr_cpus == 2047 else b"") == shown


def test_a_long_text_is_cut_inside_a_number():
    """3.1: the page's end does not look at what it cuts."""
    kernel = Kernel(2048)
    desc = kernel.rig.irq()
    for cpu in range(2048):
        kernel.count(desc, cpu, 100)
    assert (b"100," * 2048)[:4095] == kernel.fs.read(f"/sys/kernel/irq/{desc.irq}/per_cpu_count")


def test_the_directory_comes_with_the_descriptor_and_goes_with_it(kernel):
    """Trap 34; an open file gives ENODEV then (fs/kernfs/file.c)."""
    desc = kernel.rig.requested()
    path = f"/sys/kernel/irq/{desc.irq}"
    handle, directory = kernel.fs.open(f"{path}/actions"), kernel.fs.lookup(path)
    assert b"heartbeat\n" == handle.read()
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert b"" == handle.pread(99, 0)
    kernel.irq.irq_dispose_mapping(desc.irq)
    with refused(ENODEV):
        handle.read()
    with refused(ENOENT, "irq 24 is not allocated"):
        kernel.fs.read(f"{path}/actions")
    assert [] == directory.entries()
    assert directory.lookup("name") is None


def test_modes_and_sizes(kernel):
    """3.1."""
    desc = kernel.rig.irq()
    path = f"/sys/kernel/irq/{desc.irq}"
    assert FILES == kernel.fs.listdir(path)
    assert stat.S_IFDIR | 0o755 == kernel.fs.stat(path).st_mode
    for name in FILES:
        entry = kernel.fs.stat(f"{path}/{name}")
        assert (stat.S_IFREG | 0o444, 4096, 0, 0) == (entry.st_mode, entry.st_size, entry.st_uid, entry.st_gid)


def test_nothing_can_be_written_made_or_removed(kernel):
    """3.1; real-clients.md 2.3, rule 7."""
    path = f"/sys/kernel/irq/{kernel.rig.irq().irq}"
    for name in FILES:
        with refused(EACCES, name):
            kernel.fs.write(f"{path}/{name}", "1")
    with refused(EACCES):
        kernel.fs.write(f"{path}/new", "1")
    with refused(EPERM):
        kernel.fs.mkdir(f"{path}/new")
    with refused(EPERM):
        kernel.fs.unlink(f"{path}/name")


@pytest.mark.parametrize("name", ["8", "024", "x", "999"])
def test_only_allocated_irqs_are_there(kernel, name):
    """3.1: requested or not, hidden or not."""
    kernel.rig.irq(1)
    kernel.rig.irq(2)
    with refused(ENOENT, f"irq {name} is not allocated", "irqs: 24-25"):
        kernel.fs.listdir(f"/sys/kernel/irq/{name}")
    assert ["24", "25"] == kernel.fs.listdir("/sys/kernel/irq")
    with refused(ENOENT, "irqs: none"):
        Kernel(1).fs.listdir("/sys/kernel/irq/1")


@pytest.mark.parametrize(
    ("online", "shown"),
    [
        (0b1111, (b"0-3\n", b"0-3\n", b"0-3\n", b"\n")),
        (0b1010, (b"1,3\n", b"0-3\n", b"0-3\n", b"0,2\n")),
    ],
)
def test_cpu_lists(kernel, online, shown):
    """Drivers/base/cpu.c: %*pbl and a newline, which is all there is of an empty set."""
    kernel.irq.online = online
    names = ("online", "possible", "present", "offline")
    assert shown == tuple(kernel.fs.read(f"/sys/devices/system/cpu/{name}") for name in names)
    for name in names:
        with refused(EACCES, name):
            kernel.fs.write(f"/sys/devices/system/cpu/{name}", "1")


def test_cpus_that_never_come_are_possible_but_not_present(kernel):
    """Genirq.md 0: three nested sets."""
    kernel.irq.online = kernel.present_mask = 0b0011
    assert b"0-1\n" == kernel.fs.read("/sys/devices/system/cpu/present")
    assert b"0-3\n" == kernel.fs.read("/sys/devices/system/cpu/possible")
    assert b"2-3\n" == kernel.fs.read("/sys/devices/system/cpu/offline")
