"""/proc/irq by its rules: genirq.md 2.1 to 2.12, the traps of 6 that show here, and both sides of the 6.12 border."""

from __future__ import annotations

import stat
import threading
from errno import EACCES, EBUSY, EINVAL, EIO, ENOENT, ENOMEM, ENOSYS, EOVERFLOW, EPERM, ERANGE, ESPIPE

import pytest

from tests.fs.kernel import Kernel, refused
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.generations import GENERATIONS
from vmbusirq.irq import Flow, IrqChip, nop
from vmbusirq.irq.settings import (
    IRQ_MOVE_PCNTXT,
    IRQ_NO_BALANCING,
    IRQ_NONE,
    IRQF_NOBALANCING,
    IRQF_SHARED,
    IRQS_PENDING,
)

FILES = [
    "node",
    "spurious",
    "smp_affinity",
    "affinity_hint",
    "smp_affinity_list",
    "effective_affinity",
    "effective_affinity_list",
]
SINCE_6_12 = [name for name in GENERATIONS if name != "v6.10"]


@pytest.fixture
def kernel():
    """Eight CPUs, v6.10, x86."""
    return Kernel()


def read(kernel, desc, name):
    """Return the text of a file of one IRQ without its newline."""
    text = kernel.fs.read(f"/proc/irq/{desc.irq}/{name}").decode()
    assert text.endswith("\n")
    return text[:-1]


def write(kernel, desc, data, name="smp_affinity"):
    """Write a value to a file of one IRQ."""
    return kernel.fs.write(f"/proc/irq/{desc.irq}/{name}", data)


def affinities(kernel, desc):
    """Return what was asked and what the chip does, as masks."""
    return read(kernel, desc, "smp_affinity"), read(kernel, desc, "effective_affinity")


# ---- the tree (2.1)


def test_an_irq_has_a_directory_from_its_first_request_until_its_descriptor_is_freed(kernel):
    """Trap 34; free_irq leaves the directory, without the action's."""
    desc = kernel.rig.irq()
    path = f"/proc/irq/{desc.irq}"
    assert not kernel.fs.exists(path)
    kernel.irq.request_irq(desc.irq, kernel.rig.handler, 0, "heartbeat", "cookie")
    assert kernel.fs.exists(f"{path}/heartbeat")
    kernel.irq.free_irq(desc.irq, "cookie")
    assert FILES == kernel.fs.listdir(path)
    kernel.irq.irq_dispose_mapping(desc.irq)
    assert not kernel.fs.exists(path)
    assert ["default_smp_affinity"] == kernel.fs.listdir("/proc/irq")


def test_a_failed_request_makes_no_directory(kernel):
    """2.1: at the first successful request."""
    irq = kernel.irq.alloc_descs()
    with refused(ENOSYS, "no chip"):
        kernel.irq.request_irq(irq, kernel.rig.handler, 0, "heartbeat")
    assert not kernel.fs.exists(f"/proc/irq/{irq}")


def test_irqs_with_a_chip_have_a_directory_when_the_file_system_comes_up(kernel):
    """init_irq_proc: the legacy IRQs of x86, requested or not."""
    irq = kernel.irq.alloc_descs(9)
    kernel.irq.set_chip_and_handler(irq, kernel.rig.chip, Flow.FASTEOI, "fasteoi")
    kernel.irq.alloc_descs(10)
    kernel.irq.init_irq_proc()
    assert ["9", "default_smp_affinity"] == kernel.fs.listdir("/proc/irq")


def test_names_are_listed_by_length_then_bytes(kernel):
    """A 13-byte action name sorts among smp_affinity and affinity_hint; IRQs come out in numeric order (2.1)."""
    for hwirq in range(1, 90):
        kernel.rig.requested(hwirq, name="thirteenbytes" if hwirq == 1 else "a")
    assert [*map(str, range(24, 113)), "default_smp_affinity"] == kernel.fs.listdir("/proc/irq")
    assert [*FILES[:4], "thirteenbytes", *FILES[4:]] == kernel.fs.listdir("/proc/irq/24")
    assert ["a", *FILES] == kernel.fs.listdir("/proc/irq/25")


def test_modes_sizes_and_owners(kernel):
    """2.1."""
    desc = kernel.rig.requested()
    shown = {path.rpartition("/")[2]: kernel.fs.stat(path) for path, _ in kernel.fs.walk(f"/proc/irq/{desc.irq}")}
    writable = {"smp_affinity", "smp_affinity_list"}
    for name in FILES:
        assert stat.S_IFREG | (0o644 if name in writable else 0o444) == shown[name].st_mode
    assert stat.S_IFDIR | 0o555 == shown["heartbeat"].st_mode
    assert stat.S_IFREG | 0o644 == kernel.fs.stat("/proc/irq/default_smp_affinity").st_mode
    assert {(0, 0, 0)} == {(entry.st_size, entry.st_uid, entry.st_gid) for entry in shown.values()}
    assert [] == kernel.fs.listdir(f"/proc/irq/{desc.irq}/heartbeat")


@pytest.mark.parametrize(
    "name", ["024", "+24", "24 ", "٢٤", "0x18", "default_smp_affinity_list", "", "24\n", "99999999999"]
)
def test_only_the_decimal_number_of_an_irq_names_its_directory(kernel, name):
    """Names are compared as bytes (fs/proc/generic.c)."""
    kernel.rig.requested()
    assert kernel.fs.exists("/proc/irq/24")
    assert kernel.fs.exists(f"/proc/irq/{name}") is (name == "")


def test_a_missing_irq_says_why_and_which_there_are(kernel):
    """Design.md 7: what was asked, what is true, what to do."""
    kernel.rig.requested(1)
    kernel.rig.requested(2)
    kernel.rig.irq(3)
    with refused(ENOENT, "/proc/irq/26: no such file: irq 26 was never requested (ENOENT); irqs: 24-25"):
        kernel.fs.read("/proc/irq/26/node")
    with refused(ENOENT, "/proc/irq/99: no such file: irq 99 is not allocated (ENOENT); irqs: 24-25"):
        kernel.fs.stat("/proc/irq/99")
    with refused(ENOENT, "irqs: none"):
        Kernel().fs.stat("/proc/irq/1")


def test_a_hidden_irq_keeps_its_directory():
    """Trap 8."""
    kernel = Kernel(4, arch="arm64")
    desc = kernel.percpu(hidden=True)
    assert kernel.fs.exists(f"/proc/irq/{desc.irq}/Hyper-V VMbus")
    assert kernel.line(b"%3d:" % desc.irq) is None


# ---- action directories


def test_shared_actions_have_a_directory_each_but_one_name_makes_one(kernel):
    """Trap 35. The directory belongs to the action that made it, and goes with it."""
    desc = kernel.rig.requested(flags=IRQF_SHARED, name="one", dev_id="1")
    kernel.irq.request_irq(desc.irq, kernel.rig.handler, IRQF_SHARED, "two", "2")
    kernel.irq.request_irq(desc.irq, kernel.rig.handler, IRQF_SHARED, "one", "3")
    path = f"/proc/irq/{desc.irq}"
    assert {"one", "two"} == set(kernel.fs.listdir(path)) - set(FILES)
    kernel.irq.free_irq(desc.irq, "1")
    assert {"two"} == set(kernel.fs.listdir(path)) - set(FILES)


def test_many_irqs_may_hold_a_directory_of_the_same_name(kernel):
    """Trap 35."""
    for hwirq in range(1, 21):
        desc = kernel.rig.requested(hwirq, name="netvsc")
        assert kernel.fs.exists(f"/proc/irq/{desc.irq}/netvsc")


@pytest.mark.parametrize("name", ["pci/0", "", None, "node"])
def test_a_name_that_is_no_file_name_makes_no_directory(kernel, name):
    """2.1, last row; a file of the same name stays what it is."""
    desc = kernel.rig.requested(name=name)
    assert FILES == kernel.fs.listdir(f"/proc/irq/{desc.irq}")
    assert stat.S_ISREG(kernel.fs.stat(f"/proc/irq/{desc.irq}/node").st_mode)


def test_a_long_name_is_cut_at_127_bytes(kernel):
    """2.1."""
    desc = kernel.rig.requested(name="x" * 200)
    assert kernel.fs.exists(f"/proc/irq/{desc.irq}/{'x' * 127}")
    assert not kernel.fs.exists(f"/proc/irq/{desc.irq}/{'x' * 128}")


# ---- what the files show


@pytest.mark.parametrize(
    ("nr_cpus", "first", "every", "listed"),
    [
        (1, "1", "1", "0"),
        (2, "1", "3", "0-1"),
        (6, "01", "3f", "0-5"),
        (8, "01", "ff", "0-7"),
        (33, "0,00000001", "1,ffffffff", "0-32"),
        (2048, ",".join(63 * ["00000000"] + ["00000001"]), ",".join(64 * ["ffffffff"]), "0-2047"),
    ],
)
def test_masks_are_as_wide_as_the_possible_cpus(nr_cpus, first, every, listed):
    """2.2."""
    kernel = Kernel(nr_cpus)
    desc = kernel.rig.requested()
    assert (every, first) == affinities(kernel, desc)
    assert listed == read(kernel, desc, "smp_affinity_list")
    assert "0" == read(kernel, desc, "effective_affinity_list")
    assert f"{every}\n".encode() == kernel.fs.read("/proc/irq/default_smp_affinity")


def test_node_is_minus_1_when_there_is_none(kernel):
    """2.1."""
    assert "-1" == read(kernel, kernel.rig.requested(), "node")
    irq = kernel.irq.alloc_descs(node=1)
    kernel.irq.set_chip_and_handler(irq, kernel.rig.chip, Flow.EDGE)
    kernel.irq.request_irq(irq, kernel.rig.handler)
    assert "1" == read(kernel, kernel.irq.irq_to_desc(irq), "node")


def test_the_hint_is_empty_at_first_and_stays_where_the_driver_put_it(kernel):
    """Trap 22."""
    desc = kernel.rig.requested()
    assert "00" == read(kernel, desc, "affinity_hint")
    kernel.irq.irq_set_affinity_and_hint(desc.irq, 0x04)
    write(kernel, desc, "f0")
    assert "04" == read(kernel, desc, "affinity_hint")
    assert ("f0", "10") == affinities(kernel, desc)


def test_a_hint_past_the_last_cpu_is_cut_to_the_machine(kernel):
    """2.2: the width is nr_cpu_ids."""
    desc = kernel.rig.requested()
    kernel.irq.irq_update_affinity_hint(desc.irq, 0xFFF04)
    assert "04" == read(kernel, desc, "affinity_hint")


def test_spurious_counts_nothing_until_the_first_unhandled_interrupt(kernel):
    """2.12: last_unhandled is jiffies in ms, which start five minutes below 2**32 (trap 37)."""
    desc = kernel.rig.requested()
    kernel.rig.fire(desc, times=3)
    assert "count 0\nunhandled 0\nlast_unhandled 0 ms" == read(kernel, desc, "spurious")
    kernel.rig.result = IRQ_NONE
    lib.vi_machine_set_time(kernel.rig.machine, 5824)
    kernel.rig.fire(desc, times=2)
    assert "count 2\nunhandled 2\nlast_unhandled 4294673120 ms" == read(kernel, desc, "spurious")
    lib.vi_machine_set_time(kernel.rig.machine, 300_001)
    kernel.rig.fire(desc)
    assert "count 3\nunhandled 1\nlast_unhandled 1 ms" == read(kernel, desc, "spurious")


def test_reading_is_possible_from_any_generation_alike():
    """8: mask output did not change."""
    for generation in GENERATIONS:
        kernel = Kernel(generation=generation)
        desc = kernel.rig.requested()
        assert ("ff", "01") == affinities(kernel, desc)


# ---- writing (2.3 to 2.7; the whole set of vectors is in test_cpumask.py)


@pytest.mark.parametrize(
    ("nr_cpus", "data", "mask", "listed"),
    [
        (4, b"f\n", "f", "0-3"),  # M1
        (4, b" \t5 \n", "5", "0,2"),  # M9
        (4, b"5\nzzz", "5", "0,2"),  # M10
        (4, b"x00000003", "3", "0-1"),  # M17
        (4, b"5\0f", "5", "0,2"),  # M23
        (8, b"80\n", "80", "7"),  # M24
        (64, b"1,0", "00000001,00000000", "32"),  # M29
        (64, b"0x00000003", "00000000,00000003", "0-1"),  # M35
        (64, b"3 3", "00000003,00000003", "0-1,32-33"),  # trap 14
        (2048, b"f" + 63 * b",0", "0000000f" + 63 * ",00000000", "2016-2019"),  # M40
    ],
)
def test_a_mask_is_stored_shown_in_both_files_and_its_write_returns_its_whole_length(nr_cpus, data, mask, listed):
    """Trap 20: text after the newline is ignored and counted."""
    kernel = Kernel(nr_cpus)
    desc = kernel.rig.requested()
    assert len(data) == write(kernel, desc, data)
    assert (mask, listed) == (read(kernel, desc, "smp_affinity"), read(kernel, desc, "smp_affinity_list"))


@pytest.mark.parametrize(
    ("nr_cpus", "data", "errno"),
    [
        (4, b"1f\n", EOVERFLOW),  # M4
        (4, b"0,f\n", EOVERFLOW),  # M6
        (4, b"\n5", EINVAL),  # M11
        (4, b"", EINVAL),  # M12
        (4, b"0\n", EINVAL),  # M14
        (4, b"0x3", EINVAL),  # M15
        (4, b"0x00000003", EOVERFLOW),  # M16
        (4, b"g,1", EOVERFLOW),  # M45
        (4, b"1,g", EINVAL),  # M46
        (8, b"100", EOVERFLOW),  # M25
    ],
)
def test_a_bad_mask_changes_nothing(nr_cpus, data, errno):
    """2.3, steps 4 and 5: the chip is not asked."""
    kernel = Kernel(nr_cpus)
    desc = kernel.rig.requested()
    before = affinities(kernel, desc)
    calls = len(kernel.rig.affinity_calls)
    with refused(errno):
        write(kernel, desc, data)
    assert before == affinities(kernel, desc)
    assert calls == len(kernel.rig.affinity_calls)


@pytest.mark.parametrize(
    ("nr_cpus", "data", "mask"),
    [
        (4, b"0-3\n", "f"),  # L1
        (4, b"ALL\n", "f"),  # L2
        (4, b" 1 , 3 \n", "a"),  # L4
        (4, b"N", "8"),  # L7
        (4, b"1\n2", "2"),  # L20
        (4, b"1,\n2", "6"),  # L22
        (8, b"0-7:1/2\n", "55"),  # L35
        (8, b"6-7,0-1", "c3"),  # L40
        (64, b"0-31:8/16,63", "80000000,00ff00ff"),  # L43
    ],
)
def test_a_list_is_stored_too(nr_cpus, data, mask):
    """2.7."""
    kernel = Kernel(nr_cpus)
    desc = kernel.rig.requested()
    assert len(data) == write(kernel, desc, data, "smp_affinity_list")
    assert mask == read(kernel, desc, "smp_affinity")


@pytest.mark.parametrize(
    ("data", "errno"),
    [(b"3-1", EINVAL), (b"4", ERANGE), (b"n", EINVAL), (b"4294967296", EOVERFLOW), (b"", EINVAL), (b"0-3:0/2", EINVAL)],
)
def test_a_bad_list_changes_nothing(data, errno):
    """L5, L6, L8, L19, L30, L12; trap 15: too wide is ERANGE here and EOVERFLOW in the mask file."""
    kernel = Kernel(4)
    desc = kernel.rig.requested()
    with refused(errno):
        write(kernel, desc, data, "smp_affinity_list")
    assert "f" == read(kernel, desc, "smp_affinity")


@pytest.mark.parametrize("name", ["smp_affinity", "smp_affinity_list"])
def test_more_than_4_mib_cannot_be_copied(name):
    """4194303 bytes pass, 4194304 give ENOMEM whatever they say (2.3, step 2)."""
    kernel = Kernel(2)
    desc = kernel.rig.requested()
    most = b"1\n".ljust((4 << 20) - 1, b"z")
    assert len(most) == write(kernel, desc, most, name)
    with refused(ENOMEM, "4194303"):
        write(kernel, desc, most + b"z", name)
    with refused(ENOMEM, "default_smp_affinity"):
        kernel.fs.write("/proc/irq/default_smp_affinity", most + b"z")


def test_two_writes_to_one_open_file_are_two_values(kernel):
    """2.3: every write(2) is a complete new value."""
    desc = kernel.rig.requested()
    with kernel.fs.open(f"/proc/irq/{desc.irq}/smp_affinity", "w") as handle:
        handle.write("1")
        with refused(EINVAL):
            handle.write("0\n")
    assert "01" == read(kernel, desc, "smp_affinity")


def test_pwrite_gives_espipe(kernel):
    """1.10: they are seq files."""
    desc = kernel.rig.requested()
    with kernel.fs.open(f"/proc/irq/{desc.irq}/smp_affinity", "w") as handle, refused(ESPIPE):
        handle.pwrite("1", 0)


def test_a_write_moves_where_the_next_interrupt_is_counted(kernel):
    """The path of an interrupt, from the host's signal to the count."""
    desc = kernel.rig.requested()
    kernel.rig.signal(7, read_cpu(kernel, desc))
    write(kernel, desc, "4\n")
    kernel.rig.signal(7, read_cpu(kernel, desc))
    assert [1, 0, 1, 0, 0, 0, 0, 0] == desc.kstat_irqs()


def read_cpu(kernel, desc):
    """Return the CPU that the chip delivers to."""
    return int(read(kernel, desc, "effective_affinity_list"))


def test_a_partly_offline_mask_is_stored_whole_and_shown_whole(kernel):
    """Trap 19; the chip sees online CPUs only."""
    desc = kernel.rig.requested()
    kernel.irq.online = 0x7F
    write(kernel, desc, "c0")
    assert ("c0", "40") == affinities(kernel, desc)
    with refused(EINVAL, "cpu 7 is offline", "online: 0-6"):
        write(kernel, desc, "80")
    assert ("c0", "40") == affinities(kernel, desc)


def test_what_the_chip_says_is_what_the_write_returns(kernel):
    """2.3, step 6; 2.8: an error changes nothing."""
    desc = kernel.rig.requested()
    kernel.rig.affinity_result = IrqError(EIO, "channel 7 is not open")
    with refused(EIO, "channel 7 is not open"):
        write(kernel, desc, "2")
    assert ("ff", "01") == affinities(kernel, desc)


def test_a_pending_move_shows_the_future_and_effective_the_present(kernel):
    """Trap 25: an x86 IRQ without IRQ_MOVE_PCNTXT moves with its next interrupt."""
    desc = kernel.rig.requested()
    kernel.irq.modify_status(desc.irq, clear=IRQ_MOVE_PCNTXT)
    write(kernel, desc, "10")
    assert ("10", "01") == affinities(kernel, desc)
    assert "4" == read(kernel, desc, "smp_affinity_list")
    kernel.irq.irq_move_irq(desc.irq)
    assert ("10", "10") == affinities(kernel, desc)


def test_an_irq_without_action_may_still_be_moved(kernel):
    """2.8, last row of the kinds."""
    desc = kernel.rig.requested()
    kernel.irq.free_irq(desc.irq, "heartbeat")
    write(kernel, desc, "2")
    assert "02" == read(kernel, desc, "smp_affinity")


def test_the_affinity_that_a_user_set_survives_free_and_request(kernel):
    """Trap 23."""
    desc = kernel.rig.requested()
    write(kernel, desc, "30")
    kernel.irq.free_irq(desc.irq, "heartbeat")
    kernel.irq.request_irq(desc.irq, kernel.rig.handler, 0, "heartbeat", "again")
    assert ("30", "10") == affinities(kernel, desc)


def test_a_disabled_irq_can_be_moved(kernel):
    """4.6: disabling is lazy and does not touch affinity."""
    desc = kernel.rig.requested()
    kernel.irq.disable_irq(desc.irq)
    kernel.rig.fire(desc)
    assert desc.istate & IRQS_PENDING
    write(kernel, desc, "2")
    assert ("02", "02") == affinities(kernel, desc)


def test_writes_from_another_thread_are_refused(kernel):
    """The control plane belongs to the thread that made the machine."""
    desc = kernel.rig.requested()
    errors = []

    def other():
        try:
            write(kernel, desc, "2")
        except IrqError as error:
            errors.append(error.errno)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert [EBUSY] == errors


# ---- IRQs that user space cannot move


def fixed_irqs(generation):
    """Yield a kernel, an IRQ that cannot be moved from user space, and a word of the reason."""
    kernel = Kernel(generation=generation)
    yield kernel, kernel.rig.requested(irq_set_affinity=None, name="irq_sim"), "cannot move"
    kernel = Kernel(generation=generation)
    yield kernel, kernel.rig.requested(flags=IRQF_NOBALANCING), "exempt from balancing"
    kernel = Kernel(generation=generation)
    managed = kernel.irq.irq_create_mapping(kernel.rig.domain, 7, affinity=0x0C, managed=True)
    kernel.irq.request_irq(managed, kernel.rig.handler, 0, "nvme", "nvme")
    yield kernel, kernel.irq.irq_to_desc(managed), "the kernel manages it"
    kernel = Kernel(generation=generation, arch="arm64")
    yield kernel, kernel.percpu(), "per-CPU"


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", ["smp_affinity", "smp_affinity_list"])
def test_a_fixed_irq_refuses_any_text_with_eio_and_since_6_12_with_eperm(generation, name):
    """Trap 18: tested before the text is looked at, so even rubbish and too much of it give this errno."""
    errno = EIO if generation == "v6.10" else EPERM
    for kernel, desc, reason in fixed_irqs(generation):
        before = read(kernel, desc, name)
        for data in (b"1", b"garbage", b"", b"z" * (4 << 20)):
            with refused(errno, f"irq {desc.irq}", reason):
                write(kernel, desc, data, name)
        assert before == read(kernel, desc, name)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_fixed_irqs_files_are_0644_and_since_6_12_0444(generation):
    """2.1 and 8."""
    perm = 0o644 if generation == "v6.10" else 0o444
    for kernel, desc, _ in fixed_irqs(generation):
        for name in ("smp_affinity", "smp_affinity_list"):
            assert stat.S_IFREG | perm == kernel.fs.stat(f"/proc/irq/{desc.irq}/{name}").st_mode


@pytest.mark.parametrize("generation", SINCE_6_12)
def test_the_mode_is_settled_when_the_directory_is_made(generation):
    """0444 stays when the IRQ becomes movable, and root can write then; 0644 stays when it no longer is."""
    kernel = Kernel(generation=generation)
    desc = kernel.rig.requested(flags=IRQF_NOBALANCING)
    path = f"/proc/irq/{desc.irq}/smp_affinity"
    kernel.irq.modify_status(desc.irq, clear=IRQ_NO_BALANCING)
    assert 1 == write(kernel, desc, "2")
    assert stat.S_IFREG | 0o444 == kernel.fs.stat(path).st_mode
    other = kernel.rig.requested(8)
    kernel.irq.modify_status(other.irq, set_=IRQ_NO_BALANCING)
    assert stat.S_IFREG | 0o644 == kernel.fs.stat(f"/proc/irq/{other.irq}/smp_affinity").st_mode
    with refused(EPERM):
        write(kernel, other, "2")


def test_a_per_cpu_irq_shows_the_default_mask_and_no_effective_one():
    """Trap 39."""
    kernel = Kernel(4, arch="arm64")
    desc = kernel.percpu()
    assert ("f", "0") == affinities(kernel, desc)
    assert "" == read(kernel, desc, "effective_affinity_list")


def test_read_only_files_open_for_writing_and_write_gives_eio(kernel):
    """2.1."""
    desc = kernel.rig.requested()
    for name in ("node", "spurious", "affinity_hint", "effective_affinity", "effective_affinity_list"):
        with kernel.fs.open(f"/proc/irq/{desc.irq}/{name}", "w") as handle, refused(EIO, name):
            handle.write("1")


def test_entries_cannot_be_made_or_removed(kernel):
    """2.1: mkdir ENOENT, unlink EPERM."""
    desc = kernel.rig.requested()
    with refused(ENOENT):
        kernel.fs.mkdir(f"/proc/irq/{desc.irq}/new")
    with refused(EPERM):
        kernel.fs.unlink(f"/proc/irq/{desc.irq}/smp_affinity")
    with refused(EPERM):
        kernel.fs.unlink(f"/proc/irq/{desc.irq}/heartbeat")


# ---- files that stay open


def test_an_open_file_of_a_freed_irq_gives_eio_and_its_path_enoent(kernel):
    """Trap 34; a new IRQ of the same number does not revive it."""
    desc = kernel.rig.requested()
    path = f"/proc/irq/{desc.irq}/smp_affinity"
    handle = kernel.fs.open(path, "r+")
    assert b"ff\n" == handle.read()
    kernel.irq.free_irq(desc.irq, "heartbeat")
    assert b"ff\n" == handle.pread(9, 0)
    kernel.irq.irq_dispose_mapping(desc.irq)
    with refused(ENOENT):
        kernel.fs.open(path)
    again = kernel.rig.requested()
    assert again.irq == desc.irq
    for call in (handle.read, lambda: handle.pread(9, 0), lambda: handle.write("1")):
        with refused(EIO):
            call()
    assert b"ff\n" == kernel.fs.read(path)


def test_a_directory_found_before_its_irq_was_freed_is_empty_then(kernel):
    """2.1: it goes when the descriptor is freed."""
    desc = kernel.rig.requested()
    directory = kernel.fs.lookup(f"/proc/irq/{desc.irq}")
    kernel.irq.free_irq(desc.irq, "heartbeat")
    kernel.irq.irq_dispose_mapping(desc.irq)
    assert [] == directory.entries()
    assert directory.lookup("node") is None


# ---- default_smp_affinity


def test_the_default_holds_for_irqs_that_come_later(kernel):
    """2.3: existing IRQs keep theirs."""
    first = kernel.rig.requested(1)
    assert 3 == kernel.fs.write("/proc/irq/default_smp_affinity", "c0\n")
    assert b"c0\n" == kernel.fs.read("/proc/irq/default_smp_affinity")
    assert ("ff", "01") == affinities(kernel, first)
    assert ("c0", "40") == affinities(kernel, kernel.rig.requested(2))


def test_startup_keeps_online_cpus_only(kernel):
    """Trap 24: default ff with CPU 7 offline starts as 7f."""
    kernel.irq.online = 0x7F
    assert ("7f", "01") == affinities(kernel, kernel.rig.requested())


@pytest.mark.parametrize(
    ("data", "errno"), [("0", EINVAL), ("", EINVAL), ("80", EINVAL), ("100", EOVERFLOW), ("0-3", EINVAL), ("g", EINVAL)]
)
def test_the_default_takes_masks_with_an_online_cpu_only(kernel, data, errno):
    """2.3, steps 4 and 5; mask syntax only."""
    kernel.irq.online = 0x7F
    with refused(errno):
        kernel.fs.write("/proc/irq/default_smp_affinity", data)
    assert b"ff\n" == kernel.fs.read("/proc/irq/default_smp_affinity")


def test_the_default_may_hold_offline_cpus(kernel):
    """2.11: startup drops them."""
    kernel.irq.online = 0x7F
    kernel.fs.write("/proc/irq/default_smp_affinity", "c0")
    assert b"c0\n" == kernel.fs.read("/proc/irq/default_smp_affinity")
    assert ("40", "40") == affinities(kernel, kernel.rig.requested())


def test_a_chip_that_forgets_its_effective_mask_shows_all_zero(kernel):
    """2.8: the core never derives one mask from the other (trap 21)."""
    chip = IrqChip("lazy", irq_set_affinity=lambda desc, mask, force: 0, irq_mask=nop, irq_unmask=nop)
    irq = kernel.irq.alloc_descs()
    kernel.irq.set_chip_and_handler(irq, chip, Flow.SIMPLE)
    kernel.irq.request_irq(irq, kernel.rig.handler, 0, "x")
    desc = kernel.irq.irq_to_desc(irq)
    assert ("ff", "00") == affinities(kernel, desc)
    assert "" == read(kernel, desc, "effective_affinity_list")


def test_sysfs_and_procfs_differ_in_how_they_refuse(kernel):
    """Opening a read-only file for writing: procfs lets root in, sysfs does not (2.1, 3.1)."""
    desc = kernel.rig.requested()
    kernel.fs.open(f"/proc/irq/{desc.irq}/node", "w").close()
    with refused(EACCES):
        kernel.fs.open(f"/sys/kernel/irq/{desc.irq}/type", "w")
