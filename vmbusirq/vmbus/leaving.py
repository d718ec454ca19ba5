"""How a guest leaves its host: unload, kexec, crash (drivers/hv/{channel_mgmt,vmbus_drv}.c, v6.10; vmbus.md 7.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from vmbusirq.core import TICKS_PER_MS
from vmbusirq.errors import IrqError
from vmbusirq.limits import SINT_VMBUS
from vmbusirq.steps import Context as StepContext
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.context import Context
from vmbusirq.vmbus.control import Request
from vmbusirq.vmbus.cpuhp import CpuHotplug
from vmbusirq.vmbus.open import Opener
from vmbusirq.vmbus.pages import GuestPages
from vmbusirq.vmbus.synic import GuestSynic
from vmbusirq.wire.protocol import MessageType, Unload, Unlock

__all__ = ["Leaving"]

CRASH_POLL_TICKS: Final = 10 * TICKS_PER_MS
CRASH_POLLS: Final = 10_000  # 100 s
CRASH_NOTICE_POLLS: Final = 500


class Leaving:
    """The ways out.

    Args:
        context: the kernel and the hypervisor.
        opener: who knows what the host may reach.
        cpuhp: who switches SynICs off.
        pages: the connection's own, by name.
        synic: who programs the SynICs.
        all_channels: those that may signal the host through them.
    """

    def __init__(
        self,
        context: Context,
        opener: Opener,
        cpuhp: CpuHotplug,
        pages: dict[str, GuestPages],
        synic: GuestSynic,
        all_channels: Callable[[], Iterable[Channel]],
    ) -> None:
        self._ctx = context
        self._opener = opener
        self._cpuhp = cpuhp
        self._pages = pages
        self._synic = synic
        self._all_channels = all_channels

    def unload(self) -> Steps[None]:
        """Leave the host; nothing happens if the guest is not connected (vmbus_initiate_unload)."""
        if self._disconnect():
            yield from self._ctx.control.ask(Request(MessageType.UNLOAD_RESPONSE), Unload())
            self._opener.let_go()

    def _disconnect(self) -> bool:
        """Be disconnected; return whether the host must hear of it, and can."""
        control = self._ctx.control
        was_connected, control.connected = control.connected, False
        return was_connected and control.version is not None and control.version.has(Unlock.RECONNECT)

    def kexec(self) -> Steps[None]:
        """Leave for another kernel: everything that is shared is revoked (hv_kexec_handler)."""
        yield from self.unload()
        self._ctx.control.suspended = False  # nobody is left to resume
        self._opener.let_go()
        for cpu in range(self._ctx.irq.nr_cpus):
            yield from self._cpuhp.synic_cleanup(cpu)
        self._synic.cleanup(0)
        for channel in self._all_channels():
            channel.clear_callback()
            channel.set_signal(0)  # its bits are in pages that are another's now
        for pages in self._pages.values():
            pages.free()
        self._pages.clear()

    def panic(self, cpu: int) -> Steps[None]:
        """Leave from a crashed CPU, interrupts off, the others standing still (hv_crash_handler)."""
        if self._disconnect():
            yield Step("crash: send UNLOAD", StepContext.HARDIRQ)
            with suppress(IrqError):  # posted or not, the answer is looked for (vmbus_initiate_unload)
                for step in self._ctx.control.post(Unload()):
                    yield Step(step.point, StepContext.HARDIRQ, ready=step.ready)
            if (yield from self._poll_for_unload()):
                self._opener.let_go()
                self._pages.clear()  # the host lets go of them too; the pages are never used again
        self._cpuhp.disable(cpu)
        self._synic.cleanup(cpu)

    def _poll_for_unload(self) -> Steps[bool]:
        """Read every CPU's slot until the answer to UNLOAD is in one (vmbus_wait_for_unload)."""
        clock, log = self._ctx.hv.clock, self._ctx.irq.log
        for poll in range(CRASH_POLLS):
            if self._found_unload_response():
                return True
            if poll % CRASH_NOTICE_POLLS == CRASH_NOTICE_POLLS - 1:
                log.info("hv_vmbus: Waiting for VMBus UNLOAD to complete")
            end = clock.now + CRASH_POLL_TICKS
            timer = clock.call_at(end, lambda: None)
            yield Step("crash: poll for UNLOAD_RESPONSE", StepContext.HARDIRQ, ready=lambda end=end: clock.now >= end)  # type: ignore[misc]
            timer.cancel()
        log.err("hv_vmbus: Continuing even though VMBus UNLOAD did not complete")
        return False

    def _found_unload_response(self) -> bool:
        found = False
        for cpu in range(self._ctx.irq.nr_cpus):
            payload = self._ctx.hv.synic.take_message(cpu, SINT_VMBUS)
            found |= payload is not None and payload[:4] == MessageType.UNLOAD_RESPONSE.to_bytes(4, "little")
        return found
