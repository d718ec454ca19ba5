"""One channel of the guest: its identity, its rings, its IRQ, the CPU it interrupts (struct vmbus_channel)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError, check
from vmbusirq.vmbus.drivers.catalogue import CallbackMode, DeviceClass

__all__ = ["Channel", "ChannelState", "ChannelStats", "RingState"]


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


@dataclass(frozen=True, slots=True)
class RingState:
    """One ring as it stood when it was looked at (struct hv_ring_buffer_debug_info); sizes in bytes."""

    interrupt_mask: int
    read_index: int
    write_index: int
    bytes_to_read: int
    bytes_to_write: int


class RingPair:
    """The guest memory that a channel shares with the host: the out ring and the in ring, each mapped twice."""

    def __init__(self, ring_bytes: int) -> None:
        self.ring_in: Any = _ring(ring_bytes)
        self.ring_out: Any = _ring(ring_bytes)


def _ring(ring_bytes: int) -> Any:
    mem = ffi.new("struct vi_ring_mem *")
    check(lib.vi_ring_mem_create(ring_bytes, mem), f"channel: cannot map a ring of {ring_bytes} bytes")
    return ffi.gc(mem, lib.vi_ring_mem_destroy)


def _look(mem: Any) -> RingState:
    hdr = mem.hdr
    return RingState(
        interrupt_mask=int(hdr.interrupt_mask),
        read_index=int(hdr.read_index),
        write_index=int(hdr.write_index),
        bytes_to_read=int(lib.vi_ring_bytes_to_read(hdr, mem.data_size)),
        bytes_to_write=int(lib.vi_ring_bytes_to_write(hdr, mem.data_size)),
    )


class Channel:
    """A channel from its offer to its removal.

    Attributes:
        relid: 1 to 2047, the host's name for it and its hwirq.
        device: which device it belongs to; ``device_class`` is that device's row of the catalogue.
        sub_channel_index: 0 for the primary.
        irq_name: the action name its IRQ will have.
        irq: its Linux IRQ, 0 in a design without channel IRQs.
        target_cpu: the CPU that the guest has asked the host to interrupt.
        irq_requested: request_irq has succeeded and free_irq has not been called since.
    """

    def __init__(
        self, core: Core, relid: int, device: str, device_class: DeviceClass, sub_channel_index: int, irq_name: str
    ) -> None:
        self.relid: Final = relid
        self.device: Final = device
        self.device_class: Final = device_class
        self.sub_channel_index: Final = sub_channel_index
        self.irq_name = irq_name
        self.irq = 0
        self.target_cpu = 0
        self.state = ChannelState.OFFER
        self.irq_requested = False
        self.rings: RingPair | None = None
        self._earlier: tuple[int, ...] = (0, 0, 0, 0)
        self._callback_handle: Any = None
        out = ffi.new("struct vi_channel **")
        mode = device_class.mode
        check(
            lib.vi_channel_create(core.handle, relid, mode, out), f"channel {relid}: cannot be made: it exists already"
        )
        self.c: Any = out[0]

    def __repr__(self) -> str:
        return f"<Channel {self.relid} {self.irq_name} {self.state.name} cpu {self.target_cpu}>"

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
        return ChannelStats(
            out.interrupts,
            out.no_callback,
            out.calls,
            out.packets,
            out.bytes,
            out.checksum,
            out.resyncs,
            out.sig_events,
            *self._end_counts(c),
        )

    def _present(self) -> Any:
        c = self.c
        if c == ffi.NULL:
            raise IrqError(errno.ENODEV, f"channel {self.relid}: is gone")
        return c

    def _end_counts(self, c: Any) -> tuple[int, ...]:
        """Return the last four of ChannelStats: what both ends of the rings counted, in this opening and before."""
        reader, writer = lib.vi_channel_in(c), lib.vi_channel_out(c)
        now = (reader.intr_in_full, writer.intr_out_empty, writer.out_full_first, writer.out_full_total)
        return tuple(before + int(count) for before, count in zip(self._earlier, now, strict=True))

    @property
    def ring_in(self) -> RingState:
        """The host-to-guest ring now. EINVAL while the channel shares no rings."""
        return _look(self._mapped().ring_in)

    @property
    def ring_out(self) -> RingState:
        """The guest-to-host ring now. EINVAL while the channel shares no rings."""
        return _look(self._mapped().ring_out)

    def _mapped(self) -> RingPair:
        rings = self.rings
        if rings is None:
            raise IrqError(
                errno.EINVAL, f"channel {self.relid}: its rings are not mapped: it is {self.state.name}, not OPENED"
            )
        return rings

    def set_cpu(self, cpu: int) -> None:
        """Expect interrupts on ``cpu``; other CPUs still take theirs, by the slower path."""
        check(lib.vi_channel_set_cpu(self.c, cpu), f"channel {self.relid}: cannot move to cpu {cpu}: there is none")
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
        check(lib.vi_channel_map(self.c, irq), f"channel {self.relid}: cannot be mapped to irq {irq}")
        self.irq = irq

    def unmap(self) -> None:
        """Undo :meth:`map`. EDEADLK from inside an interrupt."""
        check(lib.vi_channel_unmap(self.c), f"channel {self.relid}: cannot be unmapped from inside an interrupt")

    def bind_action(self, action: Any) -> None:
        """Fill a ``struct vi_irqaction *`` so that it runs this channel."""
        lib.vi_channel_bind_action(self.c, action)

    def share_rings(self, rings: RingPair | None) -> None:
        """Take the guest's ends of two rings, or give them up."""
        pair = (rings.ring_in, rings.ring_out) if rings else (ffi.NULL, ffi.NULL)
        earlier = self._end_counts(self.c)
        result = lib.vi_channel_set_rings(self.c, *pair, self.device_class.max_packet)
        if result != -errno.EBUSY:  # the ends, if there are any now, count from 0
            self._earlier = earlier
        check(result, f"channel {self.relid}: cannot take its rings while it is open")
        self.rings = rings

    def set_callback(self, callback: Callable[[Channel], object] | None) -> None:
        """Set what an arrival calls: a Python callable, or None for the driver's own reader in C."""
        if callback is None:
            kind = lib.VI_CALLBACK_NAPI if self.device_class.napi else lib.VI_CALLBACK_DRAIN
            self._set_callback(kind, ffi.NULL, None)
        else:
            self._set_callback(lib.VI_CALLBACK_HOOK, lib.vi_py_channel_callback, (self, callback))

    def clear_callback(self) -> None:
        """From here on arrivals are counted and go nowhere; the old callback has ended when this returns."""
        self._set_callback(lib.VI_CALLBACK_NONE, ffi.NULL, None)

    def _set_callback(
        self, kind: int, function: Any, context: tuple[Channel, Callable[[Channel], object]] | None
    ) -> None:
        handle = ffi.new_handle(context) if context else ffi.NULL
        result = lib.vi_channel_set_callback(self.c, kind, function, handle)
        check(result, f"channel {self.relid}: the callback cannot be changed from inside an interrupt")
        self._callback_handle = handle

    def destroy(self) -> None:
        """Free the C half; the channel must be closed and unmapped."""
        lib.vi_channel_destroy(self.c)
        self.c = ffi.NULL
