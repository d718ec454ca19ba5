"""What the driver does when a CPU comes or goes (hv_synic_init and hv_synic_cleanup of drivers/hv/hv.c, v6.10).

See RFC patches 11 and 12; which of them applies is a field of the design. A CPU that goes runs this itself, while it is
still online and takes interrupts; an error keeps it where it is, and everything as it was.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from vmbusirq.core import TICKS_PER_MS
from vmbusirq.cpumask import cpumask_of, format_pbl
from vmbusirq.designs import OfflinePolicy
from vmbusirq.errors import IrqError
from vmbusirq.steps import LockKind, Step, Steps, each, holding
from vmbusirq.vmbus.affinity import CONNECT_CPU
from vmbusirq.vmbus.context import CHANNEL_MUTEX, Context
from vmbusirq.vmbus.migrate import MODIFY_UNANSWERED_TICKS, Migration, Move
from vmbusirq.vmbus.retarget import Retarget
from vmbusirq.vmbus.synic import GuestSynic
from vmbusirq.wire.protocol import Unlock

__all__ = ["CpuHotplug"]

# Each sleep of the kernel is a range of which this is the least: the most that a late host can be late for.
MODIFY_SLEEP_TICKS: Final = 5 * TICKS_PER_MS  # of 5 to 10 ms
MODIFY_SLEEPS: Final = 5
FLAGS_SLEEP_TICKS: Final = 10 * TICKS_PER_MS  # of 10 to 20 ms
FLAGS_SLEEPS: Final = 3
_SEARCH: Final = frozenset({"targets", "synic_online"})  # what the search touches, see Step


class CpuHotplug:
    """The SynICs of the guest's CPUs.

    Args:
        context: the kernel and the hypervisor.
        retarget: who moves channels meanwhile.
        migration: what becomes of the channels of a CPU that goes.
        synic: who programs the SynICs.

    Attributes:
        synics_on: CPUs whose SynIC is switched on.
        stimer_init, stimer_cleanup: called with a CPU when its SynIC is on, and before it goes off: a timer that sends
            messages needs it (hv_stimer_legacy_init, hv_stimer_legacy_cleanup).
    """

    def __init__(self, context: Context, retarget: Retarget, migration: Migration, synic: GuestSynic) -> None:
        self._ctx = context
        self._retarget = retarget
        self._migration = migration
        self._synic = synic
        self.synics_on = 0
        self.stimer_init: Callable[[int], object] = lambda cpu: None
        self.stimer_cleanup: Callable[[int], object] = lambda cpu: None

    def synic_init(self, cpu: int) -> Steps[None]:
        """Switch the SynIC of a CPU that has come online on (hv_synic_init)."""
        yield Step(f"cpu {cpu}: hv_synic_init", touches=_synic(cpu) | {"synic_online"})
        self._synic.enable(cpu)
        self.synics_on |= 1 << cpu
        self._retarget.synic_online |= 1 << cpu
        self.stimer_init(cpu)

    def synic_cleanup(self, cpu: int) -> Steps[list[Move]]:
        """See whether a CPU can do without interrupts, and switch its SynIC off (hv_synic_cleanup).

        Returns:
            The channels that have left it: for :meth:`roll_back`, if what comes after this fails.
        Raises:
            IrqError: EBUSY the connect CPU, a CPU with channels that stay, or one with flags that nobody serves.
            Exception: whatever it is, everything is as it was.
        """
        moves: list[Move] = []
        try:
            if self._ctx.control.connected:
                yield from self._leave(cpu, moves)
            then = frozenset({"targets", "modchan"}) if self._hands_over else frozenset()
            yield Step(f"cpu {cpu}: hv_synic_cleanup switches the SynIC off", touches=_synic(cpu) | then)
            left = self._flags(cpu)
            self.stimer_cleanup(cpu)
            self.disable(cpu)
            if self._hands_over and self._ctx.control.connected:
                yield from self._migration.poke(cpu, moves, left)
        except Exception:
            yield from self.roll_back(cpu, moves)
            raise
        return moves

    def roll_back(self, cpu: int, moves: list[Move]) -> Steps[None]:
        """Be as before :meth:`synic_cleanup`: the CPU stays online (cpuhp_reset_state)."""
        if self.synics_on >> cpu & 1:
            self._retarget.synic_online |= 1 << cpu
            yield from self._migration.undo(moves)
            return
        poke = self._migration.poke(cpu, moves, ()) if self._hands_over else each()  # signals lost while it was off
        yield from each(self.synic_init(cpu), poke, self._migration.undo(moves))

    def disable(self, cpu: int) -> None:
        """Switch a SynIC off: from now on signals for it are lost (hv_synic_disable_regs)."""
        if self.synics_on >> cpu & 1:
            self._synic.disable(cpu)
            self.synics_on &= ~(1 << cpu)

    # ---- what must hold before

    @property
    def _hands_over(self) -> bool:
        return self._ctx.design.offline_policy is OfflinePolicy.HANDOVER

    def _leave(self, cpu: int, moves: list[Move]) -> Steps[None]:
        if cpu == CONNECT_CPU:
            raise IrqError(errno.EBUSY, f"cpu {cpu}: cannot go offline: control messages come to it (EBUSY); unload")
        yield Step(f"cpu {cpu}: hv_synic_cleanup takes channel_mutex", takes=CHANNEL_MUTEX, touches=_SEARCH)
        yield from holding(CHANNEL_MUTEX, self._clear_and_search(cpu))
        yield from self._migration.move(cpu, moves)
        yield Step(f"cpu {cpu}: hv_synic_cleanup has searched: no channel interrupts it", touches=_wait(cpu))
        if self._hands_over:
            yield from self._migration.wait(cpu)
        elif self._ctx.design.wait_modifychannel:
            yield from self._wait_for_moves(cpu)
        self._migration.check(cpu, moves)
        yield from self._wait_for_flags(cpu)

    def _clear_and_search(self, cpu: int) -> Steps[None]:
        """Look for channels on a CPU; under set_affinity_lock none can come after that (RFC patch 12)."""
        if not self._ctx.design.set_affinity_lock:
            self._migration.search(cpu)
            return
        lock = self._ctx.set_affinity_lock
        what = "takes set_affinity_lock" + (", interrupts off" if lock.kind is LockKind.RAW else "")
        yield Step(f"cpu {cpu}: hv_synic_cleanup {what}", takes=lock, touches=frozenset({"synic_online"}))
        self._retarget.synic_online &= ~(1 << cpu)
        point = f"cpu {cpu}: has left synic_online, the search is next"
        yield Step(point, locks=(lock,), touches=_SEARCH)
        self._migration.search(cpu)

    def _wait_for_moves(self, cpu: int) -> Steps[None]:
        """Wait for the MODIFYCHANNELs that are under way, but not for ever (RFC patch 11)."""
        control, retarget = self._ctx.control, self._retarget
        version = control.version
        assert version is not None
        if not version.has(Unlock.MODIFYCHANNEL_RESPONSE):
            if version.has(Unlock.MODIFYCHANNEL):
                yield from self._sleep(cpu, "leaves the host time for MODIFYCHANNEL", MODIFY_UNANSWERED_TICKS)
            return
        base = retarget.modchan_sent
        for _ in range(MODIFY_SLEEPS):
            if retarget.modchan_completed >= base:
                return
            yield from self._sleep(cpu, "waits for MODIFYCHANNEL_RESPONSE", MODIFY_SLEEP_TICKS)
        if retarget.modchan_completed < base:
            self._ctx.irq.log.err(
                f"hv_vmbus: Timed out waiting for MODIFYCHANNEL. CPU {cpu} sent {base} "
                f"completed {retarget.modchan_completed}"
            )

    def _wait_for_flags(self, cpu: int) -> Steps[None]:
        """Wait until this CPU has served the event flags that it got before its channels were moved away."""
        version = self._ctx.control.version
        assert version is not None
        if not version.has(Unlock.MODIFYCHANNEL) or not self._flags(cpu):
            return
        for _ in range(FLAGS_SLEEPS):
            yield from self._sleep(cpu, "waits for its event flags to be served", FLAGS_SLEEP_TICKS)
            if not self._flags(cpu):
                return
        if self._ctx.design.wait_modifychannel:
            self._ctx.irq.log.err(f"hv_vmbus: Events pending when trying to offline CPU {cpu}")
        if self._hands_over:
            return  # their channels are poked where they are now
        flags = format_pbl(cpumask_of(*self._flags(cpu)))
        raise IrqError(errno.EBUSY, f"cpu {cpu}: cannot go offline: its event flags {flags} are not served (EBUSY)")

    def _flags(self, cpu: int) -> tuple[int, ...]:
        return tuple(flag for flag in self._ctx.hv.synic.flags_set(cpu) if flag)  # flag 0 is nobody's

    def _sleep(self, cpu: int, what: str, ticks: int) -> Steps[None]:
        yield from self._ctx.control.wait(f"cpu {cpu}: {what}", lambda: False, ticks, touches=_wait(cpu))


def _synic(cpu: int) -> frozenset[str]:
    """What switching a SynIC on or off touches."""
    return frozenset({f"flags cpu{cpu}", f"slot cpu{cpu}", f"vector cpu{cpu}", "synics"})


def _wait(cpu: int) -> frozenset[str]:
    """What waiting for moves and flags touches."""
    return frozenset({"modchan", f"flags cpu{cpu}", "clock", "synic_online"})
