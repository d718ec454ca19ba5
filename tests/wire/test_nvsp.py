"""Messages of network adapters: layouts, round trips, hostile bytes (drivers/net/hyperv/hyperv_net.h)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.wire import nvsp
from vmbusirq.wire.record import PayloadError

REQUESTS = {
    nvsp.Init(1, 2): "01000000 01000000 02000000",
    nvsp.SendNdisVersion(6, 30): "64000000 06000000 1e000000",
    nvsp.ShareReceiveBuffer(0xE1E10): "65000000 101e0e00 feca",
    nvsp.RevokeReceiveBuffer(): "67000000 feca",
    nvsp.ShareSendBuffer(0xE1E11): "68000000 111e0e00 0000",
    nvsp.RevokeSendBuffer(): "6a000000 0000",
    nvsp.RndisPacket(0, 3, 4): "6b000000 00000000 03000000 04000000",
    nvsp.SendNdisConfig(1514, 1): "7d000000 ea050000 00000000 0100000000000000",
    nvsp.SubchannelRequest(1, 7): "85000000 01000000 07000000",
}
COMPLETIONS = {
    nvsp.InitComplete(0x60001, 34, 1): "02000000 01000600 22000000 01000000",
    nvsp.ReceiveBufferComplete(1, 1, 0, 1728, 10728, 18537984): (
        "66000000 01000000 01000000 00000000 c0060000 e8290000 00de1a01"
    ),
    nvsp.SendBufferComplete(1, 6144): "69000000 01000000 00180000",
    nvsp.RndisPacketComplete(1): "6c000000 01000000",
    nvsp.SubchannelComplete(1, 7): "85000000 01000000 07000000",
}


@pytest.mark.parametrize("completion", [False, True])
def test_layouts(completion: bool) -> None:
    """Type u32, then the body without gaps."""
    for message, text in (COMPLETIONS if completion else REQUESTS).items():
        data = bytes.fromhex(text.replace(" ", ""))
        assert data == nvsp.nvsp_bytes(message)
        assert message == nvsp.nvsp_message(data + bytes(6), completion=completion)


@pytest.mark.parametrize("completion", [False, True])
def test_cut_short_is_refused(completion: bool) -> None:
    """Each message at every length below its own."""
    for message in COMPLETIONS if completion else REQUESTS:
        data = nvsp.nvsp_bytes(message)
        for size in range(len(data)):
            with pytest.raises(PayloadError):
                nvsp.nvsp_message(data[:size], completion=completion)


def test_a_request_is_no_completion() -> None:
    """The packet type says which a type is: 133 is both, the others are one."""
    for message in REQUESTS:
        if message.type != nvsp.MessageType.SUBCHANNEL:
            with pytest.raises(PayloadError):
                nvsp.nvsp_message(nvsp.nvsp_bytes(message), completion=True)


@given(st.binary(max_size=60), st.booleans())
def test_hostile_bytes(data: bytes, completion: bool) -> None:
    """Nothing but PayloadError; what decodes encodes to the bytes that were read, gaps aside."""
    try:
        message = nvsp.nvsp_message(data, completion=completion)
    except PayloadError:
        return
    again = nvsp.nvsp_bytes(message)
    assert message == nvsp.nvsp_message(again, completion=completion)
    assert len(again) <= len(data)
