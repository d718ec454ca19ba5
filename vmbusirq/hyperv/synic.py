"""A CPU's synthetic interrupt controller as the hypervisor's callers see it: event flags and message slots.

See TLFS chapter 11.
"""

from __future__ import annotations

import errno

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.limits import MSG_PAYLOAD, SINT_FLAGS, SINT_VMBUS, SINTS

__all__ = ["Synic"]


class Synic:
    """The SynICs of all CPUs of one partition."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def enable(self, cpu: int) -> None:
        """Switch the SynIC of ``cpu`` on and unmask SINT 2, as hv_synic_init does. EINVAL: no such CPU."""
        self._raise(lib.vi_synic_enable(self._core.handle, cpu, 1), f"synic: cannot enable cpu {cpu}", cpu)

    def disable(self, cpu: int) -> None:
        """Switch it off; flags that are set stay set and unserved. EINVAL: no such CPU."""
        self._raise(lib.vi_synic_enable(self._core.handle, cpu, 0), f"synic: cannot disable cpu {cpu}", cpu)

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

    def check_message(self, cpu: int, payload: bytes, message_type: int, sint: int) -> str:
        """Raise what :meth:`post` would, ENXIO excepted; return what is asked for, as messages put it."""
        what = f"synic: cannot post {len(payload)} bytes to sint {sint} of cpu {cpu}"
        if len(payload) > MSG_PAYLOAD:
            raise IrqError(errno.EMSGSIZE, f"{what}: a message holds {MSG_PAYLOAD} bytes (EMSGSIZE)")
        if not (0 <= sint < SINTS and 0 < message_type < 1 << 32):
            raise IrqError(errno.EINVAL, f"{what}: SINTs are 0 to {SINTS - 1}, type {message_type} is none (EINVAL)")
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
        why = "that SynIC is off, or the SINT masked" if result == -errno.ENXIO else "a number is out of range"
        raise IrqError(-result, f"{what}: {why}")
