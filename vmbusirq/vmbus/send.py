"""What a driver sends on its channel: in-band data, data in page buffers, data in one multi-page buffer.

See vmbus_sendpacket(), vmbus_sendpacket_pagebuffer() and vmbus_sendpacket_mpb_desc() in drivers/hv/channel.c, and
hv_ringbuffer_write(), v6.10.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Any, Final

from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.vmbus.pages import RingPair
from vmbusirq.vmbus.requestor import RQST_ERROR, Requestor
from vmbusirq.wire.packet import COMPLETION_REQUESTED, DATA_INBAND, DATA_USING_GPA_DIRECT, Packet
from vmbusirq.wire.protocol import GpaRange
from vmbusirq.wire.ring import RingWriter

__all__ = ["MAX_PAGE_BUFFER_COUNT", "Sender"]

MAX_PAGE_BUFFER_COUNT: Final = 32


class Sender:
    """The sending half of a channel.

    Attributes:
        relid: the host's name for it.
        rescinded: the host has taken the channel away.
        rings: None while the channel shares none.
        requestor: gives out transaction ids, and takes them back; None: the driver's own ids go out.
    """

    c: Any
    relid: int
    rescinded: bool
    rings: RingPair | None
    requestor: Requestor | None

    def send(self, payload: bytes, *, type: int = DATA_INBAND, flags: int = 0, trans_id: int = 0) -> None:  # noqa: A002
        """Write one packet and signal the host by the ring's rule.

        Args:
            payload: padded with zeroes to a multiple of 8 bytes.
            type: in-band data, or a completion.
            flags: 0 or COMPLETION_REQUESTED.
            trans_id: 64 bits; with a requestor and COMPLETION_REQUESTED the requestor keeps it and sends an id of its
                own.
        Raises:
            IrqError: ENODEV the channel was rescinded or is not open; EAGAIN no room, or no request id left; EINVAL,
                EMSGSIZE not in the format.
        """
        self._send(Packet(payload, type, flags, trans_id))

    def send_pagebuffer(self, pages: Sequence[tuple[int, int, int]], payload: bytes, trans_id: int) -> None:
        """Send up to 32 page buffers, each (pfn, offset in the page, bytes), and ask for a completion.

        Raises:
            IrqError: EINVAL for none, more than 32, or one that leaves its page; others as :meth:`send`.
        """
        if not 0 < len(pages) <= MAX_PAGE_BUFFER_COUNT:
            raise IrqError(
                errno.EINVAL,
                f"channel {self.relid}: {len(pages)} page buffers (EINVAL); 1 to {MAX_PAGE_BUFFER_COUNT} can be sent",
            )
        self._send_direct([GpaRange(size, offset, (pfn,)) for pfn, offset, size in pages], payload, trans_id)

    def send_mpb(self, buffer: GpaRange, payload: bytes, trans_id: int) -> None:
        """Send one buffer of many pages and ask for a completion. Errors as :meth:`send_pagebuffer`."""
        self._send_direct([buffer], payload, trans_id)

    def _send_direct(self, ranges: Sequence[GpaRange], payload: bytes, trans_id: int) -> None:
        for item in ranges:
            pages = -(-(item.byte_count + item.byte_offset) // 4096)
            if not item.byte_count or item.byte_offset >= 4096 or len(item.pfns) != pages:
                raise IrqError(
                    errno.EINVAL,
                    f"channel {self.relid}: {item.byte_count} bytes at offset {item.byte_offset} are not "
                    f"{len(item.pfns)} pages (EINVAL)",
                )
        words = tuple(word for item in ranges for word in item.words)
        header = struct.pack(f"<II{len(words)}Q", 0, len(ranges), *words)
        self._send(Packet(payload, DATA_USING_GPA_DIRECT, COMPLETION_REQUESTED, trans_id, header))

    def _send(self, packet: Packet) -> None:
        rings = self.rings
        if self.rescinded or rings is None:
            why = "was rescinded" if self.rescinded else "shares no rings: it is not open"
            raise IrqError(errno.ENODEV, f"channel {self.relid}: cannot send: it {why} (ENODEV)")
        requestor = self.requestor if packet.flags == COMPLETION_REQUESTED else None
        trans_id = packet.trans_id
        if requestor is not None:
            trans_id = requestor.next_id(packet.trans_id)
            if trans_id == RQST_ERROR:
                raise IrqError(
                    errno.EAGAIN, f"channel {self.relid}: no request id is free (EAGAIN); wait for completions"
                )
        writer = RingWriter.wrap(lib.vi_channel_out(self.c), rings.ring_out)
        try:
            signal = writer.write(Packet(packet.payload, packet.type, packet.flags, trans_id, packet.ranges))
        except IrqError:
            if requestor is not None:
                requestor.release(trans_id)
            raise
        if signal:
            lib.vi_channel_setevent(self.c)
