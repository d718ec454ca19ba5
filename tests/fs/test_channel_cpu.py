"""channels/<relid>/cpu of /sys/bus/vmbus: what it takes, and what moves with it (vmbus.md 4.2, 4.3)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, EIO, ENOBUFS

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fs.bus import BUS, Scripted, channel_dir, default, errno_of, show, small, store
from tests.fs.kernel import refused
from vmbusirq import Machine
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.scenario.schema import parse_scenario
from vmbusirq.wire.protocol import ModifyChannel, Version

TEXTS = [
    ("abc", -EIO),  # 2
    ("-1", -EIO),
    ("+1", -EIO),
    ("\n", -EIO),
    ("\0" + "1", -EIO),
    ("3abc", 3),  # 3
    ("3 0", 3),
    (" \t\n3\n", 3),
    ("0x3", 0),
    ("00003", 3),
    (str((1 << 32) + 3), 3),  # sscanf has no overflow
    ("4294967295", -EINVAL),  # 4
    ("6", -EINVAL),
    ("9" * 4096, -EINVAL),
    ("4", -EINVAL),  # 5: isolated
    ("5", -EINVAL),  # 6: offline
    ("1", 1),  # 13
]


@pytest.mark.parametrize("design", ["rfc", "legacy", "mgmt-irq"])
@pytest.mark.parametrize(("text", "result"), TEXTS, ids=lambda value: ascii(value)[:20])
def test_what_cpu_takes(design, text, result):
    """4.2, rows 2 to 6 and 13: the same in both worlds, the byte count on success (the RFC as posted returned 0)."""
    machine = small(design)
    expected = (result, 0) if result < 0 else (len(text), result)
    assert expected == (errno_of(lambda: store(machine, 9, text)), machine.vmbus.channels[9].target_cpu)
    assert str(expected[1]) == show(machine, 9, "cpu")


def test_an_empty_write_never_gets_to_the_driver_and_a_long_one_in_part():
    """fs/sysfs/file.c and fs/kernfs/file.c: a store sees 1 to 4096 bytes; the driver's own answer to "" is EIO."""
    machine = small()
    assert 0 == store(machine, 9, "")
    assert 4096 == store(machine, 9, "3".ljust(5000))
    assert "3" == show(machine, 9, "cpu")
    with refused(EIO, "channel 9"):
        machine.vmbus.target_cpu_store(machine.vmbus.channels[9], b"")
    with refused(EINVAL):
        machine.vmbus.target_cpu_store(machine.vmbus.channels[9], b"9" * 100_000)


def keyboard(design="rfc", **options):
    """Return a guest with a keyboard, relid 9, on CPU 0 of 4; its host is a script."""
    guest = Scripted(design, **options)
    guest.offered("keyboard", 9)
    return guest


@pytest.mark.parametrize(
    ("design", "opened", "same", "result"),
    [
        ("legacy", True, True, 1),  # 7
        ("rfc", True, True, 1),
        ("legacy", False, True, -EIO),  # 8
        ("rfc", False, True, 1),
        ("legacy", False, False, -EIO),  # 9
        ("rfc", False, False, -EIO),
        ("legacy", True, False, 1),  # 13
        ("rfc", True, False, 1),
    ],
)
def test_same_cpu_or_another_open_or_not(design, opened, same, result):
    """4.2, rows 7 to 9 and 13; a message goes out only when an open channel moves."""
    guest = keyboard(design)
    if not opened:
        guest.vmbus.close(guest.vmbus.channels[9])
    cpu = 0 if same else 2
    assert result == errno_of(lambda: store(guest, 9, str(cpu)))
    guest.settle()
    moved = result > 0 and not same
    asked = [(message.child_relid, message.target_vp) for message in guest.host.of_type(ModifyChannel)]
    assert ([(9, 2)] if moved else [], "2" if moved else "0") == (asked, show(guest, 9, "cpu"))


@pytest.mark.parametrize("cpu", ["0", "2"])
def test_strict_rfc_takes_0_bytes(cpu):
    """4.2, rows 7 and 13 and 10.2: the store of the RFC as posted returns 0 where it succeeds; errors are the same."""
    guest = keyboard(strict_rfc=True)
    assert (0, cpu) == (store(guest, 9, f"{cpu}\n"), show(guest, 9, "cpu"))
    assert -EIO == errno_of(lambda: store(guest, 9, "abc"))
    assert 2 == store(keyboard("legacy", strict_rfc=True), 9, f"{cpu}\n")
    with guest.fs.open(f"{channel_dir(guest, 9)}/cpu", "r+") as handle:
        assert (0, 0) == (handle.write("1\n"), handle.position)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
@pytest.mark.parametrize("version", [Version.V4_0, Version.V4_1, Version.V5_2, Version.V5_3])
def test_the_protocol_version(design, version):
    """4.2, row 1: EIO below 4.1, whatever is written; 4.4: an answer comes from 5.3 on."""
    guest = keyboard(design, version=version)
    if version < Version.V4_1:
        for text in ("2", "0", "abc", "99"):
            with refused(EIO, "4.1"):
                store(guest, 9, text)
    else:
        store(guest, 9, "2")
    guest.settle()
    moved = version >= Version.V4_1
    assert [9] * moved == [message.child_relid for message in guest.host.of_type(ModifyChannel)]
    assert "2" if moved else "0" == show(guest, 9, "cpu")
    answered = guest.vmbus.retarget.modchan_completed
    assert int(design == "rfc" and version == Version.V5_3) == answered


@pytest.mark.parametrize(
    ("design", "status", "errno"),
    [
        ("legacy", HvStatus.INSUFFICIENT_BUFFERS, EIO),
        ("rfc", HvStatus.INVALID_CONNECTION_ID, EAGAIN),
        ("rfc", HvStatus.INSUFFICIENT_BUFFERS, ENOBUFS),
        ("rfc", HvStatus.ACCESS_DENIED, EINVAL),
        ("mgmt-irq-nostat", HvStatus.INVALID_CONNECTION_ID, EAGAIN),
    ],
)
def test_a_modifychannel_that_cannot_be_posted(monkeypatch, design, status, errno):
    """4.2, row 10: EIO before the series, the post's own error with it; nothing has moved."""
    guest = keyboard(design)
    monkeypatch.setattr(guest.partition, "hv_post_message", lambda *_: status)
    with refused(errno):
        store(guest, 9, "2")
    assert ("0", 0) == (show(guest, 9, "cpu"), guest.host.targets[9])


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_a_modifychannel_that_the_host_refuses(design):
    """4.2, row 11: before the series EIO and nothing has moved; with it the writer is gone, and the log says it."""
    guest = keyboard(design)
    guest.host.status[ModifyChannel] = 0xC0000001
    assert (-EIO if design == "legacy" else 1) == errno_of(lambda: store(guest, 9, "2"))
    guest.settle()
    assert ("0" if design == "legacy" else "2") == show(guest, 9, "cpu")
    said = [entry for entry in guest.log if "Error status" in entry.text]
    assert int(design == "rfc") == len(said)


def test_a_cpu_whose_synic_goes_down():
    """4.2, row 12: EINVAL with channel IRQs; the target itself is not asked for (4.3)."""
    guest = keyboard()
    guest.vmbus.retarget.synic_online &= ~0b100
    with refused(EINVAL, "SynIC"):
        store(guest, 9, "2")
    store(guest, 9, "3")
    guest.vmbus.retarget.synic_online &= ~0b1000
    assert 1 == store(guest, 9, "3")


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_moving_is_where_the_next_interrupt_is_counted(design):
    """The data plane follows: host target, guest's slot, tasklet on the new CPU."""
    machine = small(design)
    before = int(show(machine, 9, "interrupts"))
    store(machine, 9, "2\n")
    machine.settle()
    counts = None if design == "legacy" else machine.irq.counts[machine.vmbus.channels[9].irq].copy()
    machine.host.send(relid=9, packets=3)
    assert (9,) == machine.synic.flags_set(cpu=2)
    machine.settle()
    assert str(before + 1) == show(machine, 9, "interrupts")
    if counts is not None:
        now = machine.irq.counts[machine.vmbus.channels[9].irq]
        assert [0, 0, 1, 0, 0, 0] == (now - counts).tolist()


def test_the_write_is_a_write_to_smp_affinity_with_one_cpu():
    """RFC patch 10: irq_set_affinity(cpumask_of(cpu)); /proc/irq shows the same mask as asked for and effective."""
    machine = default()
    store(machine, 14, "6\n")
    here = f"/proc/irq/{machine.vmbus.channels[14].irq}"
    assert [b"40\n", b"6\n", b"40\n", b"6\n"] == [
        machine.fs.read(f"{here}/{name}")
        for name in ("smp_affinity", "smp_affinity_list", "effective_affinity", "effective_affinity_list")
    ]
    machine.fs.write(f"{here}/smp_affinity_list", "2\n")
    assert "2" == show(machine, 14, "cpu")
    assert b"14:2\n23:2\n" == machine.fs.read(f"{channel_dir(machine, 14)}/../../channel_vp_mapping")


def test_moves_keep_the_books_of_init_vp_index():
    """4.3: a performance channel's move changes which CPUs the next offers find taken, in both designs alike."""
    taken = []
    for design in ("rfc", "legacy"):
        machine = default(design)
        for relid, cpu in [(15, 7), (19, 7), (20, 1)]:
            store(machine, relid, str(cpu))
        taken.append([machine.attach("netvsc", relid).target_cpu for relid in range(100, 108)])
    assert taken[0] == taken[1]


TWO = """
[cpus]
possible = 6
present = 5
isolated = "4"
nodes = ["0-2", "3-5"]

[[device]]
name = "mouse"
class = "mouse"

[[device]]
name = "keyboard"
class = "keyboard"

[[channel]]
device = "mouse"
relid = 9

[[channel]]
device = "keyboard"
relid = 10
"""


class Model:
    """The channels of TWO as vmbus.md 4.2 and 4.3 have them: who targets which CPU, and the cursor they share."""

    def __init__(self, targets):
        self.target = dict(targets)
        self.opened = dict.fromkeys(targets, True)
        self.cursor = 0

    def move(self, relid, mask):
        """Return 0 or the errno of a request for these CPUs; 0 to 3 can be used."""
        usable = [cpu for cpu in range(4) if mask >> cpu & 1]
        if not usable:
            return EINVAL
        if self.target[relid] not in usable:
            self.cursor = next((cpu for cpu in usable if cpu > self.cursor), usable[0])
            if not self.opened[relid]:
                return EIO
            self.target[relid] = self.cursor
        return 0


def act(machine, model, what, relid, value):
    """Do one thing to machine and model, and compare what came of it."""
    channel = machine.vmbus.channels[relid]
    if what == "cpu":
        assert (-model.move(relid, 1 << value) or 1) == errno_of(lambda: store(machine, relid, str(value)))
    elif what == "mask":
        path, text = f"/proc/irq/{channel.irq}/smp_affinity", f"{value:02x}"
        assert (-model.move(relid, value) or 2) == errno_of(lambda: machine.fs.write(path, text))
    elif what == "toggle":
        driver = {9: "hid_hyperv", 10: "hyperv_keyboard"}[relid]
        verb = "unbind" if model.opened[relid] else "bind"
        machine.fs.write(f"{BUS}/drivers/{driver}/{verb}", channel.device.guid)
        model.opened[relid] = not model.opened[relid]
    elif model.opened[relid]:
        machine.settle()  # the host has heard of the last move
        before = machine.irq.counts[channel.irq].copy()
        machine.host.send(relid=relid, packets=value)
        machine.settle()
        there = [int(cpu == model.target[relid]) for cpu in range(6)]
        assert there == (machine.irq.counts[channel.irq] - before).tolist()


def compare_faces(machine, model):
    """Every face names the CPU that the model has."""
    machine.settle()
    for relid, cpu in model.target.items():
        channel = machine.vmbus.channels[relid]
        mapping = machine.fs.read(f"{channel_dir(machine, relid)}/../../channel_vp_mapping")
        assert (str(cpu), f"{relid}:{cpu}\n".encode()) == (show(machine, relid, "cpu"), mapping)
        assert str(channel.stats.interrupts) == show(machine, relid, "interrupts")
        if model.opened[relid]:
            assert f"{cpu}\n".encode() == machine.fs.read(f"/proc/irq/{channel.irq}/effective_affinity_list")
            assert cpu == machine.host.channels[relid].target_vp


WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("cpu"), st.sampled_from((9, 10)), st.integers(0, 6)),
        st.tuples(st.just("mask"), st.sampled_from((9, 10)), st.integers(0, 63)),
        st.tuples(st.just("toggle"), st.sampled_from((9, 10)), st.just(0)),
        st.tuples(st.just("send"), st.sampled_from((9, 10)), st.integers(1, 3)),
    ),
    max_size=25,
)


@given(writes=WRITES, engine=st.sampled_from(["fast", "linux"]))
def test_both_faces_stay_in_step(writes, engine):
    """Any writes to cpu and to smp_affinity: both faces, the mapping and the host agree with a plain model."""
    machine = Machine.load(parse_scenario(TWO, "two"), engine=engine)
    machine.boot()
    model = Model({relid: channel.target_cpu for relid, channel in machine.vmbus.channels.items()})
    for write in writes:
        act(machine, model, *write)
        compare_faces(machine, model)
