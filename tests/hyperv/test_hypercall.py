"""Hypercalls in register form: control word, where the input lies, statuses (synic.md 7.2 to 7.4 and 16)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.hypercall import Control, HvStatus
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition

POST, SIGNAL, FAST = 0x5C, 0x5D, 1 << 16
GPA = 0x5000
END = 1 << 20


@pytest.fixture
def partition() -> Iterator[Partition]:
    with GuestMemory(END) as memory:
        partition = Partition(Core(2, nr_irqs_max=1), memory)
        partition.create_message_port(1)
        partition.create_event_port(2)
        partition.connect(4, 1)
        partition.connect(0x2005, 2)
        yield partition


def post_input(connection: int = 4, message_type: int = 1, payload: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack("<IIII240s", connection, 0, message_type, len(payload) if size is None else size, payload)


def received(partition: Partition) -> list[bytes]:
    port = partition._ports._ports[1]
    return list(iter(port.receive, None))  # type: ignore[union-attr]


def test_a_message_comes_from_guest_memory(partition: Partition) -> None:
    """256 bytes at an 8-aligned address; as many bytes of payload as it says."""
    partition.memory.write(GPA + 8, post_input(payload=b"initiate contact"))
    assert 0 == partition.hypercall(0, POST, GPA + 8, 0)
    assert [b"initiate contact"] == received(partition)


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 0), (240, 0), (241, 5), (0xFFFF_FFFF, 5)])
def test_a_message_has_0_to_240_bytes(partition: Partition, size: int, expected: int) -> None:
    """Behaviours 65 and 66."""
    partition.memory.write(GPA, post_input(payload=bytes(range(240)), size=size))
    assert expected == partition.hypercall(1, POST, GPA, 0)
    assert ([] if expected else [bytes(range(size))]) == received(partition)


@pytest.mark.parametrize(
    ("connection", "message_type", "expected"),
    [
        (4, 0x7FFF_FFFF, HvStatus.SUCCESS),
        (0x77, 1, HvStatus.INVALID_CONNECTION_ID),
        (0, 1, HvStatus.INVALID_CONNECTION_ID),
        (0x0100_0004, 1, HvStatus.INVALID_CONNECTION_ID),
        (4, 0, HvStatus.INVALID_PARAMETER),
        (4, 0x8000_0010, HvStatus.INVALID_PARAMETER),
        (0x2005, 1, HvStatus.INVALID_PORT_ID),
    ],
)
def test_what_hv_post_message_answers(
    partition: Partition, connection: int, message_type: int, expected: HvStatus
) -> None:
    """Behaviours 62 to 64, 76: by register form and by call."""
    partition.memory.write(GPA, post_input(connection, message_type))
    assert expected == partition.hypercall(0, POST, GPA, 0)
    assert expected == partition.hv_post_message(connection, message_type, b"")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0x2005, HvStatus.SUCCESS),
        (0x77, HvStatus.INVALID_CONNECTION_ID),
        (0x0100_2005, HvStatus.INVALID_CONNECTION_ID),
        (1 << 32 | 0x2005, HvStatus.INVALID_PARAMETER),
        (0xFFFF << 32 | 0x2005, HvStatus.INVALID_PARAMETER),
        (4, HvStatus.INVALID_PORT_ID),
        (1 << 48 | 0x2005, HvStatus.INVALID_HYPERCALL_INPUT),
        (1 << 63 | 0x2005, HvStatus.INVALID_HYPERCALL_INPUT),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_what_hv_signal_event_answers(partition: Partition, value: int, expected: HvStatus, fast: bool) -> None:
    """Connection, flag and reserved bits of one quadword, in the register or in memory: the same."""
    partition.memory.write(GPA, value.to_bytes(8, "little"))
    assert expected == partition.hypercall(0, SIGNAL | fast * FAST, value if fast else GPA, 0)
    assert ([2] if expected == 0 else []) == [port.id for port in partition.take_events()]


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        (SIGNAL, HvStatus.SUCCESS),
        *((SIGNAL | 1 << bit, HvStatus.INVALID_HYPERCALL_INPUT) for bit in (*range(17, 64),)),
        (0x0FFF, HvStatus.INVALID_HYPERCALL_CODE),
        (0, HvStatus.INVALID_HYPERCALL_CODE),
        (0x0FFF | 1 << 27, HvStatus.INVALID_HYPERCALL_INPUT),
        (0x0FFF | 1 << 32, HvStatus.INVALID_HYPERCALL_CODE),
        (SIGNAL | 1 << 64, HvStatus.INVALID_HYPERCALL_INPUT),
    ],
)
def test_bits_of_the_control_word(partition: Partition, control: int, expected: HvStatus) -> None:
    """Behaviours 69 to 71: reserved bits, variable header, rep count, rep start; reserved bits come first."""
    partition.memory.write(GPA, (0x2005).to_bytes(8, "little"))
    assert expected == partition.hypercall(0, control, GPA, 0)


def test_the_control_word_taken_apart() -> None:
    """synic.md 7.2."""
    word = 0xA << 60 | 0x123 << 48 | 0x5 << 44 | 0x456 << 32 | 1 << 31 | 0x9 << 27 | 0x2AA << 17 | 1 << 16 | 0x5D
    assert Control(0x5D, True, 0x2AA, 0x456, 0x123, 0xA << 60 | 5 << 44 | 1 << 31 | 9 << 27) == Control.of(word)


@pytest.mark.parametrize(
    ("control", "gpa", "expected"),
    [
        (POST, GPA + 4, 4),
        (POST, GPA + 1, 4),
        (POST, GPA + 4096 - 256, 18),
        (POST, GPA + 4096 - 248, 4),
        (SIGNAL, GPA + 4096 - 8, 18),
        (SIGNAL, GPA + 4096 - 4, 4),
        (POST, END - 256, 18),
        (POST, END, 4),
        (SIGNAL, 1 << 60, 4),
        (SIGNAL, 1 << 64, 3),
        (SIGNAL, -8, 3),
    ],
)
def test_where_the_input_may_lie(partition: Partition, control: int, gpa: int, expected: int) -> None:
    """Behaviours 67 and 68: aligned, in one page, in memory; 18: read, and it names connection 0."""
    message = post_input(0)
    for at in (GPA + 4096 - 256, END - 256):
        partition.memory.write(at, message[:0] + struct.pack("<IIII", 0, 0, 1, 0))
    assert expected == partition.hypercall(0, control, gpa, 0)


def test_a_message_does_not_fit_the_registers(partition: Partition) -> None:
    """HvPostMessage has no fast form; and its spare word is reserved."""
    assert HvStatus.INVALID_HYPERCALL_INPUT == partition.hypercall(0, POST | FAST, 4, 0)
    partition.memory.write(GPA, struct.pack("<IIII240s", 4, 1, 1, 0, b""))
    assert HvStatus.INVALID_HYPERCALL_INPUT == partition.hypercall(0, POST, GPA, 0)


@pytest.mark.parametrize("vp", [-1, 2])
def test_a_vp_that_does_not_exist_makes_no_calls(partition: Partition, vp: int) -> None:
    """EINVAL: no status, because there is nobody to get it."""
    with pytest.raises(IrqError) as error:
        partition.hypercall(vp, SIGNAL | FAST, 0x2005, 0)
    assert errno.EINVAL == error.value.errno


def test_status_values() -> None:
    """synic.md 7.4."""
    assert {
        *{0: "SUCCESS", 2: "INVALID_HYPERCALL_CODE", 3: "INVALID_HYPERCALL_INPUT", 4: "INVALID_ALIGNMENT"}.items(),
        *{5: "INVALID_PARAMETER", 6: "ACCESS_DENIED", 8: "OPERATION_DENIED", 11: "INSUFFICIENT_MEMORY"}.items(),
        *{14: "INVALID_VP_INDEX", 17: "INVALID_PORT_ID", 18: "INVALID_CONNECTION_ID"}.items(),
        *{19: "INSUFFICIENT_BUFFERS", 24: "INVALID_SYNIC_STATE", 120: "TIMEOUT"}.items(),
    } == {(status.value, status.name) for status in HvStatus}
