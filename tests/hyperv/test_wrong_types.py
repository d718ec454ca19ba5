"""What is no number and no bytes: refused in words, and everything goes on as before."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.hyperv.vp_rig import SINT, VpRig
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.hypercall import HvStatus
from vmbusirq.hyperv.messages import Buffers
from vmbusirq.hyperv.registers import Msr


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc")])
def test_any_bytes_are_a_payload(data: bytes) -> None:
    """As far as Python calls them bytes-like."""
    rig = VpRig()
    assert HvStatus.SUCCESS == rig.partition.messages.post(0, SINT, 1, data)
    assert b"abc" == rig.message()


@pytest.mark.parametrize("data", ["text", 5, None])
def test_a_payload_that_is_no_bytes_is_not_queued(data: Any) -> None:
    """The queue is as it was."""
    rig = VpRig()
    for queue in (rig.partition.messages.post, rig.partition.messages.deposit):
        with pytest.raises(TypeError):
            queue(0, SINT, 1, data)
    assert (0, HvStatus.SUCCESS) == (rig.waiting(), rig.post(b"fine"))


def longer() -> bytes:
    return bytes(300)


def none_at_all() -> Any:
    return None


@pytest.mark.parametrize(("make", "error"), [(longer, IrqError), (none_at_all, TypeError)])
def test_a_payload_that_cannot_be_made_leaves_its_queue(make: Callable[[], bytes], error: type[Exception]) -> None:
    """Those behind it are delivered, and its buffer is free."""
    rig, buffers = VpRig(), Buffers(1)
    with pytest.raises(error):
        rig.partition.messages.post(0, SINT, 1, make, buffers=buffers)
    assert (0, 0, HvStatus.SUCCESS) == (buffers.used, rig.waiting(), rig.post(b"fine"))
    assert b"fine" == rig.message()


@pytest.mark.parametrize("value", [1.5, "1", None, -1, 1 << 64])
def test_a_register_takes_numbers_of_64_bits(value: Any) -> None:
    """EINVAL, and the register keeps its old value."""
    vcpu = VpRig().vcpu()
    for msr in (Msr.GUEST_OS_ID, Msr.SCONTROL, Msr.SINT0 + SINT, Msr.STIMER0_COUNT):
        before = vcpu.rdmsr(msr)
        with pytest.raises(IrqError) as refused:
            vcpu.wrmsr(msr, value)
        assert (errno.EINVAL, before) == (refused.value.errno, vcpu.rdmsr(msr))


@pytest.mark.parametrize("msr", ["x", 1.5, None, -1, 1 << 32])
def test_a_register_is_named_by_a_number_of_32_bits(msr: Any) -> None:
    """EINVAL, not a #GP: no instruction can ask for it."""
    vcpu = VpRig().vcpu()
    for access in (vcpu.rdmsr, lambda number: vcpu.wrmsr(number, 0)):
        with pytest.raises(IrqError, match="no MSR number"):
            access(msr)


def test_a_hypercall_has_numbers_in_its_registers() -> None:
    """EINVAL."""
    partition = VpRig().partition
    wrong: Any
    for wrong in ("x", 5.0, None):
        for arguments in ((wrong, 5), (0x1005D, wrong), (0x1005D, 5, wrong)):
            with pytest.raises(IrqError, match="is in no register"):
                partition.hypercall(0, *arguments)


def test_a_guest_is_suspended_for_a_time() -> None:
    """EINVAL for a negative one."""
    with pytest.raises(IrqError, match="cannot suspend the guest for -1 ticks"):
        VpRig().partition.suspend_guest(-1)
