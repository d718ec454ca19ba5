"""What the host asks integration services all the time: heartbeat and timesync requests (vmbus.md 1.16, hv_util.c)."""

from __future__ import annotations

from typing import Any, Final

from vmbusirq._ffi import ffi, lib

__all__ = ["REQUESTS", "ic_request"]

VERSION: Final = {"major": 3, "minor": 0}  # of the framework, and of both services since Windows 8
TIMESYNC_BYTES: Final = 25  # ictimesync_data, which 3.0 speaks: three times of 8 bytes, then flags


def ic_request(message_type: int, body: bytes) -> bytes:
    """Return the payload of a request: pipe header, IC message header, ``body``."""
    header = ffi.new(
        "struct vi_ic_header *",
        {
            "framework": VERSION,
            "message": VERSION,
            "type": message_type,
            "size": len(body),
            "flags": lib.VI_IC_TRANSACTION | lib.VI_IC_REQUEST,
        },
    )
    pipe = ffi.new("struct vi_pipe_header *", {"flags": lib.VI_PIPE_DATA, "msgsize": ffi.sizeof(header[0]) + len(body)})
    return _bytes(pipe) + _bytes(header) + body


def _bytes(struct: Any) -> bytes:
    return bytes(ffi.buffer(struct))


REQUESTS: Final = {
    "heartbeat": ic_request(lib.VI_IC_HEARTBEAT, bytes(ffi.sizeof("struct vi_ic_heartbeat"))),
    "timesync": ic_request(lib.VI_IC_TIMESYNC, bytes(TIMESYNC_BYTES)),
}
"""By class name: what bulk traffic of such a channel begins with."""
