"""Hypercalls of the guest in register form: control word, input, result word (TLFS; synic.md 7.2 to 7.4).

The layouts of HvCallGetVpRegisters and HvCallSetVpRegisters are those of ``include/hyperv/hvgdk_mini.h``, v6.15.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.cpuid import Feature
from vmbusirq.limits import MSG_PAYLOAD

if TYPE_CHECKING:
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = [
    "HVCALL_GET_VP_REGISTERS",
    "HVCALL_POST_MESSAGE",
    "HVCALL_SET_VP_REGISTERS",
    "HVCALL_SIGNAL_EVENT",
    "VP_ANY",
    "VP_SELF",
    "Control",
    "HvStatus",
    "HypercallRefused",
    "Hypercalls",
    "InvalidOpcode",
]

HVCALL_GET_VP_REGISTERS: Final = 0x50
HVCALL_SET_VP_REGISTERS: Final = 0x51
VP_ANY: Final = 0xFFFF_FFFF
VP_SELF: Final = 0xFFFF_FFFE

HVCALL_POST_MESSAGE: Final = 0x5C
HVCALL_SIGNAL_EVENT: Final = 0x5D

_HV_PAGE: Final = 4096
_FAST: Final = 1 << 16
_RESERVED: Final = 0xF << 60 | 0xF << 44 | 0x1F << 27  # 31 calls a nested hypervisor: there is none
_POST_MESSAGE: Final = struct.Struct(f"<IIII{MSG_PAYLOAD}s")  # connection, reserved, type, size, payload
_SIGNAL_EVENT: Final = struct.Struct("<IHH")  # connection, flag, reserved
_VP: Final = struct.Struct("<QIB3s")  # partition, VP, VTL, reserved
_NAME: Final = struct.Struct("<I")
_VALUE: Final = struct.Struct("<QQ")
_ASSIGNMENT: Final = struct.Struct("<I12xQQ")  # name, value
_PARTITION_SELF: Final = (1 << 64) - 1
_FAST_MOST: Final = 14  # quadwords: RDX, R8 and six XMM registers; X2 to X15


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


class InvalidOpcode(Exception):
    """#UD: the guest takes the fault, and there is no status (a hypercall from user mode).

    Attributes:
        vp: on which VP.
    """

    def __init__(self, vp: int, cpl: int) -> None:
        super().__init__(f"vp {vp}: hypercalls are made at CPL 0, not {cpl}: invalid opcode")
        self.vp: Final = vp


@dataclass(frozen=True, slots=True)
class _Call:
    """What is fixed of one call.

    Attributes:
        run: carries it out: (caller, input, reps, rep_start) to status, reps completed and output.
        privilege: the bit without which it is ACCESS_DENIED.
        header: bytes of its input; of a rep call, before the first element.
        element, output: of a rep call, bytes of each element and of what is answered to each; 0: no rep call.
    """

    run: Callable[[Vcpu, bytes, int, int], _Outcome]
    privilege: Feature
    header: int
    element: int = 0
    output: int = 0

    def size(self, word: Control) -> int:
        """Return the bytes of input that a control word asks for."""
        return self.header + self.element * word.rep_count


_Outcome: TypeAlias = tuple[HvStatus, int, bytes]


class Hypercalls:
    """The hypercalls of one partition, in register form."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        privilege = Feature.VP_REGISTERS
        self._calls = {
            HVCALL_POST_MESSAGE: _Call(self._post_message, Feature.POST_MESSAGES, _POST_MESSAGE.size),
            HVCALL_SIGNAL_EVENT: _Call(self._signal_event, Feature.SIGNAL_EVENTS, _SIGNAL_EVENT.size),
            HVCALL_GET_VP_REGISTERS: _Call(self._get_registers, privilege, _VP.size, _NAME.size, _VALUE.size),
            HVCALL_SET_VP_REGISTERS: _Call(self._set_registers, privilege, _VP.size, _ASSIGNMENT.size),
        }

    def make(self, vcpu: Vcpu, control: int, registers: Sequence[int], cpl: int) -> int:
        """Carry one out.

        Args:
            vcpu: who makes it.
            control: the control word.
            registers: of the memory form the guest-physical addresses of input and output; of the fast form the
                input itself, two or more quadwords.
            cpl: at which privilege level.
        Returns:
            The result word: the status in bits 15:0, the reps completed in 43:32.
        Raises:
            InvalidOpcode: it is made in user mode.
        """
        if cpl:
            raise InvalidOpcode(vcpu.index, cpl)
        word = Control.of(control)
        call = self._calls.get(word.code)
        # KVM's order: privilege, reserved bits, whether it is a rep or variable call, then the call
        if call is not None and not self._partition.features.has(call.privilege):
            return HvStatus.ACCESS_DENIED
        if word.reserved or control >> 64 or any(not 0 <= value < 1 << 64 for value in registers):
            return HvStatus.INVALID_HYPERCALL_INPUT
        if call is None:
            return HvStatus.INVALID_HYPERCALL_CODE
        reps_fit = word.rep_start < word.rep_count if call.element else not (word.rep_count or word.rep_start)
        if word.variable or not reps_fit:
            return HvStatus.INVALID_HYPERCALL_INPUT
        data = self._input(word, registers, call)
        if isinstance(data, HvStatus):
            return data
        status, reps, output = call.run(vcpu, data, word.rep_count, word.rep_start)
        if output and not self._answer(registers[1] + word.rep_start * call.output, output):
            return HvStatus.INVALID_ALIGNMENT
        return status | reps << 32

    def _input(self, word: Control, registers: Sequence[int], call: _Call) -> bytes | HvStatus:
        size = call.size(word)
        if word.fast:
            return self._fast_input(registers, call, size)
        if registers[0] % 8:
            return HvStatus.INVALID_ALIGNMENT
        if registers[0] % _HV_PAGE + size > _HV_PAGE:
            return HvStatus(self._partition.profile.straddling_input_status)
        if registers[1] % 8 and call.output:
            return HvStatus.INVALID_ALIGNMENT
        if call.output and registers[1] % _HV_PAGE + call.output * word.rep_count > _HV_PAGE:
            return HvStatus(self._partition.profile.straddling_input_status)
        try:
            return self._partition.memory.read(registers[0], size)
        except IrqError:
            return HvStatus.INVALID_ALIGNMENT  # as KVM has it for memory that cannot be read

    def _fast_input(self, registers: Sequence[int], call: _Call, size: int) -> bytes | HvStatus:
        """Two quadwords for everybody, X2 and X3 on arm64; twelve more by XMM registers on x86, if they are offered.

        On arm64 the same number by the X registers that follow: no call that is known here fits more.
        """
        partition = self._partition
        usable = _FAST_MOST if partition.core.arch == "arm64" or partition.features.has(Feature.XMM_INPUT) else 2
        data = b"".join(value.to_bytes(8, "little") for value in registers[:usable])
        # an answer would be left in registers, too: no call that has one is made like this
        return HvStatus.INVALID_HYPERCALL_INPUT if size > len(data) or call.output else data[:size]

    def _answer(self, gpa: int, output: bytes) -> bool:
        try:
            self._partition.memory.write(gpa, output)
        except IrqError:
            return False
        return True

    def _post_message(self, _vcpu: Vcpu, data: bytes, _reps: int, _start: int) -> _Outcome:
        connection_id, reserved, message_type, size, payload = _POST_MESSAGE.unpack(data)
        if reserved:
            return HvStatus.INVALID_HYPERCALL_INPUT, 0, b""
        if size > MSG_PAYLOAD:
            return HvStatus(self._partition.profile.oversized_payload_status), 0, b""
        return self._partition.hv_post_message(connection_id, message_type, payload[:size]), 0, b""

    def _signal_event(self, _vcpu: Vcpu, data: bytes, _reps: int, _start: int) -> _Outcome:
        connection_id, flag, reserved = _SIGNAL_EVENT.unpack(data)
        if reserved:
            return HvStatus.INVALID_HYPERCALL_INPUT, 0, b""
        return self._partition.hv_signal_event(connection_id, flag), 0, b""

    # ---- registers of VPs

    def _target(self, vcpu: Vcpu, header: bytes) -> Vcpu | HvStatus:
        partition_id, vp, vtl, reserved = _VP.unpack(header)
        if reserved != bytes(3):
            return HvStatus.INVALID_HYPERCALL_INPUT
        if partition_id != _PARTITION_SELF:
            return HvStatus.ACCESS_DENIED
        if vtl:
            return HvStatus.INVALID_PARAMETER
        if vp == VP_SELF:
            return vcpu
        vcpus = self._partition.vcpus
        return vcpus[vp] if vp < len(vcpus) else HvStatus.INVALID_VP_INDEX

    def _get_registers(self, vcpu: Vcpu, data: bytes, reps: int, start: int) -> _Outcome:
        target = self._target(vcpu, data[: _VP.size])
        if isinstance(target, HvStatus):
            return target, start, b""
        output = b""
        for rep in range(start, reps):
            (name,) = _NAME.unpack_from(data, _VP.size + rep * _NAME.size)
            try:
                output += _VALUE.pack(target.get_vp_register(name), 0)
            except HypercallRefused as refused:
                return refused.status, rep, output
        return HvStatus.SUCCESS, reps, output

    def _set_registers(self, vcpu: Vcpu, data: bytes, reps: int, start: int) -> _Outcome:
        target = self._target(vcpu, data[: _VP.size])
        if isinstance(target, HvStatus):
            return target, start, b""
        for rep in range(start, reps):
            name, low, high = _ASSIGNMENT.unpack_from(data, _VP.size + rep * _ASSIGNMENT.size)
            try:
                if high:
                    raise HypercallRefused(HvStatus.INVALID_PARAMETER, f"VP register {name:#x} has 64 bits")
                target.set_vp_register(name, low)
            except HypercallRefused as refused:
                return refused.status, rep, b""
        return HvStatus.SUCCESS, reps, b""
