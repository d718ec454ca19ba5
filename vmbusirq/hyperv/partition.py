"""What one guest gets from its hypervisor: SynICs, memory, clock, ports, hypercalls, monitor pages; and its running.

The host and the guest meet here and in guest memory only. Nothing happens but inside :meth:`Partition.settle` and
:meth:`Partition.idle`, so that one order of events follows from one order of calls.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vmbusirq._ffi import lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError
from vmbusirq.hyperv.apic import serve_apic
from vmbusirq.hyperv.clock import Clock, Timer
from vmbusirq.hyperv.cpuid import Features
from vmbusirq.hyperv.hypercall import HvStatus, Hypercalls
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.messages import GuestMessagePort, MessageQueues, Outbox
from vmbusirq.hyperv.monitor import MonitorPages
from vmbusirq.hyperv.partition_registers import PartitionRegisters
from vmbusirq.hyperv.ports import MESSAGE_BUFFERS, EventPort, GuestEventPort, MessagePort, Ports
from vmbusirq.hyperv.profiles import Profile, find_profile
from vmbusirq.hyperv.refclock import TSC_HZ_DEFAULT, ReferenceClock
from vmbusirq.hyperv.registers import Msr, RegisterFile
from vmbusirq.hyperv.stimer_registers import Stimers
from vmbusirq.hyperv.synic import Synic
from vmbusirq.hyperv.synic_registers import SynicRegisters
from vmbusirq.hyperv.triggers import Triggers
from vmbusirq.hyperv.vcpu import Vcpu
from vmbusirq.limits import SINT_VMBUS
from vmbusirq.steps import Step

__all__ = ["VMBUS_MESSAGE_PORT", "Partition"]

VMBUS_MESSAGE_PORT: Final = 1
"""The guest's message port for VMBus: the origin of each control message (synic.md 7.1)."""
_ROUNDS_MAX: Final = 1 << 16
"""Rounds of one settle, far beyond what any traffic needs: who is not quiet then feeds itself."""


@dataclass(slots=True)
class _Pump:
    work: Callable[[], object]
    guest: bool
    running: bool = False


class Partition:
    """One guest's partition.

    Args:
        core: its CPUs.
        memory: its guest-physical memory; made when it is first asked for, if none is given.
        profile: how it behaves where implementations differ: a name of :data:`vmbusirq.hyperv.profiles.PROFILES`.
        features: what it offers its guest.
        tsc_hz: frequency of the host's TSC.

    Attributes:
        core, clock, synic: the CPUs, their time, their SynICs.
        vcpus: the VPs by index, with their registers.
        registers: the register file that they share; synic_registers: the SynICs' part of it, with hooks for effects;
            partition_registers: the hypercall page, the assist pages, crashes.
        messages: what waits for the guest's slots; triggers: what makes it move.
        refclock: reference time and the TSC; stimers: the synthetic timers.
        on_vp_reset: called with a VP that was reset; rooms that keep something per VP forget it there.
        on_reset: called when the whole system was reset, after the VPs.
    """

    def __init__(
        self,
        core: Core,
        memory: GuestMemory | None = None,
        *,
        profile: str | Profile = "tlfs",
        features: Features | None = None,
        tsc_hz: int = TSC_HZ_DEFAULT,
    ) -> None:
        self.core: Final = core
        self.profile: Final = find_profile(profile)
        self.features: Final = Features(arch=core.arch) if features is None else features
        self.clock: Final = Clock(core)
        self.synic: Final = Synic(core, self.profile)
        self.registers: Final = RegisterFile(self.features, self.profile)
        self.on_vp_reset: Final[list[Callable[[Vcpu], object]]] = []
        self.on_reset: Final[list[Callable[[], object]]] = []
        self.vcpus: Final = tuple(Vcpu(self, index) for index in range(core.nr_cpus))
        self.partition_registers: Final = PartitionRegisters(self)
        self.synic_registers: Final = SynicRegisters(self)
        self.synic_registers.changed.append(self._synic_register_changed)
        self.synic_registers.eom.append(lambda vcpu: vcpu.apic.eom())
        self.messages: Final = MessageQueues(self.synic, self.profile)
        self.triggers: Final = Triggers(self)
        self._outboxes: dict[tuple[int, int], Outbox] = {}
        self.on_vp_reset.append(self._reset_vp)
        serve_apic(self)
        self.refclock: Final = ReferenceClock(self, tsc_hz)
        self.stimers: Final = Stimers(self)
        self._memory = memory
        self._hypercalls = Hypercalls(self)
        self._ports = Ports(core, self.messages, self.synic, self.profile)
        self._monitor = MonitorPages(self.clock, self._ports.signal_event)
        self._pumps: list[_Pump] = []
        self._checks: list[Callable[[], object]] = []
        self._resume: Timer | None = None

    @property
    def memory(self) -> GuestMemory:
        """Guest-physical memory."""
        if self._memory is None:
            self._memory = GuestMemory()
        return self._memory

    def reset(self) -> None:
        """Reset the system: all VPs, the partition's registers, a locked hypercall page too."""
        for vcpu in self.vcpus:
            vcpu.reset()
        self.registers.reset_shared()
        self.partition_registers.reset()
        for heard in self.on_reset:
            heard()

    # ---- for the receiver of ports, the host

    def create_message_port(self, port_id: int, buffers: int = MESSAGE_BUFFERS) -> MessagePort:
        """Make a port for messages of the guest, ``buffers`` of which may wait.

        EINVAL: more than 24 bits, or no buffer; EEXIST: a port has that id.
        """
        return self._ports.create_message_port(port_id, buffers)

    def create_event_port(self, port_id: int) -> EventPort:
        """Make a port for signals of the guest. EINVAL, EEXIST as above; ENOSPC: there are 4096 event ports."""
        return self._ports.create_event_port(port_id)

    def create_guest_message_port(
        self, port_id: int, vp: int, sint: int, buffers: int | Literal["profile"] | None = "profile"
    ) -> GuestMessagePort:
        """Make a port by which messages come to a SINT of a VP of this partition (TLFS; synic.md 7.1).

        Args:
            port_id: 24 bits; the guest finds it in each message's header.
            vp: the target, or VP_ANY: whoever has the fewest messages waiting.
            sint: 1 to 15.
            buffers: how many messages may wait; None without bound; ``profile``: as many as the profile has (D14).
        Raises:
            IrqError: EINVAL for a number that cannot be, EEXIST if a port has that id.
        """
        depth = self.profile.posted_depth if buffers == "profile" else buffers
        return self._ports.create_guest_message_port(port_id, vp, sint, depth)

    def create_guest_event_port(
        self, port_id: int, vp: int, sint: int, base_flag: int = 0, flag_count: int = 1
    ) -> GuestEventPort:
        """Make a port by which some event flags of a SINT are set; errors as above, flags past 2047 too."""
        return self._ports.create_guest_event_port(port_id, vp, sint, base_flag, flag_count)

    def delete_port(self, port_id: int) -> None:
        """Delete a port and what waits in it; senders get INVALID_PORT_ID until they disconnect. ENOENT: none."""
        self._ports.delete_port(port_id)

    def connect(self, connection_id: int, port_id: int) -> None:
        """Let the guest reach a port by ``connection_id``.

        EINVAL: not 1 to 0xffffff; ENOENT: no such port; EEXIST: connected already; ENOSPC: 6144 connections are.
        """
        self._ports.connect(connection_id, port_id)

    def disconnect(self, connection_id: int) -> None:
        """Take a connection away; what it has brought stays. ENOENT: it is not connected."""
        self._ports.disconnect(connection_id)

    def take_events(self) -> list[EventPort]:
        """Return the ports that were signalled since the last call, each once, ascending by id."""
        return self._ports.take_events()

    def post_to_guest(
        self, vp: int, payload: bytes, *, message_type: int = lib.VI_MSG_VMBUS, sint: int = SINT_VMBUS
    ) -> None:
        """Post a message to one VP and SINT as a patient host does; those arrive in the order of posting.

        One that the hypervisor does not take, because the SynIC is off or the port's buffers are full, is posted
        again when that may have changed (synic.md 5.1); a reset of the VP ends that. A host that wants the status has
        :attr:`messages`.

        Raises:
            IrqError: EINVAL for a VP, SINT or type that does not exist, EMSGSIZE for more than 240 bytes.
        """
        self.synic.check_message(vp, payload, message_type, sint)
        outbox = self._outboxes.get((vp, sint))
        if outbox is None:
            outbox = Outbox(self.messages, VMBUS_MESSAGE_PORT, vp, sint, self.profile.posted_depth)
            self._outboxes[vp, sint] = outbox
        outbox.post(message_type, bytes(payload))

    def retry_posts(self) -> bool:
        """Let the host post again what was refused: a SynIC register has changed. True if any was taken."""
        return sum(outbox.retry() for outbox in tuple(self._outboxes.values()) if outbox) > 0

    @property
    def messages_waiting(self) -> int:
        """Messages to the guest that no slot had room for yet."""
        return self.messages.waiting() + sum(len(outbox) for outbox in self._outboxes.values())

    # ---- hypercalls of the guest

    def hv_post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """HvPostMessage (synic.md 7.3, 7.4): SUCCESS means queued.

        INVALID_PARAMETER: type 0 or with bit 31, more than 240 bytes; INVALID_CONNECTION_ID: not connected;
        INVALID_PORT_ID: its port was deleted, or takes no messages; INSUFFICIENT_BUFFERS: all of the port's are full;
        INVALID_SYNIC_STATE, INVALID_VP_INDEX: the target takes no messages, or nobody does.
        """
        return self._ports.post_message(connection_id, message_type, payload)

    def hv_signal_event(self, connection_id: int, flag: int = 0) -> HvStatus:
        """HvSignalEvent; a channel's own signals come the same way, in C.

        INVALID_CONNECTION_ID and INVALID_PORT_ID as above; INVALID_PARAMETER: a flag that the port has not, which of
        a host's port is any but 0; INVALID_SYNIC_STATE: the target takes no flags.
        """
        return self._ports.signal_event(connection_id, flag)

    def hypercall(
        self, vp: int, control: int, input_value: int, output_gpa: int = 0, *, more: Sequence[int] = (), cpl: int = 0
    ) -> int:
        """Make a hypercall in register form: HvPostMessage, HvSignalEvent, HvGetVpRegisters, HvSetVpRegisters.

        Args:
            vp: who makes it.
            control: the control word (RCX).
            input_value: guest-physical address of the input, in the fast form the input itself (RDX).
            output_gpa: guest-physical address of the output, in the fast form the second quadword (R8).
            more: further quadwords of the fast form (XMM0 to XMM5; X4 to X15 on arm64).
            cpl: at which privilege level.
        Returns:
            The result word (RAX): an :class:`HvStatus` in bits 15:0, of rep calls the reps completed in 43:32.
        Raises:
            IrqError: EINVAL, there is no such VP.
            InvalidOpcode: it is not made at CPL 0.
        """
        if not 0 <= vp < self.core.nr_cpus:
            raise IrqError(errno.EINVAL, f"hypercall: there is no vp {vp} (EINVAL); 0 to {self.core.nr_cpus - 1}")
        return int(self._hypercalls.make(self.vcpus[vp], control, (input_value, output_gpa, *more), cpl))

    def set_monitor_pages(self, h2g_gpa: int, g2h_gpa: int) -> None:
        """Look at the guest's monitor pages from now on; 0 is no page.

        EINVAL: not the address of a page; EFAULT: outside guest memory.
        """
        if h2g_gpa or g2h_gpa:
            self._monitor.set_pages(self.memory, h2g_gpa, g2h_gpa)
        else:
            self._monitor.forget()

    # ---- running

    def add_pump(self, pump: Callable[[], object], *, guest: bool = False) -> None:
        """Call ``pump`` whenever the CPUs are idle; it returns whether it did something.

        Args:
            pump: the host, or the guest's work queues; each call may do a little or all there is.
            guest: it is the guest's, so it rests while the guest is suspended or has its interrupts off.
        """
        self._pumps.append(_Pump(pump, guest))

    def remove_pump(self, pump: Callable[[], object]) -> None:
        """Do not call ``pump`` any more; nothing, if it is none."""
        self._pumps[:] = [known for known in self._pumps if known.work != pump]

    def add_check(self, check: Callable[[], object]) -> None:
        """Call ``check`` at the end of each settle: it raises what must not get lost, such as errors of callbacks."""
        self._checks.append(check)

    def settle(self) -> int:
        """Run CPUs, message queues, monitor pages, pumps and timers of this tick until nothing moves; no time passes.

        A pump that settles is not called again by that.

        Returns:
            How often a CPU had something to do.
        Raises:
            IrqError: ELOOP, there is no end to it: handlers, VPs, timers or pumps that wake each other for ever.
            Exception: what a pump, a timer or a check raised.
        """
        return self._settle(guest=True)[0]

    def idle(self, step: Step) -> bool:
        """Let the rest of the machine go on while ``step`` waits: for :func:`vmbusirq.steps.run`.

        Settles once; under a lock that keeps interrupts off, without the guest. If nothing moved, the clock goes to
        its next timer. False: there is none either, so that nothing can end the wait.
        """
        return self._settle(guest=not step.irqs_off)[1] or self.clock.advance_to_next()

    def suspend_guest(self, ticks: int) -> None:
        """Keep the guest's CPUs from running until so many ticks have passed, as a host throttles a guest.

        The later end counts. EINVAL: a negative number.
        """
        until = self.clock.now + ticks
        if self._resume is not None and self._resume.waiting and self._resume.when >= until:
            return
        resume = self.clock.call_at(until, lambda: None)
        if self._resume is not None:
            self._resume.cancel()
        self._resume = resume

    @property
    def guest_suspended(self) -> bool:
        """True while :meth:`suspend_guest` lasts."""
        return self._resume is not None and self._resume.waiting

    def _settle(self, *, guest: bool) -> tuple[int, bool]:
        """Return the runs of CPUs, and whether anything moved."""
        total, any_moved = 0, False
        for _round in range(_ROUNDS_MAX):
            runs, moved = self._quiet(guest)
            pumped = False
            for pump in tuple(self._pumps):
                if not pump.running and (not pump.guest or self._guest_runs(guest)):
                    pumped |= self._run_pump(pump)
            total += runs
            any_moved |= moved or pumped
            if not pumped:
                break
        else:
            raise _endless("pumps still find something to do")
        for check in self._checks:
            check()
        return total, any_moved

    def _quiet(self, guest: bool) -> tuple[int, bool]:
        """Run CPUs and fill slots until the guest has read all that it is going to read."""
        total, any_moved = 0, False
        for _round in range(_ROUNDS_MAX):
            entered = self._guest_runs(guest) and self.stimers.enter()
            runs = self.core.settle() if self._guest_runs(guest) else 0
            moved = entered | self.clock.run_due() | self._monitor.poll() | self.triggers.take() | bool(runs)
            moved |= self.messages.poll()
            if self._guest_runs(guest):
                moved |= self.triggers.run_vectors()
            any_moved |= moved
            total += runs
            if not moved:
                return total, any_moved
        raise _endless("CPUs, messages and timers still move")

    def _guest_runs(self, guest: bool) -> bool:
        return guest and not self.guest_suspended

    @staticmethod
    def _run_pump(pump: _Pump) -> bool:
        pump.running = True
        try:
            return bool(pump.work())
        finally:
            pump.running = False

    def _synic_register_changed(self, vcpu: Vcpu, msr: int, _old: int, new: int) -> None:
        pages = [self.synic_registers.page(vcpu, page) for page in (Msr.SIEFP, Msr.SIMP)]
        self.synic.set_register(vcpu, msr, new, pages)

    def _reset_vp(self, vcpu: Vcpu) -> None:
        self.synic.reset(vcpu.index)
        if vcpu.synic_active:  # the activation outlives a reset: SCONTROL is what it was after that
            self._synic_register_changed(vcpu, Msr.SCONTROL, 0, self.registers.value(vcpu, Msr.SCONTROL))
        for (vp, _sint), outbox in self._outboxes.items():
            if vp == vcpu.index:
                outbox.clear()  # first: a buffer that comes free would be used for the next of them
        self.messages.reset(vcpu.index)
        vcpu.apic.reset()


def _endless(what: str) -> IrqError:
    return IrqError(
        errno.ELOOP, f"partition: {what} after {_ROUNDS_MAX} rounds of one settle (ELOOP): they wake each other"
    )
