"""Opening and closing a channel: rings, GPADLs, the IRQ, the messages around them (drivers/hv/channel.c, v6.10).

With RFC patch 09: open requests the channel's IRQ between the GPADL and OPENCHANNEL. Every error undoes exactly what
was done.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from vmbusirq.errors import Hung, IrqError
from vmbusirq.irq import CHandler
from vmbusirq.steps import Step, Steps, each, run
from vmbusirq.vmbus.channel import Channel, ChannelState, Moves
from vmbusirq.vmbus.context import Context
from vmbusirq.vmbus.control import Request
from vmbusirq.vmbus.drivers.catalogue import Attention
from vmbusirq.vmbus.pages import RingPair, Shareable
from vmbusirq.vmbus.waits import reset_channel_cb
from vmbusirq.wire.protocol import (
    FIRST_GPADL_HANDLE,
    CloseChannel,
    GpadlCreated,
    GpadlTeardown,
    GpaRange,
    Message,
    MessageType,
    OpenChannel,
    OpenChannelResult,
    gpadl_messages,
    signed32,
)

__all__ = ["Gpadl", "Opener"]

Callback = Callable[[Channel], object]


@dataclass(frozen=True, slots=True)
class Gpadl:
    """Pages that the host may reach: whose channel's they are, and their numbers."""

    channel: Channel
    pfns: tuple[int, ...]


class Opener:
    """Opens and closes channels of one guest.

    Attributes:
        gpadls: what the host may know of, by handle.
        stranded: rings and buffers that a host never let go of, with their channel; they are freed when it is known to
            have done so, through a rescind or an unload.

    Args:
        context: the kernel and the hypervisor.
        queue_work: runs steps later, where they may wait.
    """

    def __init__(self, context: Context, queue_work: Callable[[str, Steps[None]], object]) -> None:
        self._ctx = context
        self._queue_work = queue_work
        self._undecided: set[Channel] = set()  # the host has yet to say whether an open that was given up succeeded
        self._next_gpadl = FIRST_GPADL_HANDLE
        self.gpadls: Final[dict[int, Gpadl]] = {}
        self.stranded: Final[list[tuple[Channel, Shareable]]] = []

    # ---- guest memory lists

    def share(self, channel: Channel, memory: Shareable) -> Steps[int]:
        """Share memory with the host and own it from here on; return the handle.

        On an error the memory is freed, or stranded if the host may know of it. Errors as :meth:`establish_gpadl`.
        """
        try:
            return (yield from self.establish_gpadl(channel, memory.pfns))
        except Hung:
            self._strand(channel, memory)
            raise
        except Exception:
            memory.free()
            raise

    def unshare(
        self, channel: Channel, handle: int, memory: Shareable, touches: frozenset[str] | None = None
    ) -> Steps[None]:
        """Have the host let go of memory, if it has it (0: it has not), and free it; else it is stranded."""
        try:
            if handle:
                yield from self.teardown_gpadl(channel, handle, touches)
        except Exception:
            self._strand(channel, memory)
            raise
        memory.free()

    def establish_gpadl(self, channel: Channel, pfns: Sequence[int]) -> Steps[int]:
        """Share pages with the host; return the handle (vmbus_establish_gpadl).

        Raises:
            IrqError: EDQUOT the host refused, ENODEV the channel was rescinded, else as posting.
        """
        handle = self._next_gpadl
        self._next_gpadl += 1
        relid = channel.relid
        request = Request(MessageType.GPADL_CREATED, (relid, handle), channel)
        if channel.rescinded:
            raise _rescinded(channel, "share memory")
        self.gpadls[handle] = Gpadl(channel, tuple(pfns))  # from the first message on the host may know of it
        try:
            messages = gpadl_messages(relid, handle, [GpaRange.of_pages(pfns)])
            created = yield from self._ctx.control.ask(request, *messages)
            if created is None or channel.rescinded:  # the rescind counts, even if the answer came as well
                raise _rescinded(channel, "share memory")
            assert isinstance(created, GpadlCreated)
            if created.creation_status:
                raise IrqError(
                    errno.EDQUOT,
                    f"channel {relid}: the host refused a GPADL of {len(pfns)} pages, status "
                    f"{signed32(created.creation_status)} (EDQUOT)",
                )
        except Hung:  # the host may know of it
            raise
        except Exception:
            self.gpadls.pop(handle, None)
            raise
        return handle

    def teardown_gpadl(self, channel: Channel, handle: int, touches: frozenset[str] | None = None) -> Steps[None]:
        """Take pages back: the host has let go of them when this is over (vmbus_teardown_gpadl).

        Of a rescinded channel the host has let go already; nothing is sent. ``touches``: as :meth:`Control.ask`.
        """
        if not channel.rescinded:
            request = Request(MessageType.GPADL_TORNDOWN, (handle,), channel)
            yield from self._ctx.control.ask(request, GpadlTeardown(channel.relid, handle), touches=touches)
        self.gpadls.pop(handle, None)

    def let_go(self, channel: Channel | None = None) -> None:
        """Note that the host has let go of all that it could reach, of one channel or of all."""
        for handle, gpadl in tuple(self.gpadls.items()):
            if channel in (None, gpadl.channel):
                del self.gpadls[handle]
        kept = [entry for entry in self.stranded if channel not in (None, entry[0])]
        for _, memory in (entry for entry in self.stranded if entry not in kept):
            memory.free()
        self.stranded[:] = kept
        self._undecided = {other for other in self._undecided if channel not in (None, other)}
        self._ctx.control.forget(channel)

    @property
    def stranded_pages(self) -> int:
        """Pages that a host never let go of."""
        return sum(memory.pages for _, memory in self.stranded)

    def _strand(self, channel: Channel, memory: Shareable) -> None:
        """The host may write to this memory for ever: nobody else gets its pages."""
        memory.unmap()
        if channel.gone:
            memory.free()
        else:
            self.stranded.append((channel, memory))

    def abandon(self, channel: Channel) -> None:
        """Close a channel without the host: a probe was given up half-way, because a host never answered."""
        rings = channel.rings
        if channel.state is ChannelState.OPENED and rings is not None:
            channel.state = ChannelState.OPEN
            run(self._withdraw(channel))
            self._strand(channel, rings)

    # ---- open

    def open(self, channel: Channel, callback: Callback | None = None, userdata: bytes = b"") -> Steps[None]:
        """Share rings with the host, request the IRQ, open the channel (__vmbus_open)."""
        self._ctx.irq.may_wait(f"channel {channel.relid}: open")
        if channel.gone:
            raise _rescinded(channel, "open")
        if channel.state is not ChannelState.OPEN:
            raise IrqError(
                errno.EINVAL,
                f"channel {channel.relid}: cannot open: its state is {channel.state.name}, not OPEN (EINVAL)",
            )
        if channel in self._undecided:
            raise IrqError(
                errno.EBUSY,
                f"channel {channel.relid}: cannot open: the host has not answered the open before this one (EBUSY)",
            )
        channel.state = ChannelState.OPENING
        try:
            yield from self._open_with_rings(channel, callback, userdata)
        except BaseException:
            channel.state = ChannelState.OPEN
            raise
        channel.state = ChannelState.OPENED

    def _open_with_rings(self, channel: Channel, callback: Callback | None, userdata: bytes) -> Steps[None]:
        page_bytes = self._ctx.options.page_bytes
        rings = RingPair(self._ctx.hv.memory, channel.device_class.ring_size(page_bytes), page_bytes)
        handle, had_irq = 0, channel.irq_requested
        try:
            channel.share_rings(rings)
            self._watch(channel)
            channel.set_callback(callback)  # before the host knows anything: an early interrupt finds it
            handle = yield from self.establish_gpadl(channel, rings.pfns)
            channel.gpadl = handle
            yield Step(f"channel {channel.relid}: request_irq")
            self._request_irq(channel)
            yield from self._send_open(channel, rings, userdata)
        except Hung:
            yield from self._withdraw(channel, keep_irq=had_irq)
            self._strand(channel, rings)
            raise
        except Exception:
            yield from self._withdraw(channel, keep_irq=had_irq)
            with suppress(IrqError):  # the first error is the one that counts
                yield from self.unshare(channel, handle, rings)
            raise

    @staticmethod
    def _watch(channel: Channel) -> None:
        """Let the driver see the packets that it wants to see."""
        driver = channel.device.driver if channel.device is not None else None
        if driver is None or driver.attention is Attention.NONE:
            channel.set_attention(Attention.NONE)
        else:
            channel.set_attention(driver.attention, partial(driver.packet, channel))

    def _send_open(self, channel: Channel, rings: RingPair, userdata: bytes) -> Steps[None]:
        relid = channel.relid
        if channel.rescinded:
            raise _rescinded(channel, "open")
        message = OpenChannel(relid, relid, channel.gpadl, channel.target_cpu, rings.downstream_offset, userdata)
        channel.moves = Moves(host_cpu=channel.target_cpu)
        late = partial(self._answered_late, channel, rings, channel.gpadl)
        request = Request(MessageType.OPENCHANNEL_RESULT, (relid, relid), channel, late)
        try:
            result = yield from self._ctx.control.ask(request, message)
        except Hung:
            self._undecided.add(channel)
            raise
        if result is None or channel.rescinded:
            raise _rescinded(channel, "open")
        assert isinstance(result, OpenChannelResult)
        if result.status:
            raise IrqError(
                errno.EAGAIN, f"channel {relid}: the host refused to open it, status {signed32(result.status)} (EAGAIN)"
            )

    def _answered_late(self, channel: Channel, rings: RingPair, handle: int, result: Message) -> None:
        """The host has answered an open that was given up; runs in the tasklet."""
        assert isinstance(result, OpenChannelResult)
        steps = self._end_late(channel, rings, handle, opened=not result.status)
        self._queue_work(f"channel {channel.relid}: end an open that was given up", steps)

    def _end_late(self, channel: Channel, rings: RingPair, handle: int, *, opened: bool) -> Steps[None]:
        """Have the host close what it has opened too late, and let go of the rings."""
        try:
            if opened:
                yield from self._send_close(channel)
            yield from self.teardown_gpadl(channel, handle)
        except IrqError as error:
            self._ctx.irq.log.err(f"hv_vmbus: channel {channel.relid}: its rings stay with the host: {error}")
        else:
            self.stranded[:] = [entry for entry in self.stranded if entry[1] is not rings]
            rings.free()
        finally:
            self._undecided.discard(channel)

    def _withdraw(self, channel: Channel, *, keep_irq: bool = False) -> Steps[None]:
        """Undo the guest's own half of an open that failed; an IRQ that an earlier open has left is not its."""
        if not keep_irq:
            yield from self.free_irq(channel)
        yield from reset_channel_cb(self._ctx, channel)
        channel.share_rings(None)
        channel.gpadl = 0

    def _request_irq(self, channel: Channel) -> None:
        if not channel.irq:
            return
        irq = self._ctx.irq
        try:
            irq.request_irq(channel.irq, CHandler(channel.bind_action), 0, channel.irq_name, channel)
        except IrqError as error:
            irq.log.err(
                f"hv_vmbus: request_irq failed with {-(error.errno or 0)} for relid {channel.relid} irq {channel.irq}"
            )
            raise
        channel.irq_requested = True
        irq.irq_set_affinity_and_hint(channel.irq, 1 << channel.target_cpu)

    def free_irq(self, channel: Channel) -> Steps[None]:
        """Give the IRQ back, if it was requested."""
        if channel.irq_requested:
            self._ctx.irq.irq_update_affinity_hint(channel.irq, None)
            yield from self._ctx.irq.free_irq_steps(channel.irq, channel)
            channel.irq_requested = False

    # ---- close

    def close(self, channel: Channel, subs: Sequence[Channel], remove: Callable[[Channel], Steps[Any]]) -> Steps[None]:
        """Close a primary channel, its sub-channels first (vmbus_close).

        Args:
            channel: the primary.
            subs: its sub-channels.
            remove: what ends the life of a sub-channel whose rescind was waiting for this.
        Whatever one of them fails with, the others are closed, too; the first error is raised at the end.

        Raises:
            IrqError: EINVAL for a sub-channel, or unless it is open; EDEADLK from inside an interrupt.
        """
        if channel.primary is not None:
            raise IrqError(errno.EINVAL, f"channel {channel.relid}: is a sub-channel: its primary closes it (EINVAL)")
        self._ctx.irq.may_wait(f"channel {channel.relid}: close")
        ends = [steps for sub in subs for steps in (self._close_sub(sub), self._end_rescinded(sub, remove))]
        yield from each(*ends, self.disconnect(channel))

    def _close_sub(self, sub: Channel) -> Steps[None]:
        """Close a sub-channel; one that is being opened would be open when nobody is left to close it."""
        point = f"channel {sub.relid}: wait for its open"
        yield from self._ctx.control.wait(point, lambda: sub.state is not ChannelState.OPENING)
        if sub.state is ChannelState.OPENED:
            yield from self.disconnect(sub)

    def _end_rescinded(self, sub: Channel, remove: Callable[[Channel], Steps[Any]]) -> Steps[None]:
        """Remove a rescinded sub-channel: its own removal may be queued behind that of its primary."""
        if sub.rescinded:
            point = f"channel {sub.relid}: wait for its probe"  # whoever works on it is done then
            yield from self._ctx.control.wait(point, lambda: sub.probe_done or sub.gone)
            if not sub.gone:
                yield from remove(sub)

    def disconnect(self, channel: Channel) -> Steps[None]:
        """Stop the callback, tell the host, take the rings back, free the IRQ (vmbus_disconnect_ring).

        The RFC as posted keeps the IRQ until the relid is unmapped, so that a re-open meets EBUSY; that is mended here
        unless ``strict_rfc`` is set.
        """
        yield from reset_channel_cb(self._ctx, channel)
        rings = channel.rings
        if channel.state is not ChannelState.OPENED or rings is None:
            raise IrqError(
                errno.EINVAL,
                f"channel {channel.relid}: cannot close: its state is {channel.state.name}, not OPENED (EINVAL)",
            )
        channel.state = ChannelState.OPEN
        channel.share_rings(None)
        handle, channel.gpadl = channel.gpadl, 0
        failure: IrqError | None = None
        try:
            yield from self._send_close(channel)
        except IrqError as error:
            failure = error
            self._strand(channel, rings)
        else:
            try:
                touches = frozenset({f"channel {channel.relid}", f"irq {channel.irq}"})  # free_irq comes next
                yield from self.unshare(channel, handle, rings, touches)
            except IrqError as error:
                failure = error
        if not self._ctx.options.strict_rfc:  # whatever the host does, the guest has closed
            yield from self.free_irq(channel)
        if failure is not None:
            raise failure

    def _send_close(self, channel: Channel) -> Steps[None]:
        if channel.rescinded:
            return
        try:
            touches = frozenset({f"channel {channel.relid}", "requests"})
            yield from self._ctx.control.post(CloseChannel(channel.relid), touches=touches)
        except IrqError as error:
            number = -(error.errno or errno.EIO)
            self._ctx.irq.log.err(f"hv_vmbus: Close failed: close post msg return is {number}")
            raise


def _rescinded(channel: Channel, what: str) -> IrqError:
    return IrqError(errno.ENODEV, f"channel {channel.relid}: cannot {what}: the host has rescinded it (ENODEV)")
