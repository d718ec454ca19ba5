"""Moving a channel to another CPU: the chip's irq_set_affinity, and the cpu file of sysfs.

See RFC patches 10 to 12; target_cpu_store and vmbus_send_modifychannel of drivers/hv, v6.10, for the design without
channel IRQs.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.cpumask import format_pbl
from vmbusirq.errors import Hung, IrqError, check
from vmbusirq.irq import IrqDesc
from vmbusirq.irq.cpuhotplug import CPUS_READ_LOCK
from vmbusirq.irq.settings import IRQ_SET_MASK_OK
from vmbusirq.steps import Step, Steps, holding
from vmbusirq.vmbus.affinity import CONNECT_CPU, CpuPicker, VpAssignment
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.context import CHANNEL_MUTEX, SET_AFFINITY_LOCK, Context
from vmbusirq.vmbus.control import Request
from vmbusirq.vmbus.one_modify import OneModify
from vmbusirq.vmbus.toplevel import MESSAGE_HWIRQ
from vmbusirq.wire.protocol import Message, MessageType, ModifyChannel, ModifyChannelResponse, Unlock

__all__ = ["Retarget", "moves_touch", "set_target"]

_TEMPMASK: Final = frozenset({"tempmask"})
_SCAN_U: Final = re.compile(rb"[ \t\n\v\f\r\xa0]*([0-9]+)")  # isspace() as the kernel has it


class Retarget:
    """Which CPU channels interrupt, and how that changes.

    Attributes:
        synic_online: CPUs that a channel may be moved to; one that goes offline leaves it before anybody looks for
            channels there (RFC patch 12).
        modchan_sent, modchan_completed: MODIFYCHANNEL posted, and answered (RFC patch 11).
    """

    def __init__(
        self,
        context: Context,
        assignment: VpAssignment,
        queue_work: Callable[[str, Steps[None]], None],
        perf_channel_on: Callable[[int], bool] = lambda cpu: False,
    ) -> None:
        self._ctx = context
        self._assignment = assignment
        self.perf_channel_on = perf_channel_on
        self._picker = CpuPicker()
        self._tempmask = 0  # static in vmbus_irq_set_affinity: all moves share it, RFC patch 12 locks it (RFC patch 10)
        self.synic_online = 0
        self.modchan_sent = 0
        self.modchan_completed = 0
        self._one: OneModify | None = None
        if context.design.one_modify:
            self._one = OneModify(
                context.hv.clock, context.irq.log, post=self._post_modify, queue_work=queue_work, count=self._count
            )

    @property
    def _isolated(self) -> int:
        return self._ctx.options.isolated

    # ---- irq_set_affinity

    def chip_set_affinity(self, desc: IrqDesc, mask: int, force: bool) -> Steps[int]:
        """Move a channel to a CPU of ``mask`` (vmbus_irq_set_affinity, RFC patches 10 and 12)."""
        channel = desc.handler_data
        if not isinstance(channel, Channel):
            return (yield from self.message_set_affinity(desc, mask))
        if self._ctx.design.set_affinity_lock:
            point = f"irq {desc.irq}: vmbus_irq_set_affinity takes set_affinity_lock"
            yield Step(point, takes=SET_AFFINITY_LOCK, touches=_TEMPMASK)
            old = yield from holding(SET_AFFINITY_LOCK, self._choose_and_move(desc, channel, mask))
        else:
            yield Step(f"irq {desc.irq}: vmbus_irq_set_affinity computes tempmask", touches=_TEMPMASK)
            old = yield from self._choose_and_move(desc, channel, mask)
        if old is not None:
            self.account(channel, old)
        desc.update_effective_affinity(1 << channel.target_cpu)
        return IRQ_SET_MASK_OK

    def _choose_and_move(self, desc: IrqDesc, channel: Channel, mask: int) -> Steps[int | None]:
        """Ask the host to interrupt another CPU, if it must be another; return the old one, None if nothing moved."""
        self._tempmask = mask & ~self._isolated
        looks = _TEMPMASK | {"next_cpu", f"channel {channel.relid}", f"irq {desc.irq}"}
        if self._ctx.design.set_affinity_lock:
            looks |= {"synic_online"}
        yield Step(f"irq {desc.irq}: vmbus_irq_set_affinity chooses a cpu of tempmask", touches=looks)
        if self._tempmask >> channel.target_cpu & 1:
            return None
        if self._ctx.design.set_affinity_lock:
            self._tempmask &= self.synic_online
        if not self._tempmask:
            usable = format_pbl(self.synic_online & ~self._isolated) or "none"
            raise IrqError(
                errno.EINVAL,
                f"irq {desc.irq}: cannot move channel {channel.relid} to cpu {format_pbl(mask)}: isolated, or its "
                f"SynIC is off (EINVAL); usable: {usable}",
            )
        cpu = self._picker.pick(self._tempmask)
        if channel.state is not ChannelState.OPENED:
            raise IrqError(
                errno.EIO,
                f"irq {desc.irq}: cannot move channel {channel.relid}: it is not open ({channel.state.name}) (EIO)",
            )
        yield from self.send_modify(channel, cpu)
        yield Step(
            f"channel {channel.relid}: MODIFYCHANNEL to cpu {cpu} is posted, target_cpu is next",
            touches=frozenset({"targets", "assignment", f"channel {channel.relid}", f"irq {desc.irq}"}),
        )
        return set_target(channel, cpu)

    def message_set_affinity(self, desc: IrqDesc, mask: int) -> Steps[int]:
        """Control messages come to the connect CPU; a mask with it changes nothing, any other is refused."""
        yield Step(f"irq {desc.irq}: vmbus_irq_set_affinity looks for a channel")
        if desc.hwirq != MESSAGE_HWIRQ:
            self._ctx.irq.log.err(f"hv_vmbus: Bad channel in vmbus_irq_set_affinity for relid {desc.hwirq}")
            raise IrqError(errno.EINVAL, f"irq {desc.irq}: cannot move: relid {desc.hwirq} has no channel (EINVAL)")
        if not mask >> CONNECT_CPU & 1:
            raise IrqError(
                errno.EINVAL,
                f"irq {desc.irq}: control messages cannot leave cpu {CONNECT_CPU} (EINVAL); include it in the mask",
            )
        desc.update_effective_affinity(1 << CONNECT_CPU)
        return IRQ_SET_MASK_OK

    def send_modify(self, channel: Channel, cpu: int, touches: frozenset[str] = frozenset()) -> Steps[None]:
        """Post MODIFYCHANNEL and do not wait for the answer (RFC patch 10).

        ``touches``: what the caller touches from then to its next step, see :class:`Step`.
        """
        version = self._ctx.control.version
        if version is None or not version.has(Unlock.MODIFYCHANNEL):
            raise IrqError(
                errno.EINVAL,
                f"channel {channel.relid}: cannot be moved at protocol version {version or 'none'} (EINVAL); 4.1 can",
            )
        if self._one is not None and version.has(Unlock.MODIFYCHANNEL_RESPONSE):
            yield from self._one.move(channel, cpu)
        else:
            yield from self._post_modify(channel, cpu, touches)
            self.modchan_sent += 1

    def _post_modify(self, channel: Channel, cpu: int, touches: frozenset[str] = frozenset()) -> Steps[None]:
        message = ModifyChannel(channel.relid, cpu)
        what = f"channel {channel.relid}: send MODIFYCHANNEL to cpu {cpu}"
        touched = frozenset({"modchan", f"channel {channel.relid}", f"irq {channel.irq}"})
        yield from self._ctx.control.post(message, what, touched | touches)
        self._note_asked(channel, cpu)

    def note_sent(self, channel: Channel, cpu: int) -> None:
        """Count a MODIFYCHANNEL that was posted and whose answer nobody waits for."""
        self.modchan_sent += 1
        self._note_asked(channel, cpu)

    def _note_asked(self, channel: Channel, cpu: int) -> None:
        version = self._ctx.control.version
        answers = version is not None and version.has(Unlock.MODIFYCHANNEL_RESPONSE)
        channel.moves.asked(cpu, answers, self._ctx.hv.clock.now)

    def _count(self, sent: int, completed: int) -> None:
        self.modchan_sent += sent
        self.modchan_completed += completed

    def on_response(self, message: Message) -> None:
        """Take MODIFYCHANNEL_RESPONSE, in the tasklet (RFC patch 11)."""
        assert isinstance(message, ModifyChannelResponse)
        if not self._ctx.control.answer(message, message.child_relid):
            if self._one is None:
                self.modchan_completed += 1
            channel = self._ctx.channels.get(message.child_relid)
            if channel is not None:
                certain = channel.moves.answered(message.status)
                if self._one is not None:
                    self._one.answered(channel, certain)
                if channel.moves.poke:
                    channel.moves.poke = bool(channel.moves.left)
                    self.poke(channel)
            if message.status:
                self._ctx.irq.log.err(
                    f"hv_vmbus: Error status {message.status:x} in MODIFYCHANNEL response for relid "
                    f"{message.child_relid}"
                )

    def poke(self, channel: Channel) -> bool:
        """Interrupt a channel's CPU as if the host had signalled; return False if nobody would take it.

        The guest sets the flag in its own event page and has that CPU take its vector. Spurious pokes do no harm: the
        ring says what there is to do, and a handler that finds it empty is done.
        """
        if channel.state is not ChannelState.OPENED or channel.rescinded or not channel.mapped:
            return False
        if not (self._ctx.irq.online & self.synic_online) >> channel.target_cpu & 1:
            return False
        what = f"channel {channel.relid}: cannot be poked on cpu {channel.target_cpu}"
        check(lib.vi_synic_poke(self._ctx.core.handle, channel.target_cpu, channel.relid), what)
        return True

    # ---- the cpu file

    def target_cpu_store(self, channel: Channel, text: bytes) -> Steps[int]:
        """Yield the steps of a write to channels/<relid>/cpu; return the bytes taken.

        With channel IRQs this is irq_set_affinity() with one CPU (RFC patch 10); without, the channel is retargeted
        directly (target_cpu_store in drivers/hv/vmbus_drv.c, v6.10). The RFC as posted returns 0 bytes where it
        succeeds; that is mended here unless ``strict_rfc`` is set.

        Raises:
            IrqError: EIO no number, a protocol version below 4.1, or a channel that is not open and would have to move;
                EINVAL a CPU that is past the last, offline, isolated or without SynIC; what the host refuses with, in a
                design without channel IRQs always EIO.
        """
        version = self._ctx.control.version
        movable = version is not None and (version.has(Unlock.MODIFYCHANNEL) or self._ctx.design.redirects)
        if not movable:
            raise IrqError(
                errno.EIO,
                f"channel {channel.relid}: cannot be moved at protocol version {version or 'none'} (EIO); 4.1 can",
            )
        cpu = _scan_cpu(channel, text)
        irq = self._ctx.irq
        if cpu >= irq.nr_cpus:
            raise IrqError(
                errno.EINVAL, f"channel {channel.relid}: cpu {cpu} is past the last; cpus are 0-{irq.nr_cpus - 1}"
            )
        if self._ctx.design.channel_irqs:
            yield Step(f"channel {channel.relid}: its cpu file takes channel_mutex", takes=CHANNEL_MUTEX)
            _check_mapped(channel)
            yield from holding(CHANNEL_MUTEX, irq.irq_set_affinity_steps(channel.irq, 1 << cpu))
            return 0 if self._ctx.options.strict_rfc else len(text)
        yield Step(f"channel {channel.relid}: its cpu file takes cpus_read_lock", takes=CPUS_READ_LOCK)
        yield from holding(CPUS_READ_LOCK, self._retarget(channel, cpu))
        return len(text)

    def _retarget(self, channel: Channel, cpu: int) -> Steps[None]:
        """Move a channel that has no IRQ; from 5.3 on wait for the host to say that it did."""
        yield Step(f"channel {channel.relid}: its cpu file takes channel_mutex", takes=CHANNEL_MUTEX)
        _check_mapped(channel)
        yield from self.channel_set_cpu(channel, cpu)

    def channel_set_cpu(self, channel: Channel, cpu: int) -> Steps[None]:
        """Move a channel, under channel_mutex, which is dropped for the wait (vmbus_channel_set_cpu of 6.16).

        Raises:
            IrqError: EINVAL a CPU that is isolated or offline; EIO a channel that is not open, or what the host
                refused.
        """
        what = f"channel {channel.relid}: cannot move to cpu {cpu}"
        online = self._ctx.irq.online
        if self._isolated >> cpu & 1:
            raise IrqError(errno.EINVAL, f"{what}: it is isolated (EINVAL); isolated: {format_pbl(self._isolated)}")
        if not online >> cpu & 1:
            raise IrqError(errno.EINVAL, f"{what}: it is offline (EINVAL); online: {format_pbl(online)}")
        if channel.state is not ChannelState.OPENED:
            raise IrqError(errno.EIO, f"{what}: it is not open ({channel.state.name})")
        if cpu == channel.target_cpu:
            return
        try:
            old = yield from self._send_modify_wait(channel, cpu)
        except Hung:
            raise
        except IrqError as error:
            raise IrqError(errno.EIO, f"{what}: MODIFYCHANNEL failed (EIO): {error}") from error
        if old is not None:
            self.account(channel, old)

    def _send_modify_wait(self, channel: Channel, cpu: int) -> Steps[int | None]:
        """Have the host move a channel, and store target_cpu; return the old one, None if somebody else moved it."""
        version = self._ctx.control.version
        assert version is not None
        if not version.has(Unlock.MODIFYCHANNEL_RESPONSE):
            yield from holding(CHANNEL_MUTEX, self.send_modify(channel, cpu, moves_touch(channel)))
            return set_target(channel, cpu)
        if channel.rescinded:  # its waits have been ended once, and no other end would come
            raise IrqError(errno.ENODEV, f"channel {channel.relid}: the host has rescinded it (ENODEV)")
        locked = self._ctx.design.set_affinity_lock
        locks = (CHANNEL_MUTEX, self._ctx.set_affinity_lock) if locked else (CHANNEL_MUTEX,)
        old = channel.target_cpu
        yield from self._take_set_affinity_lock(channel)
        if locked and channel.target_cpu != old:
            return None
        request = Request(MessageType.MODIFYCHANNEL_RESPONSE, (channel.relid,), channel)
        touches = moves_touch(channel)
        message = ModifyChannel(channel.relid, cpu)
        answer = yield from self._ctx.control.ask(request, message, locks=locks, touches=touches)
        point = f"channel {channel.relid}: its move takes channel_mutex again"
        yield Step(point, takes=CHANNEL_MUTEX, touches=touches)
        if answer is None or channel.rescinded:  # even if the answer came as well
            raise IrqError(errno.ENODEV, f"channel {channel.relid}: the host has rescinded it (ENODEV)")
        assert isinstance(answer, ModifyChannelResponse)
        if answer.status:
            raise IrqError(errno.EAGAIN, f"channel {channel.relid}: the host answered {answer.status:#x} (EAGAIN)")
        yield from self._take_set_affinity_lock(channel)
        if locked and channel.target_cpu != old:  # whoever did that has asked the host after us
            return None
        channel.moves.host_cpu = cpu
        return set_target(channel, cpu)

    def _take_set_affinity_lock(self, channel: Channel) -> Steps[None]:
        """Wait, under channel_mutex, until no irq_set_affinity is half-way, in a design where one can be."""
        if self._ctx.design.set_affinity_lock:
            point = f"channel {channel.relid}: its move takes set_affinity_lock"
            touches = moves_touch(channel) | {"requests"}
            yield Step(point, locks=(CHANNEL_MUTEX,), takes=self._ctx.set_affinity_lock, touches=touches)

    def account(self, channel: Channel, old: int) -> None:
        """Tell who keeps account of targets that a channel has left ``old``."""
        cpu = channel.target_cpu
        if channel.device_class.perf:
            if not self.perf_channel_on(old):
                self._assignment.unmark(old)
            self._assignment.mark(cpu)
        primary = channel.primary or channel
        if primary.change_target_cpu is not None:
            primary.change_target_cpu(channel, old, cpu)


def moves_touch(channel: Channel) -> frozenset[str]:
    """What moving a channel touches, and what keeps account of that, see :class:`Step`."""
    own = {f"channel {channel.relid}", f"irq {channel.irq}"}
    return frozenset({"targets", "synic_online", "next_cpu", "assignment", "modchan", "online", *own})


def _check_mapped(channel: Channel) -> None:
    """Refuse to move a channel that has no relid now: it was removed while the write waited, or is suspended. EIO."""
    if not channel.mapped:
        raise IrqError(errno.EIO, f"channel {channel.relid}: cannot move: its relid is not mapped (EIO)")


def set_target(channel: Channel, cpu: int) -> int:
    """Store target_cpu; return the old one. ENODEV: the channel was rescinded and removed meanwhile."""
    if channel.gone:
        raise IrqError(
            errno.ENODEV, f"channel {channel.relid}: cannot move to cpu {cpu}: the host has rescinded it (ENODEV)"
        )
    old = channel.target_cpu
    channel.set_cpu(cpu)
    return old


def _scan_cpu(channel: Channel, text: bytes) -> int:
    """Read a number as ``sscanf("%u")`` does: blanks before it and anything after it are ignored, it wraps at 2**32."""
    number = _SCAN_U.match(text)
    if number is None:
        raise IrqError(
            errno.EIO, f"channel {channel.relid}: {text[:40].decode('latin-1')!a} is not a cpu; write its number"
        )
    return int(number[1][-32:]) % (1 << 32)  # which divides 10**32
