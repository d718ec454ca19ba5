"""What hypercalls answer, in register form, by profile (synic.md 7 and 16, rows 53 to 80)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

import pytest

from tests.hyperv.hv_rig import ALL, END, SIEF, SIM, SINT4, make, refused, switched_on
from vmbusirq.hyperv.cpuid import Feature, Features
from vmbusirq.hyperv.hypercall import VP_ANY, HvStatus, InvalidOpcode
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import PROFILES
from vmbusirq.hyperv.registers import Msr

GET, SET, POST, SIGNAL, FAST = 0x50, 0x51, 0x5C, 0x5D, 1 << 16
IN, OUT = 0x4000, 0x5000
MESSAGES, EVENTS, HOST_MESSAGES = 5, 6, 7  # connections
SELF, SELF_VP = (1 << 64) - 1, 0xFFFF_FFFE


def connected(profile: str = "tlfs", **more: object) -> Partition:
    """Return a partition with a guest message port 0x51, a guest event port of 8 flags from 100, and a host's port."""
    partition = switched_on(profile, **more)  # type: ignore[arg-type]
    partition.create_guest_message_port(0x51, 0, 4)
    partition.create_guest_event_port(0x52, 0, 4, 100, 8)
    partition.create_message_port(0x53)
    for connection, port in ((MESSAGES, 0x51), (EVENTS, 0x52), (HOST_MESSAGES, 0x53)):
        partition.connect(connection, port)
    return partition


def post(
    partition: Partition, connection: int = MESSAGES, message_type: int = 1, size: int = 5, *, at: int = IN, **more: int
) -> int:
    body = struct.pack("<IIII240s", connection, 0, message_type, size, b"hello")
    partition.memory.write(at, body[: END - at])
    return partition.hypercall(0, POST | more.get("control", 0), at)


def signal(partition: Partition, connection: int, flag: int = 0) -> int:
    return partition.hypercall(1, SIGNAL | FAST, connection | flag << 32)


def slot(partition: Partition, vp: int = 0) -> bytes:
    return partition.memory.read(SIM + 0x2000 * vp + 4 * 256, 256)


@pytest.mark.parametrize("profile", ALL)
def test_synic_054_055_a_switched_off_target(profile: str) -> None:
    """SCONTROL or SIEFP disabled: 0x18, flag 0 (T); OpenVMM tells nobody."""
    for msr, value in ((Msr.SCONTROL, 0), (Msr.SIEFP, SIEF)):
        partition = connected(profile)
        partition.vcpus[0].wrmsr(msr, value)
        status = signal(partition, EVENTS)
        if profile == "openvmm":
            assert HvStatus.SUCCESS == status
        else:
            assert HvStatus.INVALID_SYNIC_STATE == status
            assert () == partition.synic.flags_set(0, sint=4)
        partition.vcpus[0].wrmsr(msr, value | 1)
        assert HvStatus.SUCCESS == signal(partition, EVENTS)
        assert (100,) == partition.synic.flags_set(0, sint=4)


@pytest.mark.parametrize("profile", ALL)
def test_synic_058_base_flag_and_count(profile: str) -> None:
    """Flag 7 of 8 from 100 is 107; 8 is INVALID_PARAMETER."""
    partition = connected(profile)
    assert HvStatus.SUCCESS == signal(partition, EVENTS, 7) == signal(partition, EVENTS, 7)
    assert (107,) == partition.synic.flags_set(0, sint=4)
    for flag in (8, 2048, 0xFFFF):
        assert HvStatus.INVALID_PARAMETER == signal(partition, EVENTS, flag)
    assert (107,) == partition.synic.flags_set(0, sint=4)


def test_synic_053_058_flags_past_the_last_have_no_port() -> None:
    """2048 flags per SINT; EINVAL for who makes the port."""
    partition = make()
    partition.create_guest_event_port(1, 0, 4, 2047, 1)
    for base, count in ((2047, 2), (2048, 1), (-1, 1), (0, 0), (0, 2049)):
        refused(errno.EINVAL, partition.create_guest_event_port, 2, 0, 4, base, count)
    for vp, sint in ((2, 4), (-1, 4), (0, 0), (0, 16), (0xFFFF_FFFE, 4)):
        refused(errno.EINVAL, partition.create_guest_event_port, 2, vp, sint)
        refused(errno.EINVAL, partition.create_guest_message_port, 2, vp, sint)
    refused(errno.EINVAL, partition.create_guest_message_port, 2, 0, 4, 0)
    refused(errno.EEXIST, partition.create_guest_message_port, 1, 0, 4)
    refused(errno.EINVAL, partition.create_guest_message_port, 1 << 24, 0, 4)


@pytest.mark.parametrize("profile", ALL)
def test_synic_062_unknown_connections(profile: str) -> None:
    """0x12 for PostMessage (T Q O); SignalEvent 0x12 or 0x11 (D15)."""
    partition = connected(profile)
    for connection in (0x77, 0, 0xFF_FFFF):
        assert HvStatus.INVALID_CONNECTION_ID == post(partition, connection)
        assert PROFILES[profile].unknown_connection_status == signal(partition, connection)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize(("message_type", "expected"), [(0, 5), (0x8000_0010, 5), (0x7FFF_FFFF, 0), (1, 0)])
def test_synic_063_064_message_types(profile: str, message_type: int, expected: int) -> None:
    """0 and the hypervisor's own are refused."""
    partition = connected(profile)
    assert expected == post(partition, message_type=message_type)
    assert (0 if expected else message_type) == int.from_bytes(slot(partition)[:4], "little")


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("size", [0, 1, 240, 241, 0xFFFF_FFFF])
def test_synic_065_066_080_sizes_and_the_header(profile: str, size: int) -> None:
    """240 bytes at most (D16); size 0 is a message; the origin is the port's id."""
    partition = connected(profile)
    status = post(partition, size=size)
    if size > 240:
        assert PROFILES[profile].oversized_payload_status == status
        assert bytes(256) == slot(partition)
        return
    assert HvStatus.SUCCESS == status
    header = slot(partition)
    assert (1, size, 0, 0, 0x51) == struct.unpack("<IBBHQ", header[:16])
    assert b"hello"[:size].ljust(240, b"\0") == header[16:]


@pytest.mark.parametrize("profile", ALL)
def test_synic_067_068_where_the_input_lies(profile: str) -> None:
    """8-aligned, in one page (D17), in memory; both calls."""
    partition = connected(profile)
    straddles = PROFILES[profile].straddling_input_status
    for at, expected in ((IN + 4, 4), (IN + 1, 4), (IN + 4096 - 256, 0), (IN + 4096 - 248, straddles)):
        assert expected == post(partition, at=at)
    assert 4 == partition.hypercall(0, POST, END)
    assert 4 == partition.hypercall(0, SIGNAL, IN + 4)
    assert 4 == partition.hypercall(0, SIGNAL, 0xFFFF_FFFF_FFFF_FFF8)


@pytest.mark.parametrize("profile", ALL)
def test_synic_069_070_071_the_control_word(profile: str) -> None:
    """Rep counts and starts, variable headers, reserved bits: 3; unknown codes: 2; reserved bits come first."""
    partition = connected(profile)
    for control in (1 << 32, 1 << 48, 1 << 17, 1 << 27, 1 << 31, 1 << 44, 1 << 60):
        assert HvStatus.INVALID_HYPERCALL_INPUT == post(partition, control=control)
        assert HvStatus.INVALID_HYPERCALL_INPUT == partition.hypercall(0, SIGNAL | FAST | control, EVENTS)
    assert HvStatus.INVALID_HYPERCALL_CODE == partition.hypercall(0, 0x0FFF, 0)
    assert HvStatus.INVALID_HYPERCALL_INPUT == partition.hypercall(0, 0x0FFF | 1 << 27, 0)
    assert bytes(256) == slot(partition)


@pytest.mark.parametrize("profile", ALL)
def test_synic_072_without_privilege(profile: str) -> None:
    """ACCESS_DENIED before anything else that is wrong (T K)."""
    features = Features().minus(Feature.POST_MESSAGES)
    partition = connected(profile, features=features)
    assert HvStatus.ACCESS_DENIED == post(partition) == post(partition, 0x77, 0, control=1 << 27 | 1 << 32)
    assert HvStatus.SUCCESS == signal(partition, EVENTS)
    partition = connected(profile, features=Features().minus(Feature.SIGNAL_EVENTS, Feature.VP_REGISTERS))
    assert HvStatus.ACCESS_DENIED == signal(partition, EVENTS) == partition.hypercall(0, GET | 1 << 32, IN, OUT)
    assert HvStatus.SUCCESS == post(partition)


@pytest.mark.parametrize("profile", ALL)
def test_synic_075_076_connections_of_another_kind(profile: str) -> None:
    """0x11 for the wrong type and a deleted port; ids of more than 24 bits: 3 in KVM and QEMU, else unknown."""
    partition = connected(profile)
    for connection in (MESSAGES, HOST_MESSAGES):
        assert HvStatus.INVALID_PORT_ID == signal(partition, connection)
    assert HvStatus.INVALID_PORT_ID == post(partition, EVENTS)
    wide = HvStatus.INVALID_HYPERCALL_INPUT if profile.startswith(("kvm", "qemu")) else HvStatus.INVALID_CONNECTION_ID
    assert wide == signal(partition, 0x0100_0000 | EVENTS)
    partition.delete_port(0x52)
    partition.delete_port(0x51)
    assert HvStatus.INVALID_PORT_ID == signal(partition, EVENTS) == post(partition)


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("cpl", [1, 3])
def test_synic_077_user_mode(profile: str, cpl: int) -> None:
    """#UD and no status (T K)."""
    partition = connected(profile, features=Features(frozenset()).plus(Feature.SYNIC))
    for control in (POST, SIGNAL | FAST, 0x0FFF):
        with pytest.raises(InvalidOpcode) as fault:
            partition.hypercall(1, control, EVENTS, cpl=cpl)
        assert 1 == fault.value.vp
    assert () == partition.synic.flags_set(0, sint=4)


@pytest.mark.parametrize("profile", ALL)
def test_the_message_page_is_off(profile: str) -> None:
    """Row 34: 0x18; D6: SCONTROL alone is looked at by the TLFS only; OpenVMM fills the page all the same."""
    partition = connected(profile)
    vcpu = partition.vcpus[0]
    vcpu.wrmsr(Msr.SIMP, SIM)
    assert (0 if profile == "openvmm" else HvStatus.INVALID_SYNIC_STATE) == post(partition)
    partition = connected(profile)
    partition.vcpus[0].wrmsr(Msr.SCONTROL, 0)
    gated = PROFILES[profile].scontrol_gates_messages
    assert (HvStatus.INVALID_SYNIC_STATE if gated else 0) == post(partition)


@pytest.mark.parametrize("profile", ALL)
def test_synic_044_045_buffers_of_a_port(profile: str) -> None:
    """D14: 16 undelivered messages, the 17th is INSUFFICIENT_BUFFERS; QEMU stages one, OpenVMM any number.

    One that is delivered makes room.
    """
    partition = connected(profile)
    depth = {"qemu": 1, "openvmm": None}.get(profile, 16)
    taken = 1 + (200 if depth is None else depth)  # one lies in the slot
    assert [0] * taken == [post(partition) for _ in range(taken)]
    if depth is None:
        partition.delete_port(0x51)
        return
    assert HvStatus.INSUFFICIENT_BUFFERS == post(partition)
    partition.memory.write(SIM + 4 * 256, bytes(4))
    partition.vcpus[0].wrmsr(Msr.EOM, 0)
    partition.settle()
    assert [0, 0x13] == [post(partition), post(partition)]
    partition.delete_port(0x51)
    assert 0 == partition.messages_waiting


def test_synic_059_060_a_port_that_is_moved() -> None:
    """The new target is signalled; what is set on the old one stays there."""
    partition = switched_on(cpus=4)
    port = partition.create_guest_event_port(0x52, 0, 4)
    partition.connect(EVENTS, 0x52)
    assert HvStatus.SUCCESS == signal(partition, EVENTS)
    port.vp = 3
    assert HvStatus.SUCCESS == signal(partition, EVENTS)
    assert [(0,), (), (), (0,)] == [partition.synic.flags_set(vp, sint=4) for vp in range(4)]
    port.vp = 4
    assert HvStatus.INVALID_VP_INDEX == signal(partition, EVENTS)


def test_a_port_for_any_vp() -> None:
    """Who has SynIC and page on is a candidate; nobody: INVALID_VP_INDEX (synic.md 5.1)."""
    partition = switched_on()
    partition.create_guest_message_port(0x51, VP_ANY, 4)
    partition.create_guest_event_port(0x52, VP_ANY, 4)
    partition.connect(MESSAGES, 0x51)
    partition.connect(EVENTS, 0x52)
    partition.vcpus[0].wrmsr(Msr.SCONTROL, 0)
    assert HvStatus.SUCCESS == post(partition) == signal(partition, EVENTS)
    assert (bytes(256), b"hello") == (slot(partition, 0), slot(partition, 1)[16:21])
    assert [(), (0,)] == [partition.synic.flags_set(vp, sint=4) for vp in range(2)]
    partition.vcpus[1].wrmsr(Msr.SCONTROL, 0)
    assert HvStatus.INVALID_VP_INDEX == post(partition) == signal(partition, EVENTS)


# ---- registers of VPs (arm64's way to its SynIC)


def reps(count: int, start: int = 0) -> int:
    return count << 32 | start << 48


def header(vp: int = SELF_VP, partition_id: int = SELF, vtl: int = 0) -> bytes:
    return struct.pack("<QIB3x", partition_id, vp, vtl)


def assign(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<I12xQQ", name, value, 0) for name, value in pairs)


def names(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def call(partition: Partition, control: int, data: bytes, vp: int = 0) -> tuple[HvStatus, int]:
    partition.memory.write(IN, data)
    word = partition.hypercall(vp, control, IN, OUT)
    return HvStatus(word & 0xFFFF), word >> 32 & 0xFFF


def output(partition: Partition, count: int) -> Sequence[int]:
    return struct.unpack(f"<{2 * count}Q", partition.memory.read(OUT, 16 * count))[::2]


@pytest.mark.parametrize("arch", ["arm64", "x86"])
def test_registers_are_set_and_read_by_hypercall(arch: str) -> None:
    """Codes 0x50 and 0x51: any number of registers, of the caller or another VP."""
    partition = switched_on(arch=arch)
    assert (0, 2) == call(partition, SET | reps(2), header() + assign((0xA_0004, 0x18), (0xA_0005, 0x1_0000)), vp=1)
    assert 0x18 == partition.vcpus[1].rdmsr(SINT4)
    assert (0, 3) == call(partition, GET | reps(3), header(1) + names(0xA_0004, 0xA_0011, 0x9_0003))
    assert (0x18, 1, 1) == output(partition, 3)
    assert (0, 3) == call(partition, GET | reps(3, 2), header(0) + names(0xA_0004, 0xA_0011, 0x9_0003))
    assert (0x18, 1, 0) == output(partition, 3)


def test_registers_by_hypercall_that_are_refused() -> None:
    """What was done before the one that is refused is done, and counted."""
    partition = switched_on(arch="arm64")
    two = header() + assign((0xA_0004, 0x18), (0xA_0011, 2), (0xA_0005, 0x18))
    assert (HvStatus.INVALID_PARAMETER, 1) == call(partition, SET | reps(3), two)
    assert (0x18, 0x10000) == (partition.vcpus[0].rdmsr(SINT4), partition.vcpus[0].rdmsr(SINT4 + 1))
    assert (HvStatus.INVALID_PARAMETER, 1) == call(partition, GET | reps(2), header() + names(0xA_0004, 0xA_0015))
    assert (0x18,) == output(partition, 1)
    name = names(0xA_0004)
    for control, data, expected in (
        (GET, header() + name, HvStatus.INVALID_HYPERCALL_INPUT),
        (GET | reps(1, 1), header() + name, HvStatus.INVALID_HYPERCALL_INPUT),
        (GET | reps(1) | FAST, header() + name, HvStatus.INVALID_HYPERCALL_INPUT),
        (GET | reps(1), header(2) + name, HvStatus.INVALID_VP_INDEX),
        (GET | reps(1), header(partition_id=7) + name, HvStatus.ACCESS_DENIED),
        (GET | reps(1), header(vtl=1) + name, HvStatus.INVALID_PARAMETER),
        (GET | reps(1021), header() + name, HvStatus.INVALID_ALIGNMENT),
        (SET | reps(128), header(), HvStatus.INVALID_ALIGNMENT),
    ):
        assert expected == call(partition, control, data)[0]
    partition.memory.write(IN, header() + names(0xA_0004))
    for at in (OUT + 4, OUT + 4096 - 8, END):
        assert HvStatus.INVALID_ALIGNMENT == partition.hypercall(0, GET | reps(1), IN, at) & 0xFFFF


@pytest.mark.parametrize(("arch", "xmm", "expected"), [("arm64", False, 0), ("x86", True, 0), ("x86", False, 3)])
def test_a_register_is_set_by_registers(arch: str, xmm: bool, expected: int) -> None:
    """The fast form with six quadwords: X2 to X7 on arm64, XMM registers on x86 if they are offered."""
    features = Features(arch=arch) if xmm else Features(arch=arch).minus(Feature.XMM_INPUT)
    partition = switched_on(arch=arch, features=features)
    word = partition.hypercall(0, SET | FAST | reps(1), SELF, SELF_VP, more=(0xA_0004, 0, 0x18, 0))
    assert expected == word & 0xFFFF
    assert (0x18 if expected == 0 else 0x51) == partition.vcpus[0].rdmsr(SINT4)
