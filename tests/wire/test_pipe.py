"""Pipe packets of hv_sock connections (vmbus.md 1.16)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.errors import IrqError
from vmbusirq.wire.pipe import pipe_bytes, pipe_payload
from vmbusirq.wire.record import PayloadError


def test_layout() -> None:
    """{packet type 1, length}, then the data; no data is FIN."""
    assert b"\1\0\0\0\3\0\0\0abc" == pipe_bytes(b"abc")
    assert b"\1\0\0\0\0\0\0\0" == pipe_bytes(b"")
    assert b"" == pipe_payload(pipe_bytes(b""))


def test_at_most_16384_bytes() -> None:
    """Both sides of the border, both ways."""
    assert bytes(16384) == pipe_payload(pipe_bytes(bytes(16384)))
    with pytest.raises(IrqError) as caught:
        pipe_bytes(bytes(16385))
    assert errno.EMSGSIZE == caught.value.errno
    with pytest.raises(PayloadError):
        pipe_payload(b"\1\0\0\0\1\x40\0\0" + bytes(16385))


@given(st.binary(max_size=64), st.binary(max_size=7))
def test_padding_is_cut_off(data: bytes, padding: bytes) -> None:
    """The header carries the exact count."""
    assert data == pipe_payload(pipe_bytes(data) + padding)


@given(st.binary(max_size=40))
def test_hostile_bytes(data: bytes) -> None:
    """Nothing but PayloadError, never more data than came."""
    try:
        assert len(pipe_payload(data)) <= len(data) - 8
    except PayloadError:
        return
