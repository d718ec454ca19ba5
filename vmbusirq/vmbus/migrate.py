"""What becomes of the channels of a CPU that goes offline, by the offline policy of the design.

REFUSE is hv_synic_cleanup of v6.10 and of RFC patches 11 and 12; MAINLINE is hv_pick_new_cpu of drivers/hv/hv.c, 6.16;
REDIRECT moves what the host interrupts and leaves the handlers to the IRQ core; HANDOVER is ours. All of it happens on
the CPU that goes, while that is online and takes interrupts, and can be undone until its SynIC is switched off.

Why HANDOVER loses nothing. A signal of the host can be lost only if it comes to the old CPU after its SynIC is off,
which means that the host has not carried the move out yet. The ring is level-like: the packet stays in it, and any
later run of the handler on any CPU drains whatever is there. So each channel that was moved is interrupted once more,
by the guest itself, on its new CPU, when the SynIC of the old one is off; and, where the host has not confirmed the
move by then, again at each answer until one does, for after that no signal can go to the old CPU. Where no confirmation
is to be had, since the protocol has none or it was lost, the poke is repeated after fixed times; a host that is later
than the last of them can strand a packet until the channel is interrupted for another reason, and nothing but the host
could mend that.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from vmbusirq.core import TICKS_PER_MS
from vmbusirq.cpumask import cpumask_first, cpus_of, format_pbl
from vmbusirq.designs import OfflinePolicy
from vmbusirq.errors import Hung, IrqError
from vmbusirq.irq import IrqDesc
from vmbusirq.log import Level
from vmbusirq.steps import Step, Steps, holding
from vmbusirq.vmbus.affinity import CONNECT_CPU
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.context import CHANNEL_MUTEX, Context
from vmbusirq.vmbus.devices import Devices
from vmbusirq.vmbus.retarget import Retarget, moves_touch, set_target
from vmbusirq.wire.protocol import Unlock

__all__ = ["MODIFY_UNANSWERED_TICKS", "Migration", "Move"]

T = TypeVar("T")

MODIFY_UNANSWERED_TICKS: Final = 20 * TICKS_PER_MS  # of 20 to 25 ms, where hosts do not answer MODIFYCHANNEL
HANDOVER_ANSWER_TICKS: Final = 25 * TICKS_PER_MS  # as long as RFC patch 11 waits at least
HANDOVER_POSTS: Final = 2  # a request may be lost, too
HANDOVER_POKES: Final = (100 * TICKS_PER_MS, 1000 * TICKS_PER_MS)  # after the first, while nothing is confirmed


@dataclass(frozen=True, slots=True)
class Move:
    """One channel that has left the CPU, and how it was before.

    Attributes:
        old, new: CPUs; where interrupts are redirected, those that the host interrupts.
        affinity, effective: of its IRQ before; 0 without.
        broken: no usable CPU was in the affinity, which is all online CPUs now.
    """

    channel: Channel
    old: int
    new: int
    affinity: int = 0
    effective: int = 0
    broken: bool = False


class Migration:
    """Moves channels off a CPU.

    Args:
        context: the kernel and the hypervisor.
        retarget: who tells the host.
        devices: whose channels there are.
    """

    def __init__(self, context: Context, retarget: Retarget, devices: Devices) -> None:
        self._ctx = context
        self._retarget = retarget
        self._devices = devices
        self._draws = 0

    # ---- who is there

    def search(self, cpu: int) -> None:
        """Refuse if any channel interrupts the CPU, in a design whose channels stay (EBUSY)."""
        found = [channel.dir_name for channel in self._on(cpu)]
        if self._ctx.design.offline_policy is OfflinePolicy.REFUSE and found:
            raise _busy(cpu, f"it serves channels {','.join(found)} (EBUSY); move them first")

    def _on(self, cpu: int) -> list[Channel]:
        return [channel for channel in self._devices.all_channels() if channel.target_cpu == cpu]

    def _to_move(self, cpu: int) -> Channel | None:
        """Return the next channel to hand over: one that is rescinded takes no interrupts, and goes by itself."""
        return next((channel for channel in self._on(cpu) if not channel.rescinded), None)

    def _host_is_at(self, channel: Channel, cpu: int) -> bool:
        """Whether a channel keeps a CPU online in a design that redirects: by the host, or by its next open."""
        if channel.state is ChannelState.OPENED:
            return channel.moves.host_cpu == cpu
        return channel.target_cpu == cpu

    def _has(self, what: Unlock) -> bool:
        version = self._ctx.control.version
        return version is not None and version.has(what)

    def _desc(self, channel: Channel) -> IrqDesc | None:
        return self._ctx.irq.descs.get(channel.irq) if channel.irq else None

    def _touches(self, *more: str) -> frozenset[str]:
        """What looking for a channel, and beginning to move it, touches, see :class:`Step`."""
        return frozenset({"targets", "modchan", *more}).union(*map(moves_touch, self._devices.all_channels()))

    def _usable(self, cpu: int) -> int:
        """The CPUs that can take interrupts when ``cpu`` has gone."""
        return self._ctx.irq.online & self._retarget.synic_online & ~(1 << cpu)

    # ---- the policies

    def move(self, cpu: int, moves: list[Move]) -> Steps[None]:
        """Move what must be moved, and note each move at once, so that it can be undone.

        Raises:
            IrqError: EBUSY a channel cannot be moved; Hung the host has not answered.
        """
        policy = self._ctx.design.offline_policy
        if policy is OfflinePolicy.MAINLINE:
            yield from self._pick_new_cpus(cpu, moves)
        elif policy is OfflinePolicy.REDIRECT:
            yield from self._move_host(cpu, moves)
        elif policy is OfflinePolicy.HANDOVER:
            yield from self._hand_over(cpu, moves)

    def _pick_new_cpus(self, cpu: int, moves: list[Move]) -> Steps[None]:
        """Move each channel to any online CPU, and wait until the host confirms it (hv_pick_new_cpu)."""
        while True:
            point = f"cpu {cpu}: hv_pick_new_cpu takes channel_mutex"
            yield Step(point, takes=CHANNEL_MUTEX, touches=self._touches("requests"))
            channel = next(iter(self._on(cpu)), None)
            if channel is None:
                return
            if not self._has(Unlock.MODIFYCHANNEL_RESPONSE):
                version = self._ctx.control.version
                raise _busy(
                    cpu,
                    f"the host confirms no moves at protocol version {version} (EBUSY); 5.3 does, or move them first",
                )
            yield from self._pick_new_cpu(channel, cpu, moves)

    def _pick_new_cpu(self, channel: Channel, cpu: int, moves: list[Move]) -> Steps[None]:
        refused: IrqError | None = None
        for new in self._candidates(cpu):
            desc = self._desc(channel)
            move = Move(channel, cpu, new, *((desc.affinity, desc.effective_affinity) if desc is not None else ()))
            moves.append(move)  # from the first message on the host may carry it out
            try:
                yield from self._retarget.channel_set_cpu(channel, new)
            except Hung:
                raise
            except IrqError as error:
                moves.remove(move)
                refused = error
                point = f"cpu {cpu}: hv_pick_new_cpu tries another one"
                yield Step(point, takes=CHANNEL_MUTEX, touches=self._touches("requests"))
                continue
            yield from self._follow(move)
            return
        raise _busy(cpu, f"channel {channel.dir_name} cannot be moved (EBUSY): {refused}")

    def _candidates(self, cpu: int) -> list[int]:
        """Online CPUs from a random one on, CPU 0 last."""
        nr_cpus = self._ctx.irq.nr_cpus
        start = random.Random(self._ctx.options.seed * 1_000_003 + self._draws).randrange(nr_cpus)
        self._draws += 1
        around = [(start + n) % nr_cpus for n in range(nr_cpus)]
        online = self._ctx.irq.online
        return [other for other in around if online >> other & 1 and other not in (cpu, CONNECT_CPU)] + [CONNECT_CPU]

    def _follow(self, move: Move) -> Steps[None]:
        """Let the IRQ of a channel say where it is now."""
        desc = self._desc(move.channel)
        if desc is None:
            return
        point = f"irq {desc.irq}: follows its channel, takes desc->lock"
        yield Step(point, takes=desc.lock, touches=moves_touch(move.channel))
        if move.channel.target_cpu == move.new and not desc.freed:
            self._set_mask(desc, move.new, move.old)

    def _set_mask(self, desc: IrqDesc, new: int, old: int) -> bool:
        """Say that an IRQ has moved; return whether its affinity was broken, and is all online CPUs now."""
        desc.update_effective_affinity(1 << new)
        if desc.affinity >> new & 1:
            return False
        desc.affinity = self._ctx.irq.online & ~(1 << old)
        text = f"IRQ {desc.irq}: no longer affine to CPU{old}"
        self._ctx.irq.log.ratelimited("vmbus_migrate", Level.DEBUG, text)
        return True

    # ---- redirection

    def _move_host(self, cpu: int, moves: list[Move]) -> Steps[None]:
        """Ask the host to interrupt others; the handlers stay until the IRQ core moves them."""
        while True:
            point = f"cpu {cpu}: looks for a channel that the host interrupts here"
            yield Step(point, takes=CHANNEL_MUTEX, touches=self._touches())
            channels = [other for other in self._devices.all_channels() if not other.rescinded]
            channel = next((other for other in channels if self._host_is_at(other, cpu)), None)
            if channel is None:
                return
            if channel.state is ChannelState.OPENING:
                yield from self._wait_for_open(channel)
            else:
                moving = self._locked(cpu, self._move_host_of(channel, cpu, moves))
                old = yield from holding(CHANNEL_MUTEX, moving)
                if old is not None:
                    self._retarget.account(channel, old)

    def _move_host_of(self, channel: Channel, cpu: int, moves: list[Move]) -> Steps[int | None]:
        """Return the old CPU of a closed channel, which is where the next open would have put it."""
        if not self._host_is_at(channel, cpu) or channel.rescinded:
            return None
        desc = self._desc(channel)
        usable = self._usable(cpu)
        if not usable:
            raise _busy(cpu, "no other has its SynIC on (EBUSY)")
        # where the IRQ core is going to move it: then it need not ask again, where nobody could wait
        new = cpumask_first((desc.affinity if desc is not None else usable) & usable or usable)
        if channel.state is not ChannelState.OPENED:
            moves.append(Move(channel, cpu, new))
            return set_target(channel, new)
        if not self._has(Unlock.MODIFYCHANNEL):
            version = self._ctx.control.version
            raise _busy(
                cpu, f"channel {channel.dir_name} comes to it and cannot be moved at protocol version {version} (EBUSY)"
            )
        moves.append(Move(channel, cpu, new))
        yield from self._send(channel, new, cpu)
        return None

    # ---- our own

    def _hand_over(self, cpu: int, moves: list[Move]) -> Steps[None]:
        """Move each channel to the least used CPU of its affinity."""
        while True:
            point = f"cpu {cpu}: looks for a channel to hand over"
            yield Step(point, takes=CHANNEL_MUTEX, touches=self._touches())
            channel = self._to_move(cpu)
            if channel is None:
                return
            if channel.state is ChannelState.OPENING:
                yield from self._wait_for_open(channel)
                continue
            yield from holding(CHANNEL_MUTEX, self._hand_over_one(channel, cpu, moves))

    def _wait_for_open(self, channel: Channel) -> Steps[None]:
        """Let an open that is under way end: it has told the host its CPU, or is about to."""
        point = f"channel {channel.relid}: its hand-over waits for its open"
        yield from self._ctx.control.wait(point, lambda: channel.state is not ChannelState.OPENING)

    def _hand_over_one(self, channel: Channel, cpu: int, moves: list[Move]) -> Steps[None]:
        desc = self._desc(channel)
        moving = self._locked(cpu, self._hand_over_locked(channel, desc, cpu, moves))
        if desc is None:
            old = yield from moving
        else:
            point = f"irq {desc.irq}: its hand-over takes desc->lock"
            yield Step(point, takes=desc.lock, touches=self._touches())
            old = yield from holding(desc.lock, moving)
        if old is not None:
            self._retarget.account(channel, old)

    def _locked(self, cpu: int, moving: Steps[T]) -> Steps[T]:
        """Run steps under set_affinity_lock, in a design that has it."""
        if not self._ctx.design.set_affinity_lock:
            return (yield from moving)
        lock = self._ctx.set_affinity_lock
        yield Step(f"cpu {cpu}: a move off it takes set_affinity_lock", takes=lock, touches=self._touches())
        return (yield from holding(lock, moving))

    def _hand_over_locked(
        self, channel: Channel, desc: IrqDesc | None, cpu: int, moves: list[Move]
    ) -> Steps[int | None]:
        if channel.target_cpu != cpu or channel.rescinded or channel.state is ChannelState.OPENING:
            return None  # somebody else was faster; whoever looks again sees it
        new = self._least_used(cpu, self._ctx.irq.possible if desc is None else desc.affinity)
        move = Move(channel, cpu, new, *((desc.affinity, desc.effective_affinity) if desc is not None else ()))
        if channel.state is ChannelState.OPENED:
            if not self._has(Unlock.MODIFYCHANNEL):
                version = self._ctx.control.version
                raise _busy(cpu, f"channel {channel.dir_name} cannot be moved at protocol version {version} (EBUSY)")
            yield from self._send(channel, new, cpu)
            if channel.rescinded or channel.gone:
                return None
        moves.append(move)
        set_target(channel, new)
        if desc is not None:
            self._set_mask(desc, new, cpu)
        self._ctx.irq.log.info(f"hv_vmbus: channel {channel.dir_name}: cpu {cpu} hands it over to cpu {new}")
        return cpu

    def _send(self, channel: Channel, new: int, cpu: int) -> Steps[None]:
        try:
            yield from self._retarget.send_modify(channel, new, self._touches("clock", f"flags cpu{cpu}"))
        except Hung:
            raise
        except IrqError as error:
            raise _busy(cpu, f"channel {channel.dir_name} cannot be moved (EBUSY): {error}") from error

    def _least_used(self, cpu: int, affinity: int) -> int:
        """The CPU that takes a channel: allowed and not isolated if there is one, with the fewest channels."""
        usable = self._usable(cpu)
        spare = usable & ~self._ctx.options.isolated
        candidates = affinity & spare or spare or usable
        if not candidates:
            raise _busy(cpu, f"no other has its SynIC on (EBUSY); online: {format_pbl(self._ctx.irq.online)}")
        return min(cpus_of(candidates), key=lambda other: (len(self._on(other)), other))

    # ---- until the host has followed (HANDOVER)

    def _unconfirmed(self, cpu: int) -> list[Channel]:
        """Channels that the host may still interrupt on a CPU, handed over or moved before."""
        channels = self._devices.all_channels()
        return [channel for channel in channels if channel.moves.left >> cpu & 1 and not channel.rescinded]

    def check(self, cpu: int, moves: Iterable[Move]) -> None:
        """Refuse if the host has said that it does not move a channel (EBUSY): all its signals would be lost."""
        for move in moves:
            if move.channel.state is ChannelState.OPENED and move.channel.moves.status:
                raise _busy(cpu, f"the host does not move channel {move.channel.dir_name} (EBUSY)")

    def wait(self, cpu: int) -> Steps[None]:
        """Wait until the host has confirmed all moves, but not for ever; ask once more in between."""
        if not self._has(Unlock.MODIFYCHANNEL_RESPONSE):
            if self._unconfirmed(cpu):
                point = f"cpu {cpu}: leaves the host time for MODIFYCHANNEL"
                yield from self._ctx.control.wait(point, lambda: False, MODIFY_UNANSWERED_TICKS, touches=_waits(cpu))
            return
        for attempt in range(HANDOVER_POSTS):
            for channel in self._unconfirmed(cpu) if attempt else ():
                if channel.state is ChannelState.OPENED and channel.moves.unanswered:
                    yield from self._send(channel, channel.target_cpu, cpu)
            point = f"cpu {cpu}: waits for MODIFYCHANNEL_RESPONSE"
            yield from self._ctx.control.wait(
                point, lambda: not self._waiting(cpu), HANDOVER_ANSWER_TICKS, touches=_waits(cpu)
            )
        late = [channel.dir_name for channel in self._waiting(cpu)]
        if late:
            self._ctx.irq.log.err(
                f"hv_vmbus: Timed out waiting for MODIFYCHANNEL. CPU {cpu}: channels {','.join(late)} are not confirmed"
            )

    def _waiting(self, cpu: int) -> list[Channel]:
        return [channel for channel in self._unconfirmed(cpu) if channel.moves.unanswered]

    def poke(self, cpu: int, moves: Iterable[Move], flags: Iterable[int]) -> Steps[None]:
        """Interrupt what may have lost a signal, now that the SynIC of its old CPU is off.

        Args:
            cpu: the old CPU.
            moves: what was handed over.
            flags: event flags that it has not served.
        """
        left = set(flags)
        moved = {id(move.channel) for move in moves}
        unconfirmed = self._unconfirmed(cpu)
        again: list[Channel] = []
        for channel in tuple(self._devices.all_channels()):
            late = channel in unconfirmed
            if not late and id(channel) not in moved and channel.relid not in left:
                continue
            point = f"channel {channel.relid}: is poked on cpu {channel.target_cpu}"
            yield Step(point, touches=moves_touch(channel) | self._pokes | {"clock"})
            if self._retarget.poke(channel) and late:
                channel.moves.poke = bool(channel.moves.unanswered and channel.moves.left >> cpu & 1)
                again.append(channel)
        for ticks in HANDOVER_POKES if again else ():
            clock = self._ctx.hv.clock
            last = ticks == HANDOVER_POKES[-1]
            clock.call_at(clock.now + ticks, partial(self._poke_again, again, cpu, last=last))

    @property
    def _pokes(self) -> frozenset[str]:
        """What poking a channel touches, wherever it is by then."""
        cpus = range(self._ctx.irq.nr_cpus)
        return frozenset(f"{what} cpu{cpu}" for what in ("flags", "vector") for cpu in cpus)

    def _poke_again(self, channels: Iterable[Channel], cpu: int, *, last: bool) -> None:
        for channel in channels:
            moves = channel.moves
            if channel.gone or not moves.left >> cpu & 1:
                continue
            self._retarget.poke(channel)
            if last and not moves.unanswered:
                moves.left &= ~(1 << cpu)  # no answer will ever come: it is taken for moved

    # ---- undoing

    def undo(self, moves: list[Move]) -> Steps[None]:
        """Put channels back where they were: the CPU stays online. What the host does not hear of is logged."""
        for move in reversed(moves):
            channel = move.channel
            if channel.gone or channel.rescinded:
                continue
            yield Step(f"channel {channel.relid}: goes back to cpu {move.old}", takes=CHANNEL_MUTEX)
            desc = self._desc(channel)
            going = self._locked(move.old, self._undo_one(move, desc))
            if desc is not None:
                yield Step(f"irq {desc.irq}: goes back, takes desc->lock", locks=(CHANNEL_MUTEX,), takes=desc.lock)
                going = holding(desc.lock, going)
            if (yield from holding(CHANNEL_MUTEX, going)):
                self._retarget.account(channel, move.new)
        moves.clear()

    def _undo_one(self, move: Move, desc: IrqDesc | None) -> Steps[bool]:
        """Return whether the channel's own CPU has changed."""
        channel, redirects = move.channel, self._ctx.design.redirects
        is_open = channel.state is ChannelState.OPENED
        now = channel.moves.host_cpu if redirects and is_open else channel.target_cpu
        if now not in (move.old, move.new):
            return False  # somebody else has moved it meanwhile
        if is_open:
            try:
                yield from self._retarget.send_modify(channel, move.old)
            except IrqError as error:
                self._ctx.irq.log.err(f"hv_vmbus: channel {channel.dir_name} cannot go back to cpu {move.old}: {error}")
                return False
        if channel.gone or channel.rescinded or now == move.old or (redirects and is_open):
            return False
        set_target(channel, move.old)
        if desc is not None and not redirects:
            desc.affinity = move.affinity
            desc.update_effective_affinity(move.effective)
        return True


def _waits(cpu: int) -> frozenset[str]:
    """What waiting for answers touches, and looking at the CPU's flags after it."""
    return frozenset({"modchan", "clock", f"flags cpu{cpu}"})


def _busy(cpu: int, why: str) -> IrqError:
    return IrqError(errno.EBUSY, f"cpu {cpu}: cannot go offline: {why}")
