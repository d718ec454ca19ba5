"""The two faces of affinity, row by row: channels/<relid>/cpu (vmbus.md 4.2) and smp_affinity[_list] (4.3).

A test is named after its row. The columns of 4.2 are ``legacy`` (v6.10), ``rfc`` (RFC patches 10 to 12, mended) and
``strict`` (as posted: 0 where the others return the bytes taken).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from errno import EAGAIN, EINVAL, EIO, ENOBUFS, EOVERFLOW, EPERM, ERANGE

import pytest

from tests.fs.bus import BUS, Scripted, errno_of, show, store
from tests.fs.kernel import refused
from tests.schedule import Blocked, Schedule
from vmbusirq import Machine
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.irq.settings import IRQ_MOVE_PCNTXT, IRQ_NO_BALANCING, IRQD_AFFINITY_SET
from vmbusirq.log import Level
from vmbusirq.scenario.schema import parse_scenario
from vmbusirq.vmbus.channel import ChannelState
from vmbusirq.wire.protocol import ModifyChannel, Version

COLUMNS = ("legacy", "rfc", "strict")
FACES = ("smp_affinity", "smp_affinity_list")
columns = pytest.mark.parametrize("column", COLUMNS)
faces = pytest.mark.parametrize("face", FACES)
KEYBOARD = {"keyboard": (9, 1)}
DISK = {"scsi": (9, 3)}


def machine(column="rfc", devices=KEYBOARD, *, cpus=6, present=5, isolated="4", version="5.3", late_us=0, **how):
    """Boot a guest of CPUs 0-5, of which 4 is isolated and 5 never comes; a keyboard, relid 9, is on CPU 0."""
    text = f"""
        cpus = {{ possible = {cpus}, present = {present}, isolated = "{isolated}" }}
        host = {{ version = "{version}", modify_delay_us = {late_us} }}
        """
    for name, (relid, count) in devices.items():
        text += f"""
        [[device]]
        name = "{name}"
        class = "{name}"
        [[channel]]
        device = "{name}"
        relid = {relid}
        count = {count}
        """
    design = "rfc" if column == "strict" else column
    made = Machine.load(parse_scenario(text, "rows"), design=design, strict_rfc=column == "strict", **how)
    made.boot()
    return made


def guest(column="rfc", **options):
    """Return a guest with a keyboard, relid 9, on CPU 0 of 4; its host is a script."""
    made = Scripted("rfc" if column == "strict" else column, strict_rfc=column == "strict", **options)
    made.offered("keyboard", 9)
    return made


def close(m, relid=9):
    """Unbind the driver: its channels are closed."""
    device = m.vmbus.channels[relid].device
    m.fs.write(f"{BUS}/drivers/{device.driver.name}/unbind", device.guid)


def write(m, mask, face="smp_affinity", relid=9):
    """Write a mask to one face of /proc/irq; return the bytes taken or the errno."""
    cpus = [cpu for cpu in range(m.irq.nr_cpus) if mask >> cpu & 1]
    text = f"{mask:x}" if face == "smp_affinity" else ",".join(map(str, cpus))
    taken = errno_of(lambda: m.fs.write(f"/proc/irq/{m.vmbus.channels[relid].irq}/{face}", text))
    return "all" if taken == len(text) else taken


def proc(m, name, relid=9):
    """Return a file of the channel's IRQ."""
    return m.fs.read(f"/proc/irq/{m.vmbus.channels[relid].irq}/{name}").decode()[:-1]


@dataclass(frozen=True)
class State:
    """What a write may change."""

    cpu: int
    affinity: int
    effective: int
    sent: int
    cursor: int
    marks: tuple[int, ...]
    is_set: bool

    @classmethod
    def of(cls, m, relid=9):
        channel, retarget = m.vmbus.channels[relid], m.vmbus.retarget
        desc = m.irq.irq_to_desc(channel.irq)
        return cls(
            channel.target_cpu,
            desc.affinity,
            desc.effective_affinity,
            retarget.modchan_sent,
            retarget._picker._cursor,
            tuple(retarget._assignment.allocated),
            bool(desc.state & IRQD_AFFINITY_SET),
        )


def forget_set(m, relid=9):
    """Take AFFINITY_SET back, which the hint of open has left, to see who sets it."""
    m.irq._modify_state(m.irq.irq_to_desc(m.vmbus.channels[relid].irq), clear=IRQD_AFFINITY_SET)


def done(column, text):
    """Return what a write to the cpu file returns that succeeds."""
    return 0 if column == "strict" else len(text)


def asked(scripted):
    """Return the moves that a scripted host was asked for."""
    scripted.settle()
    return [(message.child_relid, message.target_vp) for message in scripted.host.of_type(ModifyChannel)]


# ---- 4.2: channels/<relid>/cpu


@columns
def test_4_2_row_01_protocol_below_4_1_is_eio_whatever_is_written(column):
    """And 4.1 is not; opened and closed alike."""
    old, new = (guest(column, version=version) for version in (Version.V4_0, Version.V4_1))
    for text in ("2", "0", "abc", "99"):
        with refused(EIO, "4.1"):
            store(old, 9, text)
    assert done(column, "2") == store(new, 9, "2")
    assert ([], [(9, 2)]) == (asked(old), asked(new))
    assert ("0", "2") == (show(old, 9, "cpu"), show(new, 9, "cpu"))


@columns
@pytest.mark.parametrize("text", ["abc", "-1", "+1", "\n", " ", "\0" + "1"], ids=ascii)
def test_4_2_row_02_no_unsigned_decimal_is_eio(column, text):
    """sscanf("%u") finds no number."""
    m = machine(column)
    with refused(EIO, "is not a cpu"):
        store(m, 9, text)
    assert "0" == show(m, 9, "cpu")


@columns
@pytest.mark.parametrize(
    "text",
    ["3abc", "3 0", "3-1", " \t\n3\n", "00003", str((1 << 32) + 3), "3".ljust(4096)],
    ids=lambda t: ascii(t)[:20],
)
def test_4_2_row_03_trailing_junk_is_ignored(column, text):
    """So are blanks in front; a number wraps at 2**32."""
    m = machine(column)
    assert done(column, text) == store(m, 9, text)
    assert "3" == show(m, 9, "cpu")


@columns
@pytest.mark.parametrize("text", ["6", "7", "4294967295", "9" * 4096], ids=lambda text: text[:10])
def test_4_2_row_04_past_the_last_cpu_is_einval(column, text):
    """0x6 is 0, which is a CPU."""
    m = machine(column)
    with refused(EINVAL, "is past the last"):
        store(m, 9, text)
    assert done(column, "0x6") == store(m, 9, "0x6")
    assert "0" == show(m, 9, "cpu")


@columns
def test_4_2_row_05_an_isolated_cpu_is_einval(column):
    """Under the series the chip says so: AFFINITY_SET is set all the same."""
    m = machine(column)
    with refused(EINVAL, "isolated"):
        store(m, 9, "4")
    assert ("0", 0) == (show(m, 9, "cpu"), m.host.channels[9].target_vp)


@columns
def test_4_2_row_06_an_offline_cpu_is_einval(column):
    """One that never came, and one that has gone; it can be written when it is back."""
    m = machine(column)
    m.offline_cpu(3)
    for text in ("3", "5"):
        with refused(EINVAL, "offline"):
            store(m, 9, text)
    m.online_cpu(3)
    assert done(column, "3") == store(m, 9, "3")


@columns
def test_4_2_rows_05_and_06_come_before_the_state_of_the_channel(column):
    """A closed channel is EIO for a CPU that could be used only; rows 1 to 4 come before these."""
    m = machine(column)
    close(m)
    results = [errno_of(lambda text=text: store(m, 9, text)) for text in ("abc", "6", "4", "5", "3")]
    assert [-EIO, -EINVAL, -EINVAL, -EINVAL, -EIO] == results


@columns
def test_4_2_row_05_comes_before_row_07(column):
    """A channel that is on an isolated CPU cannot be written to it."""
    m = machine(column, isolated="0")
    with refused(EINVAL, "isolated"):
        store(m, 9, "0")


@columns
def test_4_2_row_07_the_same_cpu_sends_no_message(column):
    """Of an open channel."""
    g = guest(column)
    assert done(column, "0\n") == store(g, 9, "0\n")
    assert ("0", []) == (show(g, 9, "cpu"), asked(g))


@columns
def test_4_2_row_08_the_same_cpu_of_a_closed_channel(column):
    """EIO before the series; under it nobody asks for the state."""
    g = guest(column)
    g.vmbus.close(g.vmbus.channels[9])
    assert (-EIO if column == "legacy" else done(column, "0")) == errno_of(lambda: store(g, 9, "0"))
    assert ("0", []) == (show(g, 9, "cpu"), asked(g))


@columns
def test_4_2_row_09_another_cpu_of_a_closed_channel_is_eio(column):
    """Nothing is sent."""
    g = guest(column)
    g.vmbus.close(g.vmbus.channels[9])
    with refused(EIO, "not open"):
        store(g, 9, "2")
    assert ("0", []) == (show(g, 9, "cpu"), asked(g))


@columns
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (HvStatus.INVALID_CONNECTION_ID, EAGAIN),
        (HvStatus.INSUFFICIENT_BUFFERS, ENOBUFS),
        (HvStatus.INSUFFICIENT_MEMORY, ENOBUFS),
        (HvStatus.ACCESS_DENIED, EINVAL),
    ],
)
def test_4_2_row_10_a_message_that_cannot_be_posted(monkeypatch, column, status, error):
    """EIO before the series, the post's own error with it; nothing has moved, and the next write does it."""
    m = machine(column)
    with monkeypatch.context() as patch:
        patch.setattr(m.partition, "hv_post_message", lambda *_: status)
        with refused(EIO if column == "legacy" else error):
            store(m, 9, "2")
    m.settle()
    assert ("0", 0) == (show(m, 9, "cpu"), m.host.channels[9].target_vp)
    assert done(column, "2") == store(m, 9, "2")


@columns
def test_4_2_row_11_an_answer_with_a_status(column):
    """Before the series EIO and nothing has moved; with it the writer is gone, and the log says it."""
    g = guest(column)
    g.host.status[ModifyChannel] = 0xC0000001
    legacy = column == "legacy"
    assert (-EIO if legacy else done(column, "2")) == errno_of(lambda: store(g, 9, "2"))
    g.settle()
    assert ("0" if legacy else "2") == show(g, 9, "cpu")
    line = "hv_vmbus: Error status c0000001 in MODIFYCHANNEL response for relid 9"
    assert ([] if legacy else [line]) == g.log.texts(Level.ERR)


@columns
def test_4_2_row_12_the_synic_of_the_cpu_is_going_down(column):
    """RFC 12: EINVAL as soon as it has left synic_online. Before the series the write waits for cpus_read_lock."""
    m = machine(column)
    schedule = Schedule(m.partition.idle)
    offline = schedule.begin(m.hotplug.down(2)).to("has searched")
    writer = schedule.begin(m.vmbus.target_cpu_store_steps(m.vmbus.channels[9], b"2"))
    if column == "legacy":
        with pytest.raises(Blocked, match="cpus_read_lock"):
            writer.finish()
        offline.finish()
        with refused(EINVAL, "offline"):
            writer.finish()
    else:
        with refused(EINVAL, "SynIC"):
            writer.finish()
        offline.finish()
    assert ("0", 0b11011) == (show(m, 9, "cpu"), m.online_mask)
    m.online_cpu(2)
    assert done(column, "2") == store(m, 9, "2")


@columns
def test_4_2_row_12_a_cpu_that_stays_can_be_written_again(column):
    """The offline is refused because of another channel: the CPU is back in synic_online."""
    m = machine(column, {"keyboard": (9, 1), "mouse": (10, 1)})
    store(m, 10, "2")
    m.settle()
    with refused(16, "channels 10"):
        m.offline_cpu(2)
    assert done(column, "2") == store(m, 9, "2")


@columns
@pytest.mark.parametrize("text", ["2", "3\n"])
def test_4_2_row_13_success(column, text):
    """The bytes written, or 0 as posted; one message, and the host has moved."""
    g, m = guest(column), machine(column)
    for one in (g, m):
        assert done(column, text) == store(one, 9, text)
        assert text.strip() == show(one, 9, "cpu")
    assert [(9, int(text))] == asked(g)
    m.settle()
    assert int(text) == m.host.channels[9].target_vp


def test_4_2_row_13_as_posted_the_position_in_the_file_stays():
    """0 bytes consumed: a shell tries again."""
    m = machine("strict")
    with m.fs.open(f"{BUS}/devices/{m.vmbus.channels[9].device.guid}/channels/9/cpu", "r+") as handle:
        assert (0, 0) == (handle.write("1\n"), handle.position)


@columns
def test_4_2_a_channel_that_is_removed_while_the_write_waits(column):
    """EIO, and nothing is sent; by smp_affinity EINVAL, the chip is gone with the mapping."""
    m = machine(column)
    channel, schedule = m.vmbus.channels[9], Schedule(m.partition.idle)
    writers = [schedule.begin(m.vmbus.target_cpu_store_steps(channel, b"2"))]
    if column != "legacy":
        writers.append(schedule.begin(m.irq.irq_set_affinity_steps(channel.irq, 1 << 2)))
    m.detach(9)
    for writer, error in zip(writers, (EIO, EINVAL), strict=False):
        with refused(error):
            writer.finish()
    assert 0 == m.vmbus.retarget.modchan_sent


@pytest.mark.parametrize("column", ["rfc", "strict"])
def test_4_2_the_cpu_file_is_smp_affinity_with_one_cpu(column):
    """RFC patch 10: irq_set_affinity(cpumask_of(cpu)): all faces show it; the hint is the driver's and stays."""
    m = machine(column)
    store(m, 9, "2")
    shown = [proc(m, name) for name in (*FACES, "effective_affinity", "effective_affinity_list", "affinity_hint")]
    assert ["04", "2", "04", "2", "01"] == shown
    assert "all" == write(m, 0b1010)
    assert (proc(m, "effective_affinity_list"), "0a") == (show(m, 9, "cpu"), proc(m, "smp_affinity"))


# ---- 4.3: /proc/irq/N/smp_affinity[_list]


@faces
@pytest.mark.parametrize("why", ["no_irq_affinity", "exempt from balancing"])
@pytest.mark.parametrize(("generation", "error"), [("v6.10", EIO), ("v6.12", EPERM)])
def test_4_3_row_01_not_settable(face, why, generation, error):
    """Before the text is looked at; tests/fs/test_proc_irq.py has the other kinds. The cpu file does not ask."""
    m = machine(generation=generation)
    if why == "no_irq_affinity":
        m.irq.no_irq_affinity = True
    else:
        m.irq.modify_status(m.vmbus.channels[9].irq, set_=IRQ_NO_BALANCING)
    before = State.of(m)
    for text in ("2", "0", "rubbish", "ffffffffff"):
        with refused(error, why):
            m.fs.write(f"/proc/irq/{m.vmbus.channels[9].irq}/{face}", text)
    assert before == State.of(m)
    assert 1 == store(m, 9, "2")


@pytest.mark.parametrize(
    ("face", "text", "error"),
    [
        ("smp_affinity", "rubbish", EINVAL),
        ("smp_affinity", "0x4", EINVAL),
        ("smp_affinity", "40", EOVERFLOW),
        ("smp_affinity", "4,00000000", EOVERFLOW),
        ("smp_affinity_list", "f", EINVAL),
        ("smp_affinity_list", "3-1", EINVAL),
        ("smp_affinity_list", "6", ERANGE),
        ("smp_affinity_list", "4294967296", EOVERFLOW),
    ],
)
def test_4_3_row_02_what_cannot_be_parsed(face, text, error):
    """The parser's error; nobody else is asked, AFFINITY_SET stays."""
    m = machine()
    forget_set(m)
    before = State.of(m)
    with refused(error):
        m.fs.write(f"/proc/irq/{m.vmbus.channels[9].irq}/{face}", text)
    assert before == State.of(m)


@faces
@pytest.mark.parametrize("mask", [0, 1 << 5, 1 << 3 | 1 << 5])
def test_4_3_row_03_no_online_cpu(face, mask):
    """EINVAL before irq_set_affinity: AFFINITY_SET stays, too."""
    m = machine()
    m.offline_cpu(3)
    forget_set(m)
    before = State.of(m)
    assert -EINVAL == write(m, mask, face)
    assert before == State.of(m)
    assert "all" == write(m, mask | 1 << 2, face)


@faces
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("mask", [0b1, 0b1111, 0b11_0001, 0b11_1111], ids=bin)
def test_4_3_row_04_the_present_target_is_kept(face, is_open, mask):
    """No message, the cursor stays; affinity as written, offline and isolated CPUs included; effective the target."""
    m = machine()
    if not is_open:
        close(m)
    before = State.of(m)
    assert "all" == write(m, mask, face)
    assert State(0, mask, 1, before.sent, before.cursor, before.marks, True) == State.of(m)
    assert f"{mask:02x}" == proc(m, "smp_affinity")


def test_4_3_row_04_does_not_ask_for_the_synic():
    """synic_online is not consulted for the present target; for others it is."""
    m = machine()
    store(m, 9, "2")
    m.settle()
    m.vmbus.retarget.synic_online &= ~(1 << 2)
    assert "all" == write(m, 0b1100)
    assert (2, 0b1100) == (State.of(m).cpu, State.of(m).affinity)
    assert "all" == write(m, 1 << 3)
    assert -EINVAL == write(m, 1 << 2)


@faces
def test_4_3_row_05_isolated_cpus_only(face):
    """EINVAL; affinity and cursor stay; AFFINITY_SET is set all the same. An isolated present target counts as none."""
    m = machine()
    forget_set(m)
    before = State.of(m)
    assert -EINVAL == write(m, 1 << 4, face)
    assert replace(before, is_set=True) == State.of(m)
    on_isolated = machine(isolated="0")
    assert -EINVAL == write(on_isolated, 1, face)


@faces
def test_4_3_row_05_cpus_whose_synic_goes_down_only(face):
    """RFC 12. With another CPU in the mask that one is taken."""
    m = machine()
    forget_set(m)
    before = State.of(m)
    schedule = Schedule(m.partition.idle)
    offline = schedule.begin(m.hotplug.down(2)).to("has searched")
    assert -EINVAL == write(m, 1 << 2, face)
    assert -EINVAL == write(m, 1 << 2 | 1 << 4, face)
    assert replace(before, is_set=True) == State.of(m)
    assert "all" == write(m, 0b1100, face)
    assert (3, 0b1100) == (State.of(m).cpu, State.of(m).affinity)
    offline.finish()
    assert ("0c", "08") == (proc(m, "smp_affinity"), proc(m, "effective_affinity"))


@faces
def test_4_3_row_06_a_closed_channel(face):
    """EIO; nothing but AFFINITY_SET changes, and the cursor, which is moved before the state is looked at."""
    m = machine()
    close(m)
    forget_set(m)
    before = State.of(m)
    for cursor in (1, 2, 3, 1):
        assert -EIO == write(m, 0b1110, face)
        assert replace(before, is_set=True, cursor=cursor) == State.of(m)
    assert ("01", "0") == (proc(m, "smp_affinity"), show(m, 9, "cpu"))


@faces
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (HvStatus.INVALID_CONNECTION_ID, EAGAIN),
        (HvStatus.INSUFFICIENT_BUFFERS, ENOBUFS),
        (HvStatus.ACCESS_DENIED, EINVAL),
    ],
)
def test_4_3_row_07_the_post_fails(monkeypatch, face, status, error):
    """That error; nothing but AFFINITY_SET and the cursor changes, modchan_sent neither."""
    m = machine()
    forget_set(m)
    before = State.of(m)
    monkeypatch.setattr(m.partition, "hv_post_message", lambda *_: status)
    assert -error == write(m, 0b1100, face)
    assert replace(before, is_set=True, cursor=2) == State.of(m)


@faces
def test_4_3_row_07_a_protocol_that_has_no_modifychannel(face):
    """Below 4.1: EINVAL, and as above; the present target needs no message."""
    m = machine(version="4.0")
    forget_set(m)
    before = State.of(m)
    assert -EINVAL == write(m, 0b1100, face)
    assert replace(before, is_set=True, cursor=2) == State.of(m)
    assert "all" == write(m, 0b1101, face)
    assert replace(before, is_set=True, cursor=2, affinity=0b1101) == State.of(m)


@faces
@pytest.mark.parametrize("version", ["4.1", "5.2", "5.3"])
@pytest.mark.parametrize(("mask", "cpu"), [(0b1110, 1), (0b1100, 2), (0b11_1100, 2), (0b11_1000, 3)])
def test_4_3_row_08_success(face, version, mask, cpu):
    """Affinity as written, offline and isolated CPUs included; effective one CPU; an answer from 5.3 on."""
    m = machine(version=version)
    before = State.of(m)
    assert "all" == write(m, mask, face)
    assert State(cpu, mask, 1 << cpu, before.sent + 1, cpu, before.marks, True) == State.of(m)
    m.settle()
    assert cpu == m.host.channels[9].target_vp
    assert int(version == "5.3") == m.vmbus.retarget.modchan_completed
    assert (f"{cpu}", f"{1 << cpu:02x}") == (show(m, 9, "cpu"), proc(m, "effective_affinity"))


# ---- 4.3: choice of the CPU, order of tests, open, side effects


def test_4_3_choice_five_irqs_written_f0_after_boot():
    """One cursor for all channels: 4, 5, 6, 7, 4; and {0,2} with the cursor at 0 gives 2."""
    m = Machine.load("rfc-gen2-8vcpu")
    m.boot()
    relids = [relid for relid, channel in m.vmbus.channels.items() if channel.target_cpu < 4][:5]
    assert ["all"] * 5 == [write(m, 0xF0, relid=relid) for relid in relids]
    assert [4, 5, 6, 7, 4] == [m.vmbus.channels[relid].target_cpu for relid in relids]
    other = machine(devices=DISK, cpus=4, present=4, isolated="")
    assert (1, 0) == (other.vmbus.channels[10].target_cpu, State.of(other).cursor)
    assert "all" == write(other, 0b101, relid=10)
    assert 2 == other.vmbus.channels[10].target_cpu


def test_4_3_choice_wraps_to_the_lowest_of_the_mask():
    """Strictly greater than the cursor, else the lowest; row 4 does not move it."""
    m = machine(cpus=4, present=4, isolated="")
    for mask, cpu in [(0b1000, 3), (0b0110, 1), (0b1111, 1), (0b0001, 0), (0b0110, 1), (0b1101, 2), (0b0011, 0)]:
        assert "all" == write(m, mask)
        assert cpu == State.of(m).cpu


def test_4_3_order_no_channel_comes_first():
    """EINVAL and a line in the log, whatever the mask."""
    m = machine()
    irq = m.irq.irq_create_mapping(m.vmbus.domain, 77)
    m.irq.modify_status(irq, set_=IRQ_MOVE_PCNTXT)
    for mask in (0b1, 0b10000):
        with refused(EINVAL, "no channel"):
            m.irq.irq_set_affinity(irq, mask)
    assert ["hv_vmbus: Bad channel in vmbus_irq_set_affinity for relid 77"] * 2 == m.log.texts(Level.ERR)


@pytest.mark.parametrize("design", ["mgmt-irq", "mgmt-irq-nostat", "mgmt-irq-hidden"])
def test_the_irq_of_control_messages_stays_on_the_connect_cpu(design):
    """A mask with CPU 0 is stored, any other is EINVAL; nothing is left pending."""
    m = machine(design)
    irq = m.irq.irq_find_mapping(m.vmbus.domain, 0)
    with refused(EINVAL, "control messages"):
        m.fs.write(f"/proc/irq/{irq}/smp_affinity", "2")
    names = [f"/proc/irq/{irq}/{name}" for name in ("smp_affinity", "effective_affinity")]
    assert [b"01\n", b"01\n"] == [m.fs.read(name) for name in names]
    m.fs.write(names[0], "f")
    assert [b"0f\n", b"01\n"] == [m.fs.read(name) for name in names]


def test_4_3_order_of_the_callback(monkeypatch):
    """Isolation, present target, synic_online, choice, state, post: each error hides those behind it."""
    m = machine()
    monkeypatch.setattr(m.partition, "hv_post_message", lambda *_: HvStatus.INVALID_CONNECTION_ID)
    assert -EAGAIN == write(m, 1 << 2)  # the post
    m.vmbus.channels[9].state = ChannelState.OPEN
    assert -EIO == write(m, 1 << 2)  # the state
    m.vmbus.retarget.synic_online &= ~0b101
    assert -EINVAL == write(m, 1 << 2)  # synic_online
    assert "all" == write(m, 0b101)  # the present target
    m.vmbus.channels[9].target_cpu = 4
    assert -EINVAL == write(m, 1 << 4)  # isolation


def test_4_3_open_narrows_smp_affinity_to_the_target():
    """Row 4 at open time: startup's default mask contains the target; then set and hint. The cursor has not moved."""
    m = machine(devices=DISK)
    for relid, cpu in [(9, 0), (10, 1), (11, 2)]:
        mask = f"{1 << cpu:02x}"
        shown = [proc(m, name, relid) for name in ("smp_affinity", "effective_affinity", "affinity_hint")]
        assert [mask] * 3 == shown
    assert (0, 0) == (State.of(m).cursor, State.of(m).sent)


def test_4_3_open_again_after_a_move_narrows_anew():
    """A user's mask survives close, startup keeps it, and the hint narrows it to where the channel is now."""
    m = machine()
    assert "all" == write(m, 0b1110)
    m.settle()
    close(m)
    assert ("0e", "00") == (proc(m, "smp_affinity"), proc(m, "affinity_hint"))
    m.fs.write(f"{BUS}/drivers/hyperv_keyboard/bind", m.vmbus.channels[9].device.guid)
    assert ["02"] * 3 == [proc(m, name) for name in ("smp_affinity", "effective_affinity", "affinity_hint")]
    assert 1 == m.host.channels[9].target_vp


def test_4_3_open_on_an_isolated_target():
    """Both calls of open fail unseen: default smp_affinity, empty effective_affinity, and CPU 0 takes interrupts."""
    m = machine(isolated="0")
    shown = [proc(m, name) for name in (*FACES, "effective_affinity", "effective_affinity_list", "affinity_hint")]
    assert ["3f", "0-5", "00", "", "01"] == shown
    assert (1, "0") == (State.of(m).cursor, show(m, 9, "cpu"))  # startup had chosen CPU 1
    before = m.irq.counts[m.vmbus.channels[9].irq].copy()
    m.host.send(relid=9)
    m.settle()
    assert [1, 0, 0, 0, 0, 0] == (m.irq.counts[m.vmbus.channels[9].irq] - before).tolist()
    assert "all" == write(m, 0b1111)
    assert (2, 0b1111, 0b100) == (State.of(m).cpu, State.of(m).affinity, State.of(m).effective)


def test_4_3_side_effects_in_order(monkeypatch):
    """Post, modchan_sent, target_cpu, marks of init_vp_index, storvsc's callback, effective mask."""
    m = machine(devices=DISK)
    channel = m.vmbus.channels[10]
    stor = m.vmbus.devices.drivers["hv_storvsc"].devices[channel.device]
    retarget, desc = m.vmbus.retarget, m.irq.irq_to_desc(channel.irq)
    seen = []

    def spy(owner, name, what):
        real = getattr(owner, name)

        def call(*arguments):
            result = real(*arguments)
            state = retarget.modchan_sent, channel.target_cpu, 3 in stor.stor_chns, desc.effective_affinity
            seen.append((what, *state, retarget._assignment.allocated[0] >> 3 & 1))
            return result

        monkeypatch.setattr(owner, name, call)

    spy(m.partition, "hv_post_message", "post")
    spy(channel, "set_cpu", "target")
    spy(retarget._assignment, "mark", "mark")
    spy(channel.primary, "change_target_cpu", "storvsc")
    assert "all" == write(m, 1 << 3, relid=10)
    assert [
        ("post", 0, 1, False, 0b10, 0),
        ("target", 1, 3, False, 0b10, 0),
        ("mark", 1, 3, False, 0b10, 1),
        ("storvsc", 1, 3, True, 0b10, 1),
    ] == seen
    assert 0b1000 == desc.effective_affinity


@pytest.mark.parametrize("column", ["legacy", "rfc"])
def test_4_3_marks_follow_channels_of_performance_devices_only(column):
    """A CPU is given back when no other such channel is on it; a keyboard's move marks nothing."""
    m = machine(column, {"keyboard": (9, 1), "scsi": (10, 3)}, isolated="")
    marks = m.vmbus.retarget._assignment.allocated
    assert [0b111] == marks
    for relid, cpu, after in [(9, 4, 0b111), (10, 1, 0b110), (11, 3, 0b1110), (10, 2, 0b1100), (12, 0, 0b1101)]:
        store(m, relid, str(cpu))
        assert [after] == marks, (relid, cpu)


@pytest.mark.parametrize("column", ["legacy", "rfc"])
def test_4_3_storvsc_follows_its_channels(column):
    """stor_chns[old] is another channel there, else old leaves alloced_cpus and what is not in it is forgotten."""
    m = machine(column, DISK, isolated="")
    first, second, third = (m.vmbus.channels[relid] for relid in (9, 10, 11))
    stor = m.vmbus.devices.drivers["hv_storvsc"].devices[first.device]
    stor.channel_of(4)  # a cached choice for a CPU without channel
    assert {0, 1, 2, 4} == set(stor.stor_chns)
    store(m, 10, "0")  # nobody is left on 1; 0 is the second's now
    assert ({0: second, 2: third}, {0, 2}) == (stor.stor_chns, stor.alloced_cpus)
    store(m, 10, "3")  # the first is left on 0
    assert ({0: first, 2: third, 3: second}, {0, 2, 3}) == (stor.stor_chns, stor.alloced_cpus)
    store(m, 9, "2")  # 2 is the first's now
    assert ({2: first, 3: second}, {2, 3}) == (stor.stor_chns, stor.alloced_cpus)
    store(m, 9, "0")  # and the third's again
    assert ({0: first, 2: third, 3: second}, {0, 2, 3}) == (stor.stor_chns, stor.alloced_cpus)


# ---- 4.4: the host's half


@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("version", ["4.1", "5.2", "5.3"])
@pytest.mark.parametrize("column", ["legacy", "rfc"])
def test_4_4_the_old_cpu_serves_and_counts_what_comes_before_the_host_has_moved(column, version, engine):
    """Interrupts on a CPU that is not target_cpu are normal. Before the series, from 5.3 on, the write waits."""
    m = machine(column, version=version, late_us=300, engine=engine)
    channel, start = m.vmbus.channels[9], m.now
    row = m.irq.counts[channel.irq] if column == "rfc" else None
    before = None if row is None else row.copy()
    interrupts = channel.stats.interrupts
    store(m, 9, "2")
    waits = column == "legacy" and version == "5.3"
    assert (3000 if waits else 0) == m.now - start
    for _ in range(0 if waits else 2):
        m.host.send(relid=9)
        assert (0, (9,), ()) == (m.host.channels[9].target_vp, m.synic.flags_set(0), m.synic.flags_set(2))
        m.settle()
    m.clock.advance(3000)
    m.settle()
    m.host.send(relid=9)
    assert (2, (9,)) == (m.host.channels[9].target_vp, m.synic.flags_set(2))
    m.settle()
    assert (1 if waits else 3) == channel.stats.interrupts - interrupts
    if row is not None:
        assert [2, 0, 1, 0, 0, 0] == (row - before).tolist()
    assert 0 == channel.ring_in.bytes_to_read


def test_4_4_a_flag_that_was_set_before_the_move_is_served_by_the_old_cpu():
    """It stays in the old CPU's page; the answer does not wait for it."""
    m = machine()
    before = m.irq.counts[m.vmbus.channels[9].irq].copy()
    m.host.send(relid=9)
    assert "all" == write(m, 1 << 2)
    assert (9,) == m.synic.flags_set(0)
    m.settle()
    assert [1, 0, 0, 0, 0, 0] == (m.irq.counts[m.vmbus.channels[9].irq] - before).tolist()


def test_check_19_a_second_modifychannel_while_the_host_is_busy_with_the_first():
    """From 5.3 on it is dropped: one answer, sent - completed = 1 for ever, and host and guest disagree; before not."""
    for version, vp, answers in (("5.3", 2, 1), ("5.2", 3, 0)):
        m = machine(version=version, late_us=300)
        assert ["all", "all"] == [write(m, 1 << cpu) for cpu in (2, 3)]
        for _ in range(3):
            m.settle()
            m.clock.advance(3000)
        retarget = m.vmbus.retarget
        assert (2, answers, 3, vp) == (
            retarget.modchan_sent,
            retarget.modchan_completed,
            State.of(m).cpu,
            m.host.channels[9].target_vp,
        )


def test_4_4_the_lag_of_a_host_can_be_changed_while_it_runs():
    """HostOptions are a value: another takes its place; a move under way keeps its time."""
    m = machine()
    m.host.options = replace(m.host.options, modify_delay_ticks=500)
    assert "all" == write(m, 1 << 2)
    m.settle()
    m.host.options = replace(m.host.options, modify_delay_ticks=0)
    m.clock.advance(499)
    m.settle()
    assert 0 == m.host.channels[9].target_vp
    m.clock.advance(1)
    m.settle()
    assert 2 == m.host.channels[9].target_vp


@pytest.mark.parametrize("column", ["legacy", "rfc"])
@pytest.mark.parametrize("version", ["5.2", "5.3"])
def test_4_4_a_rescinded_sub_channel_that_its_primary_keeps_open(column, version):
    """No row asks for rescinds: the message goes out and the target moves, so that the old CPU can go offline.

    Before the series, from 5.3 on, an answer would be waited for that no host gives.
    """
    m = machine(column, DISK, version=version)
    m.host.rescind(11)
    m.settle()
    assert m.vmbus.channels[11].rescinded
    if (column, version) == ("legacy", "5.3"):
        with refused(EIO, "rescinded"):
            store(m, 11, "3")
        return
    assert 1 == store(m, 11, "3")
    m.settle()
    m.offline_cpu(2)
    assert 0b11011 == m.online_mask
