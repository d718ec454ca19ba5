"""Hypercalls of the guest in register form: control word, input, result word (TLFS; synic.md 7.2 to 7.4)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from vmbusirq.errors import IrqError
from vmbusirq.limits import MSG_PAYLOAD

__all__ = ["HVCALL_POST_MESSAGE", "HVCALL_SIGNAL_EVENT", "Control", "HvStatus", "HypercallRefused", "hypercall"]

HVCALL_POST_MESSAGE: Final = 0x5C
HVCALL_SIGNAL_EVENT: Final = 0x5D

_HV_PAGE: Final = 4096
_FAST: Final = 1 << 16
_RESERVED: Final = 0xF << 60 | 0xF << 44 | 0x1F << 27  # 31 calls a nested hypervisor: there is none
_POST_MESSAGE: Final = struct.Struct(f"<IIII{MSG_PAYLOAD}s")  # connection, reserved, type, size, payload
_SIGNAL_EVENT: Final = struct.Struct("<IHH")  # connection, flag, reserved


class HvStatus(IntEnum):
    """What a hypercall answers, bits 15:0 of the result word."""

    SUCCESS = 0
    INVALID_HYPERCALL_CODE = 2
    INVALID_HYPERCALL_INPUT = 3
    INVALID_ALIGNMENT = 4
    INVALID_PARAMETER = 5
    ACCESS_DENIED = 6
    OPERATION_DENIED = 8
    INSUFFICIENT_MEMORY = 11
    INVALID_VP_INDEX = 14
    INVALID_PORT_ID = 17
    INVALID_CONNECTION_ID = 18
    INSUFFICIENT_BUFFERS = 19
    INVALID_SYNIC_STATE = 24
    TIMEOUT = 120


class HypercallRefused(Exception):
    """A call ends with a status other than SUCCESS.

    Attributes:
        status: which.
    """

    def __init__(self, status: HvStatus, why: str) -> None:
        super().__init__(f"{why} ({status.name})")
        self.status: Final = status


@dataclass(frozen=True, slots=True)
class Control:
    """The control word, taken apart.

    Attributes:
        code: which call.
        fast: the input is in the registers, not in memory.
        variable: variable header size in 8-byte units.
        rep_count, rep_start: of a rep hypercall.
        reserved: the bits that must be zero, where they stand.
    """

    code: int
    fast: bool
    variable: int
    rep_count: int
    rep_start: int
    reserved: int

    @classmethod
    def of(cls, word: int) -> Control:
        """Take a control word apart."""
        return cls(
            code=word & 0xFFFF,
            fast=bool(word & _FAST),
            variable=word >> 17 & 0x3FF,
            rep_count=word >> 32 & 0xFFF,
            rep_start=word >> 48 & 0xFFF,
            reserved=word & _RESERVED,
        )


class Calls(Protocol):
    """Who carries the calls out: a partition."""

    def hv_post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """HvPostMessage."""

    def hv_signal_event(self, connection_id: int, flag: int = 0) -> HvStatus:
        """HvSignalEvent."""


def hypercall(calls: Calls, read: Callable[[int, int], bytes], control: int, value: int) -> int:
    """Carry out one hypercall.

    Args:
        calls: what it does.
        read: guest-physical memory; EFAULT outside.
        control: the control word.
        value: the input's guest-physical address; the input itself in the fast form.
    Returns:
        The result word: the status, no reps.
    """
    word = Control.of(control)
    # KVM's order: reserved bits, then whether it is a rep or variable call, then the call
    if word.reserved or control >> 64 or not 0 <= value < 1 << 64:
        return HvStatus.INVALID_HYPERCALL_INPUT
    sizes = {HVCALL_POST_MESSAGE: _POST_MESSAGE.size, HVCALL_SIGNAL_EVENT: _SIGNAL_EVENT.size}
    if word.code not in sizes:
        return HvStatus.INVALID_HYPERCALL_CODE
    if word.variable or word.rep_count or word.rep_start:
        return HvStatus.INVALID_HYPERCALL_INPUT
    data = _input(read, word.fast, value, sizes[word.code])
    if isinstance(data, HvStatus):
        return data
    return _post_message(calls, data) if word.code == HVCALL_POST_MESSAGE else _signal_event(calls, data)


def _input(read: Callable[[int, int], bytes], fast: bool, value: int, size: int) -> bytes | HvStatus:
    if fast:
        return value.to_bytes(8, "little") if size == 8 else HvStatus.INVALID_HYPERCALL_INPUT
    if value % 8 or value % _HV_PAGE + size > _HV_PAGE:
        return HvStatus.INVALID_ALIGNMENT
    try:
        return read(value, size)
    except IrqError:
        return HvStatus.INVALID_ALIGNMENT  # as KVM has it for memory that cannot be read


def _post_message(calls: Calls, data: bytes) -> HvStatus:
    connection_id, reserved, message_type, size, payload = _POST_MESSAGE.unpack(data)
    if reserved:
        return HvStatus.INVALID_HYPERCALL_INPUT
    if size > MSG_PAYLOAD:
        return HvStatus.INVALID_PARAMETER
    return calls.hv_post_message(connection_id, message_type, payload[:size])


def _signal_event(calls: Calls, data: bytes) -> HvStatus:
    connection_id, flag, reserved = _SIGNAL_EVENT.unpack(data)
    return HvStatus.INVALID_HYPERCALL_INPUT if reserved else calls.hv_signal_event(connection_id, flag)
