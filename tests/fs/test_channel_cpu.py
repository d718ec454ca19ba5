"""channels/<relid>/cpu of /sys/bus/vmbus: what it takes, and what moves with it (vmbus.md 4.2, 4.3)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, EIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fs.bus import channel_dir, default, errno_of, show, small, store
from tests.fs.kernel import refused
from vmbusirq.errors import IrqError

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
    machine = small(design)
    asked = []
    modify = machine.host.modify_channel
    machine.host.modify_channel = lambda relid, vp: (asked.append((relid, vp)), modify(relid, vp))
    if not opened:
        machine.vmbus.close(machine.vmbus.channels[9])
    cpu = 0 if same else 2
    assert result == errno_of(lambda: store(machine, 9, str(cpu)))
    moved = result > 0 and not same
    assert ([(9, 2)] if moved else [], "2" if moved else "0") == (asked, show(machine, 9, "cpu"))


@pytest.mark.parametrize(("design", "errno"), [("legacy", EIO), ("rfc", EAGAIN), ("mgmt-irq-nostat", EAGAIN)])
def test_a_modifychannel_that_cannot_be_posted(design, errno):
    """4.2, row 10: EIO before the series, the post's own error with it; nothing has moved."""
    machine = small(design)

    def refuse(relid, vp):
        raise IrqError(EAGAIN, "host: no message buffer")

    machine.host.modify_channel = refuse
    with refused(errno):
        store(machine, 9, "2")
    assert ("0", 0) == (show(machine, 9, "cpu"), machine.host.channels[9].target_vp)


def test_a_cpu_whose_synic_goes_down():
    """4.2, row 12: EINVAL with channel IRQs; the target itself is not asked for (4.3)."""
    machine = small()
    machine.vmbus.synic_online &= ~0b100
    with refused(EINVAL, "SynIC"):
        store(machine, 9, "2")
    store(machine, 9, "3")
    machine.vmbus.synic_online &= ~0b1000
    assert 1 == store(machine, 9, "3")


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_moving_is_where_the_next_interrupt_is_counted(design):
    """The data plane follows: host target, guest's slot, tasklet on the new CPU."""
    machine = small(design)
    store(machine, 9, "2\n")
    machine.host.send(relid=9, packets=3)
    assert (9,) == machine.synic.flags_set(cpu=2)
    machine.settle()
    assert "1" == show(machine, 9, "interrupts")
    if design == "rfc":
        assert [0, 0, 1, 0, 0, 0] == machine.irq.counts[machine.vmbus.channels[9].irq].tolist()


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


class Model:
    """The channels of SMALL as vmbus.md 4.2 and 4.3 have them: who targets which CPU, and the cursor they share."""

    def __init__(self, targets):
        self.target = dict(targets)
        self.opened = dict.fromkeys(targets, True)
        self.counted = dict.fromkeys(targets, 0)
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
        (machine.vmbus.close if model.opened[relid] else machine.vmbus.open)(channel)
        model.opened[relid] = not model.opened[relid]
    elif model.opened[relid]:
        before = machine.irq.counts[channel.irq].copy()
        machine.host.send(relid=relid, packets=value)
        machine.settle()
        model.counted[relid] += 1
        there = [int(cpu == model.target[relid]) for cpu in range(6)]
        assert there == (machine.irq.counts[channel.irq] - before).tolist()


def compare_faces(machine, model):
    """Every face names the CPU that the model has."""
    for relid, cpu in model.target.items():
        irq = machine.vmbus.channels[relid].irq
        assert (str(cpu), str(model.counted[relid])) == (
            show(machine, relid, "cpu"),
            show(machine, relid, "interrupts"),
        )
        if model.opened[relid]:
            assert f"{cpu}\n".encode() == machine.fs.read(f"/proc/irq/{irq}/effective_affinity_list")
            assert cpu == machine.host.channels[relid].target_vp
    mapping = machine.fs.read(f"{channel_dir(machine, 9)}/../../channel_vp_mapping")
    assert "".join(f"{relid}:{cpu}\n" for relid, cpu in model.target.items()).encode() == mapping


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
    machine = small(engine=engine)
    model = Model({relid: channel.target_cpu for relid, channel in machine.vmbus.channels.items()})
    for write in writes:
        act(machine, model, *write)
        compare_faces(machine, model)
