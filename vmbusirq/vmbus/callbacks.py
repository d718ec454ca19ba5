"""Where the data plane calls the guest driver: a channel's callback, a packet, a message out of its slot."""

from __future__ import annotations

from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.irq.callbacks import owner_of, running
from vmbusirq.wire.packet import packet_from_c

__all__ = ["ROOM"]

ROOM: Final = "vmbus"


def _py_channel_callback(cpu: Any, irq: int, context: Any) -> int:
    """Run a channel's Python callback.

    An error is kept and the arrival is handled all the same, as in vmbus_chan_handler.
    """
    channel, callback = ffi.from_handle(context)
    try:
        with running(lib.vi_cpu_id(cpu)):
            callback(channel)
    except BaseException as error:
        owner_of(cpu).keep(error)
    return int(lib.VI_IRQ_HANDLED)


def _py_message(cpu: Any, message: Any) -> None:
    """Hand a copy of a control message to the connection."""
    owner = owner_of(cpu)
    try:
        payload = bytes(ffi.buffer(message.payload, min(message.payload_size, lib.VI_MSG_PAYLOAD)))
        with running(lib.vi_cpu_id(cpu)):
            owner.rooms[ROOM].on_message(message.type, message.payload_size, payload)
    except BaseException as error:
        owner.keep(error)


def _py_stimer(cpu: Any, message: Any) -> None:
    """Hand a copy of a timer message to the connection, in the hard interrupt; an error is kept, the slot freed."""
    owner = owner_of(cpu)
    try:
        payload = bytes(ffi.buffer(message.payload, min(message.payload_size, lib.VI_MSG_PAYLOAD)))
        with running(lib.vi_cpu_id(cpu)):
            owner.rooms[ROOM].on_stimer(lib.vi_cpu_id(cpu), payload)
    except BaseException as error:
        owner.keep(error)


def _py_packet(cpu: Any, handle: Any, packet: Any) -> None:
    """Hand a copy of a packet that wants attention to who asked for it; an error is kept, the packet is read."""
    try:
        with running(lib.vi_cpu_id(cpu)):
            ffi.from_handle(handle).on_packet(packet_from_c(packet))
    except BaseException as error:
        owner_of(cpu).keep(error)


ffi.def_extern(name="vi_py_channel_callback")(_py_channel_callback)
ffi.def_extern(name="vi_py_message")(_py_message)
ffi.def_extern(name="vi_py_stimer")(_py_stimer)
ffi.def_extern(name="vi_py_packet")(_py_packet)
