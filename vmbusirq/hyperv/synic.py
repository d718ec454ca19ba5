"""A CPU's synthetic interrupt controller as the hypervisor's callers see it: event flags and message slots.

See TLFS chapter 11.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.profiles import PROFILES, Profile
from vmbusirq.hyperv.registers import Msr
from vmbusirq.limits import MSG_PAYLOAD, SINT_FLAGS, SINT_VMBUS, SINTS

if TYPE_CHECKING:
    from vmbusirq.hyperv.memory import GuestMemory
    from vmbusirq.hyperv.vcpu import Vcpu

__all__ = ["Synic", "policy_of"]


def policy_of(profile: Profile) -> int:
    """Return what a profile says about SINTs as C wants it, bits of ``enum vi_synic_policy``."""
    choices = (
        (profile.scontrol_gates_messages, lib.VI_SYNIC_CONTROL_GATES_MESSAGES),
        (profile.scontrol_reset and not profile.needs_activation, lib.VI_SYNIC_CONTROL_AT_RESET),
        (profile.flag_to_masked == "set", lib.VI_SYNIC_MASKED_TAKES_FLAGS),
        (profile.flag_to_masked == "dropped", lib.VI_SYNIC_QUIET_FLAGS | lib.VI_SYNIC_PRIVATE_PAGES),
        (profile.message_to_masked == "dropped", lib.VI_SYNIC_MASKED_LOSES_MESSAGES),
        (not profile.polling_silences, lib.VI_SYNIC_POLLING_INTERRUPTS),
    )
    return sum(bits for chosen, bits in choices if chosen)


class Synic:
    """The SynICs of all CPUs of one partition.

    Args:
        core: their CPUs.
        profile: what differs between implementations.
    """

    def __init__(self, core: Core, profile: Profile = PROFILES["tlfs"]) -> None:
        self._core = core
        self._memory: GuestMemory | None = None
        self._last_sint: dict[tuple[int, int], int] = {}
        lib.vi_synic_set_policy(core.handle, policy_of(profile))

    def lie_in(self, memory: GuestMemory) -> None:
        """Pages will lie in this memory: it stays as long as they may, and when it is closed they leave it.

        What is signalled after that goes to pages that no guest sees.
        """
        self._memory = memory
        core = self._core  # not self, which has the memory
        machine_is_there = [True]  # the garbage collector finalizes the two in any order

        def leave(base: Any, size: int) -> None:
            if machine_is_there:
                lib.vi_synic_leave_memory(core.handle, base, size)

        core.before_end.append(machine_is_there.clear)
        memory.before_close.append(leave)

    def registers(self, cpu: int) -> Any:
        """Return the ``struct vi_synic_registers`` of a CPU, to look at. EINVAL: no such CPU."""
        return lib.vi_synic_registers(self._core.handle, self._cpu(cpu, "synic: no registers"))

    def set_register(self, vcpu: Vcpu, msr: int, value: int, pages: Sequence[Any | None]) -> None:
        """Let SCONTROL, SIEFP, SIMP or a SINT have this value from now on: signals and messages go by it.

        Args:
            vcpu: whose.
            msr: which.
            value: as the guest has it.
            pages: where event flags and messages are, ``uint8_t *``; None: nowhere, whatever the register says.
        """
        machine, cpu = self._core.handle, vcpu.index
        what = f"synic: cannot set msr {msr:#x} of cpu {cpu}"
        if msr in _PAGES:
            setter, place = _PAGES[msr]
            if pages[place] is None:
                check(setter(machine, cpu, value & ~1), what)
            check(lib.vi_synic_set_pages(machine, cpu, *(page or ffi.NULL for page in pages)), what)
            if pages[place] is not None:
                check(setter(machine, cpu, value), what)
        elif msr == Msr.SCONTROL:
            check(lib.vi_synic_set_control(machine, cpu, value), what)
        else:
            sint = msr - Msr.SINT0
            check(lib.vi_synic_set_sint(machine, cpu, sint, value), what)
            if not value & lib.VI_SINT_MASKED:
                self._last_sint[cpu, value & lib.VI_SINT_VECTOR] = sint

    def reset(self, cpu: int) -> None:
        """Take the registers of a CPU to their reset values and empty its pages. EINVAL: no such CPU."""
        self._raise(lib.vi_synic_reset(self._core.handle, cpu), f"synic: cannot reset cpu {cpu}", cpu)
        for place in [place for place in self._last_sint if place[0] == cpu]:
            del self._last_sint[place]

    def sints_of(self, cpu: int, vector: int, *, last: bool = False) -> list[int]:
        """Return the unmasked SINTs that request ``vector``; ``last``: only the one that was programmed last."""
        registers = self.registers(cpu)
        found = [
            sint
            for sint, value in enumerate(ffi.unpack(registers.sint, SINTS))
            if not value & lib.VI_SINT_MASKED and value & lib.VI_SINT_VECTOR == vector
        ]
        return [sint for sint in found if not last or sint == self._last_sint.get((cpu, vector), sint)]

    def signal(self, cpu: int, flag: int, sint: int = SINT_VMBUS) -> bool:
        """Set an event flag.

        Returns:
            True if the flag was newly set, so that the SINT's vector was requested; False if it was set already.
        Raises:
            IrqError: EINVAL for a CPU, SINT or flag that does not exist; ENXIO when the SynIC is off or the SINT
                masked: the flag is untouched.
        """
        what = f"synic: cannot set flag {flag} of sint {sint} on cpu {cpu}"
        if not (0 <= flag < SINT_FLAGS and 0 <= sint < SINTS):
            raise IrqError(errno.EINVAL, f"{what}: flags are 0 to {SINT_FLAGS - 1}, SINTs 0 to {SINTS - 1} (EINVAL)")
        return bool(self._raise(lib.vi_synic_signal(self._core.handle, self._cpu(cpu, what), sint, flag), what, cpu))

    def post(self, cpu: int, payload: bytes, message_type: int = lib.VI_MSG_VMBUS, sint: int = SINT_VMBUS) -> bool:
        """Put a message into the slot of ``sint``.

        Returns:
            True if it is in the slot; False if the slot is busy: its pending bit is set now, try again after EOM.
        Raises:
            IrqError: EMSGSIZE for more than 240 bytes, EINVAL and ENXIO as in :meth:`signal`.
        """
        what = self.check_message(cpu, payload, message_type, sint)
        result = lib.vi_synic_post(self._core.handle, cpu, sint, message_type, payload, len(payload))
        if result == -errno.EAGAIN:
            return False
        self._raise(result, what, cpu)
        return True

    def takes_messages(self, cpu: int, sint: int) -> bool:
        """Return whether a message posted now would not be refused with ENXIO. EINVAL: no such CPU or SINT."""
        what = f"synic: no sint {sint} on cpu {cpu}"
        return bool(self._raise(lib.vi_synic_takes_messages(self._core.handle, cpu, sint), what, cpu))

    def deposit(self, cpu: int, sint: int, message_type: int, origin: int, payload: bytes, how: int) -> int:
        """Put a message into a slot: what ``vi_synic_deposit()`` returns, for the message queues."""
        return int(
            lib.vi_synic_deposit(
                self._core.handle, cpu, sint, message_type, origin, ffi.from_buffer(payload), len(payload), how
            )
        )

    def check_message(self, cpu: int, payload: bytes, message_type: int, sint: int) -> str:
        """Raise what :meth:`post` would, ENXIO excepted; return what is asked for, as messages put it."""
        what = f"synic: cannot post {len(payload)} bytes to sint {sint} of cpu {cpu}"
        if len(payload) > MSG_PAYLOAD:
            raise IrqError(errno.EMSGSIZE, f"{what}: a message holds {MSG_PAYLOAD} bytes (EMSGSIZE)")
        if not 0 <= sint < SINTS:
            raise IrqError(errno.EINVAL, f"{what}: SINTs are 0 to {SINTS - 1} (EINVAL)")
        if not 0 < message_type < 1 << 32:
            raise IrqError(errno.EINVAL, f"{what}: type {message_type:#x} is none: a u32 above 0 (EINVAL)")
        self._cpu(cpu, what)
        return what

    def take_message(self, cpu: int, sint: int = SINT_VMBUS) -> bytes | None:
        """Take the message out of a slot by hand, as a crashing guest does; None if there is none. EINVAL: no slot."""
        slot = lib.vi_synic_slot(self._core.handle, cpu, sint)
        if slot == ffi.NULL:
            raise IrqError(errno.EINVAL, f"synic: no sint {sint} on cpu {cpu} (EINVAL)")
        seen = int(slot.type)
        if seen == lib.VI_MSG_NONE:
            return None
        payload = bytes(ffi.buffer(slot.payload, min(slot.payload_size, MSG_PAYLOAD)))
        self._raise(lib.vi_synic_eom(self._core.handle, cpu, sint, seen), f"synic: no sint {sint}", cpu)
        return payload

    def flags_set(self, cpu: int, sint: int = SINT_VMBUS) -> tuple[int, ...]:
        """Return the event flags of ``cpu`` that are set and not yet claimed, ascending."""
        words = lib.vi_synic_flags(self._core.handle, cpu, sint)
        if words == ffi.NULL:
            raise IrqError(errno.EINVAL, f"synic: no sint {sint} on cpu {cpu} (EINVAL)")
        return tuple(
            word * 64 + bit
            for word in range(lib.VI_SINT_WORDS)
            if words[word]
            for bit in range(64)
            if words[word] >> bit & 1
        )

    def _cpu(self, cpu: int, what: str) -> int:
        if not 0 <= cpu < self._core.nr_cpus:
            last = self._core.nr_cpus - 1
            raise IrqError(errno.EINVAL, f"{what}: there is no such CPU; CPUs are 0 to {last} (EINVAL)")
        return cpu

    def _raise(self, result: int, what: str, cpu: int) -> int:
        if result >= 0:
            return int(result)
        self._cpu(cpu, what)
        why = "that SynIC or page is off, or the SINT masked" if result == -errno.ENXIO else "a number is out of range"
        raise IrqError(-result, f"{what}: {why}")


_PAGES: Final = {Msr.SIEFP: (lib.vi_synic_set_siefp, 0), Msr.SIMP: (lib.vi_synic_set_simp, 1)}
