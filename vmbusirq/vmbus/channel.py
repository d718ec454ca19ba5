"""One channel of the guest: its identity, its rings, its IRQ, the CPU it interrupts (struct vmbus_channel)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError, check
from vmbusirq.vmbus.drivers.catalogue import Attention, CallbackMode, DeviceClass
from vmbusirq.vmbus.pages import RingPair
from vmbusirq.vmbus.send import Sender
from vmbusirq.wire.packet import Packet
from vmbusirq.wire.protocol import INVALID_RELID, OfferChannel

if TYPE_CHECKING:
    from vmbusirq.vmbus.device import HvDevice
    from vmbusirq.vmbus.requestor import Requestor

__all__ = ["Attention", "Channel", "ChannelState", "ChannelStats", "Moves", "RingState"]


class ChannelState(IntEnum):
    """enum vmbus_channel_state; note that OPEN means offered and bound, OPENED that the ring is in use."""

    OFFER = 0
    OPENING = 1
    OPEN = 2
    OPENED = 3


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Counters of one channel; all are 64-bit and start at 0 when the channel is offered.

    Attributes:
        interrupts: arrivals that found a callback (sysfs ``interrupts``).
        no_callback: arrivals while the channel was closed.
        calls: callback runs; one arrival can cause several, one run can serve several arrivals.
        packets, bytes, checksum: what the callback has read; bytes are payload with padding, the sum is modulo 2**64.
        resyncs: times that the driver's own reader found no sense in the ring and dropped what was in it.
        sig_events: guest to host signals (sysfs ``events``).
        intr_in_full: of them, because a host that waited has room again.
        intr_out_empty: signals because the out ring was empty.
        out_full_first: episodes of a full out ring; ``out_full_total``: writes that it refused.
        attended: packets handed to :meth:`Channel.set_attention`'s callable; they are in ``packets`` too.
        replies: heartbeat and timesync requests that the reader has answered; ``replies_dropped``: answers that found
            the out ring full.
    """

    interrupts: int
    no_callback: int
    calls: int
    packets: int
    bytes: int
    checksum: int
    resyncs: int
    sig_events: int
    intr_in_full: int
    intr_out_empty: int
    out_full_first: int
    out_full_total: int
    attended: int
    replies: int
    replies_dropped: int


@dataclass(frozen=True, slots=True)
class RingState:
    """One ring as it stood when it was looked at (struct hv_ring_buffer_debug_info); sizes in bytes."""

    interrupt_mask: int
    read_index: int
    write_index: int
    bytes_to_read: int
    bytes_to_write: int


def _look(mem: Any) -> RingState:
    hdr = mem.hdr
    return RingState(
        interrupt_mask=int(hdr.interrupt_mask),
        read_index=int(hdr.read_index),
        write_index=int(hdr.write_index),
        bytes_to_read=int(lib.vi_ring_bytes_to_read(hdr, mem.data_size)),
        bytes_to_write=int(lib.vi_ring_bytes_to_write(hdr, mem.data_size)),
    )


@dataclass(slots=True)
class Moves:
    """What the host was asked about a channel's CPU while it is open, and has not confirmed.

    Attributes:
        host_cpu: the CPU that the host was asked to interrupt last; target_cpu, unless interrupts are redirected.
        left: mask of the CPUs that it may still interrupt, for it has not said otherwise.
        unanswered: the CPUs of MODIFYCHANNELs that it may still answer, oldest first; empty where it never answers.
        asked_at: ticks since boot, when it was asked last.
        status: of its last answer.
        poke: the channel is poked when an answer comes, for a signal may have been lost before.
    """

    host_cpu: int = 0
    left: int = 0
    unanswered: list[int] = field(default_factory=list)
    asked_at: int = 0
    status: int = 0
    poke: bool = False

    def asked(self, cpu: int, answers: bool, now: int = 0) -> None:
        """Note that MODIFYCHANNEL was posted, ``now`` ticks after boot."""
        self.left = (self.left | 1 << self.host_cpu) & ~(1 << cpu)
        self.host_cpu = cpu
        if answers:
            self.unanswered.append(cpu)
        self.asked_at = now
        self.status = 0

    def answered(self, status: int) -> bool:
        """Note an answer. It does not tell to which question, and hosts lose some, and drop some while busy.

        So it confirms something only if all that it can be the answer to ask for one CPU; else it is taken for the
        oldest one's. Return whether they do, whatever the host says to it.
        """
        self.status = status
        certain = all(cpu == self.host_cpu for cpu in self.unanswered)
        if certain and not status:
            self.left = 0
        del self.unanswered[:1]
        return certain

    def expect_none(self) -> None:
        """Expect no more answers to what was asked."""
        self.unanswered.clear()


class _Watcher:
    """What is behind the handle that C passes back with a packet."""

    def __init__(self, on_packet: Callable[[Packet], object]) -> None:
        self.on_packet = on_packet


class Channel(Sender):
    """A channel from its offer to its removal.

    Attributes:
        relid: 1 to 2047, the host's name for it and its hwirq; INVALID_RELID between suspend and the offer after it.
        dir_name: its directory in sysfs, the relid that it had first.
        offer: what the host said when it offered the channel last.
        device_class: its row of the catalogue.
        sub_channel_index: 0 for the primary.
        is_hv_sock: it is a connection of a socket, not a device; offers after the first do not change that.
        primary: the device's primary channel, None for that one itself.
        device: the device it belongs to, once there is one.
        irq_name: the action name its IRQ will have.
        irq: its Linux IRQ, 0 in a design without channel IRQs.
        mapped: flags of its relid reach it.
        target_cpu: the CPU that the guest has asked the host to interrupt.
        moves: what the host was asked about it.
        irq_requested: request_irq has succeeded and free_irq has not been called since.
        gpadl: handle of the rings' GPADL, 0 while they are not shared.
        rescind_ref: a rescind has been taken up.
        rescind_event: a sub-channel's rescind waits for the close of its primary to end it.
        probe_done: its device has been made and offered to a driver, or its sub-channel to the driver.
    """

    def __init__(self, core: Core, offer: OfferChannel, device_class: DeviceClass, primary: Channel | None) -> None:
        self.relid = offer.child_relid
        self.dir_name: Final = str(offer.child_relid)
        self.offer = offer
        self.device_class = device_class
        self.sub_channel_index: Final = offer.sub_channel_index
        self.is_hv_sock: Final = offer.is_hv_sock
        self.primary: Final = primary
        self.device: HvDevice | None = None
        self.irq_name = device_class.irq_name(offer.sub_channel_index, None)
        self.irq = 0
        self.target_cpu = 0
        self.moves = Moves()
        self.state = ChannelState.OFFER
        self.irq_requested = False
        self.gpadl = 0
        self.mapped = False
        self.rescinded = self.rescind_ref = self.rescind_event = self.probe_done = False
        self.rings: RingPair | None = None
        self.requestor: Requestor | None = None
        self.change_target_cpu: Callable[[Channel, int, int], object] | None = None
        self._earlier = (0, 0, 0, 0)
        self._callback_handle: Any = None
        self._attention_handle: Any = None
        out = ffi.new("struct vi_channel **")
        check(
            lib.vi_channel_create(core.handle, self.relid, device_class.mode, out),
            f"channel {self.relid}: cannot be made: it exists already",
        )
        self.c: Any = out[0]

    def __repr__(self) -> str:
        relid = "without relid" if self.relid == INVALID_RELID else self.relid
        return f"<Channel {relid} {self.irq_name} {self.state.name} cpu {self.target_cpu}>"

    @property
    def mode(self) -> CallbackMode:
        """When the callback runs."""
        return self.device_class.mode

    @property
    def gone(self) -> bool:
        """The channel was removed: nothing of it may be asked for any more."""
        return bool(self.c == ffi.NULL)

    @property
    def stats(self) -> ChannelStats:
        """Return a snapshot of the counters. ENODEV: the channel is gone."""
        c = self._present()
        out = ffi.new("struct vi_channel_stats *")
        lib.vi_channel_get_stats(c, out)
        in_full, out_empty, full_first, full_total = self._end_counts(c)
        return ChannelStats(
            out.interrupts,
            out.no_callback,
            out.calls,
            out.packets,
            out.bytes,
            out.checksum,
            out.resyncs,
            out.sig_events,
            in_full,
            out_empty,
            full_first,
            full_total,
            out.attended,
            out.replies,
            out.replies_dropped,
        )

    def _present(self) -> Any:
        c = self.c
        if c == ffi.NULL:
            raise IrqError(errno.ENODEV, f"channel {self.relid}: is gone")
        return c

    def _end_counts(self, c: Any) -> tuple[int, int, int, int]:
        """Return four of ChannelStats: what both ends of the rings counted, in this opening and before."""
        reader, writer = lib.vi_channel_in(c), lib.vi_channel_out(c)
        first, second, third, fourth = self._earlier
        return (
            first + int(reader.intr_in_full),
            second + int(writer.intr_out_empty),
            third + int(writer.out_full_first),
            fourth + int(writer.out_full_total),
        )

    @property
    def ring_in(self) -> RingState:
        """The host-to-guest ring now. EINVAL while the channel shares no rings."""
        return _look(self._mapped().ring_in.struct)

    @property
    def ring_out(self) -> RingState:
        """The guest-to-host ring now. EINVAL while the channel shares no rings."""
        return _look(self._mapped().ring_out.struct)

    def _mapped(self) -> RingPair:
        rings = self.rings
        if rings is None:
            raise IrqError(
                errno.EINVAL, f"channel {self.relid}: its rings are not mapped: it is {self.state.name}, not OPENED"
            )
        return rings

    def rename(self, relid: int) -> None:
        """Give an unmapped channel the relid of another offer (resume)."""
        check(
            lib.vi_channel_set_relid(self._present(), relid),
            f"channel {self.relid}: cannot become {relid}: it is mapped",
        )
        self.relid = relid

    def rescind(self) -> None:
        """Let no arrival through any more, and no packet out. ENODEV: the channel is gone."""
        lib.vi_channel_set_rescind(self._present(), 1)
        self.rescinded = True

    def set_cpu(self, cpu: int) -> None:
        """Expect interrupts on ``cpu``; others still take theirs, by the slower path. ENODEV: the channel is gone."""
        result = lib.vi_channel_set_cpu(self._present(), cpu)
        check(result, f"channel {self.relid}: cannot move to cpu {cpu}: there is none")
        self.target_cpu = cpu

    def set_signal(
        self,
        connection_id: int,
        *,
        send_int_page: Any = ffi.NULL,
        monitor_pending: Any = ffi.NULL,
        monitor_bit: int = 0,
    ) -> None:
        """Set how the host hears of this channel (vmbus_setevent; vmbus.md 2.6).

        Args:
            connection_id: for HvSignalEvent, as the offer has it; 0: nobody hears.
            send_int_page: ``uint64_t *``, the guest-to-host half of the interrupt page, where this relid's bit is set
                too: for a channel that has a monitor bit, or no dedicated interrupt.
            monitor_pending: ``uint32_t *``, this bit of which is set instead of the hypercall; the group of the
                guest-to-host monitor page. Whoever has low latency leaves it out.
            monitor_bit: 0 to 31.
        Raises:
            IrqError: EINVAL for an id of more than 24 bits or no such bit, EBUSY while the channel is open.
        """
        what = f"channel {self.relid}: cannot signal connection {connection_id:#x}, monitor bit {monitor_bit}"
        if not (0 <= connection_id <= lib.VI_CONNECTION_ID_MAX and 0 <= monitor_bit < 32):
            raise IrqError(errno.EINVAL, f"{what}: ids have 24 bits, a group has 32 (EINVAL)")
        result = lib.vi_channel_set_signal(self._present(), connection_id, send_int_page, monitor_pending, monitor_bit)
        check(result, f"{what} while it is open")

    def map(self, irq: int) -> None:
        """Let flags of this relid reach ``irq``, or the channel itself where there is none."""
        check(lib.vi_channel_map(self._present(), irq), f"channel {self.relid}: cannot be mapped to irq {irq}")
        self.irq = irq
        self.mapped = True

    def unmap(self) -> None:
        """Undo :meth:`map`. EDEADLK from inside an interrupt."""
        result = lib.vi_channel_unmap(self._present())
        check(result, f"channel {self.relid}: cannot be unmapped while an interrupt is under way")
        self.mapped = False

    def bind_action(self, action: Any) -> None:
        """Fill a ``struct vi_irqaction *`` so that it runs this channel."""
        lib.vi_channel_bind_action(self._present(), action)

    def share_rings(self, rings: RingPair | None) -> None:
        """Take the guest's ends of two rings, or give them up. ENODEV: the channel is gone."""
        if self.gone and rings is None:
            self.rings = None  # its removal overtook the error path of who had shared them
            return
        c = self._present()
        pair = rings.structs if rings else (ffi.NULL, ffi.NULL)
        earlier = self._end_counts(c)
        result = lib.vi_channel_set_rings(c, *pair, self.device_class.max_packet)
        if result != -errno.EBUSY:  # the ends, if there are any now, count from 0
            self._earlier = earlier
        check(result, f"channel {self.relid}: cannot take its rings while it is open")
        self.rings = rings

    def set_callback(self, callback: Callable[[Channel], object] | None) -> None:
        """Set what an arrival calls: a Python callable, or None for the driver's own reader in C."""
        if callback is None:
            self._set_callback(self._own_reader, ffi.NULL, None)
        else:
            self._set_callback(lib.VI_CALLBACK_HOOK, lib.vi_py_channel_callback, (self, callback))

    @property
    def _own_reader(self) -> int:
        device_class = self.device_class
        if device_class.napi:
            return int(lib.VI_CALLBACK_NAPI)
        return int(lib.VI_CALLBACK_UTIL if device_class.util else lib.VI_CALLBACK_DRAIN)

    def set_attention(self, mode: Attention, on_packet: Callable[[Packet], object] | None = None) -> None:
        """Say which packets the driver's own reader hands to ``on_packet``; the others are read and added up in C.

        Args:
            mode: SPECIAL: packets that are not in-band or have a flag, and what a heartbeat or timesync channel cannot
                answer itself; ALL: every packet; NONE: none.
            on_packet: called with a copy of each, in the channel's callback: it must not wait. What it raises is
                raised again where the machine was driven from.
        Raises:
            IrqError: EINVAL a mode without a callable or the reverse; EDEADLK from inside an interrupt.
        """
        if (mode is Attention.NONE) != (on_packet is None):
            raise IrqError(
                errno.EINVAL,
                f"channel {self.relid}: attention {mode.name} with on_packet={on_packet!r}: SPECIAL and ALL need a "
                "callable, NONE has none (EINVAL)",
            )
        handle = ffi.NULL if on_packet is None else ffi.new_handle(_Watcher(on_packet))
        result = lib.vi_channel_set_attention(self._present(), mode, handle)
        check(result, f"channel {self.relid}: its attention cannot be changed while an interrupt is under way")
        self._attention_handle = handle

    def clear_callback(self) -> None:
        """From here on arrivals are counted and go nowhere; the old callback has ended when this returns."""
        if self.gone:
            return
        self._set_callback(lib.VI_CALLBACK_NONE, ffi.NULL, None)

    def _set_callback(
        self, kind: int, function: Any, context: tuple[Channel, Callable[[Channel], object]] | None
    ) -> None:
        handle = ffi.new_handle(context) if context else ffi.NULL
        result = lib.vi_channel_set_callback(self._present(), kind, function, handle)
        check(result, f"channel {self.relid}: the callback cannot be changed while an interrupt is under way")
        self._callback_handle = handle

    def destroy(self) -> None:
        """Free the C half; the channel must be closed and unmapped."""
        lib.vi_channel_destroy(self._present())
        self.c = ffi.NULL
