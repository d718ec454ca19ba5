"""GPADLs as the host takes them: assembly, checks, quota, teardown (vmbus.md 2.10)."""

from __future__ import annotations

import errno

import pytest

from tests.host.scripted import MEMORY_BYTES, Rig
from vmbusirq.errors import IrqError
from vmbusirq.host.gpadl import GpadlState
from vmbusirq.host.options import MIB, HostOptions
from vmbusirq.wire.protocol import (
    CloseChannel,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    GpaRange,
    RelidReleased,
    Unload,
    UnloadResponse,
    Version,
    gpadl_messages,
)

FAILED = 0x8000FFFF


def connected(options: HostOptions | None = None, devices: int = 2, **more: object) -> Rig:
    rig = Rig(options=options or HostOptions(), **more)  # type: ignore[arg-type]
    for number in range(1, devices + 1):
        rig.device(number)
    rig.connect()
    return rig


@pytest.mark.parametrize(("pages", "messages"), [(1, 1), (26, 1), (27, 2), (54, 2), (64, 3), (256, 10)])
def test_a_gpadl_comes_in_so_many_messages(pages: int, messages: int) -> None:
    """vmbus.md 1.17: the answer follows the last one; the device sees the guest's memory."""
    rig = connected()
    first = rig.memory.alloc(pages)
    parts = gpadl_messages(1, 7, [GpaRange.of_pages(range(first, first + pages))])
    assert messages == len(parts)
    assert [] == rig.send(*parts[:-1])
    assert [GpadlCreated(1, 7, 0)] == rig.send(parts[-1])
    gpadl = rig.channel(1).gpadl(7)
    assert gpadl is not None
    gpadl.write(pages * 4096 - 5, b"hello")
    assert b"hello" == rig.memory.read((first + pages) * 4096 - 5, 5)
    assert pages * 4096 == rig.bus.quota.used_bytes
    assert [GpadlTorndown(7)] == rig.send(GpadlTeardown(1, 7))
    assert rig.channel(1).gpadl(7) is None


def test_reading_goes_across_ranges_and_offsets() -> None:
    """vmbus.md 2.10: ranges begin anywhere in their first page."""
    rig = connected()
    a, b = rig.memory.alloc(3), rig.memory.alloc(1)
    rig.send(*gpadl_messages(1, 7, [GpaRange(4096, 4090, (a + 2, a)), GpaRange(10, 100, (b,))]))
    gpadl = rig.channel(1).gpadl(7)
    assert gpadl is not None
    gpadl.write(0, bytes(range(256)) * 16 + b"0123456789")
    assert bytes(range(6)) == rig.memory.read((a + 2) * 4096 + 4090, 6)
    assert bytes([6, 7]) == rig.memory.read(a * 4096, 2)
    assert b"0123456789" == rig.memory.read(b * 4096 + 100, 10)
    assert bytes([255]) + b"012" == gpadl.read(4095, 4)
    for offset, size in ((0, 4107), (-1, 1), (4106, 1), (0, -1)):
        with pytest.raises(IrqError) as error:
            gpadl.read(offset, size)
        assert errno.EFAULT == error.value.errno


BAD = [
    ("no word for a range", GpadlHeader(1, 7, 0, 1)),
    ("no bytes", GpadlHeader(1, 7, 16, 1, (0, 5))),
    ("offset", GpadlHeader(1, 7, 16, 1, (8 | 4096 << 32, 5))),
    ("overflow", GpadlHeader(1, 7, 16, 1, (0xFFFFFFFF, 5))),
    ("too few pages", GpadlHeader(1, 7, 16, 1, (4097, 5))),
    ("second range missing", GpadlHeader(1, 7, 16, 2, (4096, 5))),
    ("page outside the guest", GpadlHeader(1, 7, 16, 1, (4096, MEMORY_BYTES // 4096))),
    ("page far outside", GpadlHeader(1, 7, 16, 1, (4096, (1 << 64) - 1))),
]


@pytest.mark.parametrize(("why", "message"), BAD, ids=[why for why, _ in BAD])
def test_bad_ranges_are_refused_and_forgotten(why: str, message: GpadlHeader) -> None:
    """vmbus.md 2.10: GPADL_CREATED with 0x8000FFFF; the handle is free again."""
    rig = connected()
    assert [GpadlCreated(1, 7, FAILED)] == rig.send(message), why
    assert (0, 0) == (rig.bus.quota.used_bytes, len(rig.bus.default.gpadls))
    assert [GpadlCreated(1, 7, 0)] == rig.send(GpadlHeader(1, 7, 16, 1, (4096, 5)))


def test_spare_words_are_cut_or_left() -> None:
    """vmbus.md 2.10: beyond range_buflen they are cut; inside, trailing words are fine."""
    rig = connected()
    assert [GpadlCreated(1, 7, 0)] == rig.send(GpadlHeader(1, 7, 16, 1, (4096, 5, 6, 7)))
    assert [GpadlCreated(1, 8, 0)] == rig.send(GpadlHeader(1, 8, 32, 1, (4096, 5, 6, 7)))
    assert [] == rig.send(GpadlHeader(1, 9, 24, 1, (8192, 5)))
    assert [GpadlCreated(1, 9, 0)] == rig.send(GpadlBody(9, (6, 7, 8)))


def test_duplicates_and_unknown_channels_are_refused() -> None:
    """vmbus.md 2.10: the same for a handle whose messages are still coming in."""
    rig = connected()
    good = GpadlHeader(1, 7, 16, 1, (4096, 5))
    assert [GpadlCreated(1, 7, 0), GpadlCreated(1, 7, FAILED)] == rig.send(good, good)
    assert [GpadlCreated(9, 7, FAILED)] == rig.send(GpadlHeader(9, 7, 16, 1, (4096, 5)))
    assert [GpadlCreated(2, 7, 0)] == rig.send(GpadlHeader(2, 7, 16, 1, (4096, 5)))
    assert [] == rig.send(GpadlHeader(1, 8, 24, 1, (8192, 5)))
    assert [GpadlCreated(2, 8, FAILED)] == rig.send(GpadlHeader(2, 8, 24, 1, (8192, 5)))
    assert [GpadlCreated(1, 8, 0)] == rig.send(GpadlBody(8, (6,)))


def test_a_body_for_no_gpadl_gets_no_answer() -> None:
    """vmbus.md 2.10: there is no channel id in it."""
    rig = connected()
    assert [] == rig.send(GpadlBody(7, (1, 2)))
    rig.send(GpadlHeader(1, 7, 16, 1, (4096, 5)))
    assert [] == rig.send(GpadlBody(7, (1, 2)))
    assert 2 == len(rig.log)


def test_teardown_wants_an_accepted_gpadl() -> None:
    """vmbus.md 2.10: anything else is an error without a reply."""
    rig = connected(HostOptions(gpadl_delay_ticks=10))
    assert [] == rig.send(GpadlTeardown(1, 7))
    assert [] == rig.send(GpadlHeader(1, 7, 24, 1, (8192, 5)), GpadlTeardown(1, 7))
    assert [] == rig.send(GpadlBody(7, (6,)), GpadlTeardown(1, 7))
    assert [GpadlCreated(1, 7, 0)] == rig.wait(10)
    assert [] == rig.send(GpadlTeardown(2, 7), GpadlTeardown(1, 7), GpadlTeardown(1, 7))
    assert [GpadlTorndown(7)] == rig.wait(10)
    assert 5 == len(rig.log)


def test_memory_under_an_open_ring_is_kept_until_close() -> None:
    """The host never lets a ring's pages go while it reads them: TORNDOWN follows CLOSECHANNEL."""
    rig = connected()
    rings = rig.open(1)
    assert [] == rig.send(GpadlTeardown(1, rings.gpadl))
    rig.bus.send(1)
    assert [GpadlTorndown(rings.gpadl)] == rig.send(CloseChannel(1))


@pytest.mark.parametrize(
    ("version", "mib"), [(Version.V2_4, 384), (Version.V5_1, 384), (Version.V5_2, 1280), (Version.V5_3, 1280)], ids=str
)
def test_the_quota_depends_on_the_host(version: Version, mib: int) -> None:
    """Issue 3: 1280 MiB for hosts that speak 5.2 or later, 384 MiB before."""
    assert mib * MIB == HostOptions().quota(version)
    assert 5 * MIB == HostOptions(gpadl_quota_bytes=5 * MIB).quota(version)


def test_what_passes_the_quota_is_refused() -> None:
    """A status other than 0 is the guest's -EDQUOT; both sides of the border, over all channels."""
    rig = connected(HostOptions(gpadl_quota_bytes=10 * 4096))
    first = rig.memory.alloc(12)
    handle, status = rig.gpadl(1, range(first, first + 6))
    assert 0 == status
    assert FAILED == rig.gpadl(2, range(first, first + 5))[1]
    assert 0 == rig.gpadl(2, range(first, first + 4))[1]
    rig.send(GpadlTeardown(1, handle))
    assert 0 == rig.gpadl(2, range(first, first + 6))[1]


def test_unfinished_gpadls_count_too() -> None:
    """A guest that only begins GPADLs must not fill the host's memory."""
    rig = connected(HostOptions(gpadl_quota_bytes=100 * 4096, gpadls_max=60))
    assert [] == rig.send(*[GpadlHeader(1, handle, 8 * 41, 1, (40 * 4096,)) for handle in (1, 2)])
    assert [GpadlCreated(1, 3, FAILED)] == rig.send(GpadlHeader(1, 3, 8 * 41, 1, (40 * 4096,)))
    answers = rig.send(*[GpadlHeader(1, handle, 0, 0) for handle in range(10, 40)])
    assert 20 == sum(answer.creation_status == 0 for answer in answers if isinstance(answer, GpadlCreated))
    rig.one(UnloadResponse, rig.send(Unload()))
    assert 0 == rig.bus.quota.used_bytes


def test_the_number_of_gpadls_is_bounded() -> None:
    """HostOptions.gpadls_max (ours)."""
    rig = connected(HostOptions(gpadls_max=3))
    statuses = [rig.gpadl(1, [5])[1] for _ in range(4)]
    assert [0, 0, 0, FAILED] == statuses


def test_releasing_a_relid_gives_its_memory_back() -> None:
    """The guest has forgotten the channel; a device that answers late changes nothing."""
    rig = connected(HostOptions(gpadl_delay_ticks=10))
    rig.send(GpadlHeader(1, 7, 16, 1, (4096, 5)))
    assert GpadlState.OFFERED is next(iter(rig.bus.default.gpadls)).state
    rig.send(RelidReleased(1))
    assert 0 == rig.bus.quota.used_bytes
    assert [] == rig.wait(10)


def test_unload_waits_for_memory_that_devices_have() -> None:
    """vmbus.md 2.10: OfferedTearingDown and TearingDown end before UNLOAD_RESPONSE."""
    rig = connected(HostOptions(gpadl_delay_ticks=10))
    rig.send(GpadlHeader(1, 7, 16, 1, (4096, 5)))
    rig.partition.clock.advance(5)
    assert [] == rig.send(Unload())
    assert GpadlState.OFFERED_TEARING_DOWN is next(iter(rig.bus.default.gpadls)).state
    rig.one(UnloadResponse, rig.wait(5))
    assert 0 == len(rig.bus.default.gpadls)
