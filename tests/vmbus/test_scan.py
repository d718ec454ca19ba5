"""The demultiplexer: flags -> relids -> IRQs, in every engine, vector width and design (vmbus.md 3.2, 3.3)."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.demux import Channel as TwinChannel
from tests.reference.demux import Demux
from tests.rig import ENGINES, SIMDS, VMBUS_SINT, Rig
from vmbusirq._ffi import ffi, lib

SCANNERS = [("fast", simd) for simd in SIMDS] + [("linux", "scalar")]
DESIGNS = ("rfc", "legacy")
WIDE = 24 + 2048  # IRQs, so that every relid has one


@pytest.mark.parametrize(("engine", "simd"), SCANNERS)
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("count", [1, 8, 64, 512, 2047])
def test_every_flag_runs_its_channel_once(engine: str, simd: str, design: str, count: int) -> None:
    """1 to 2047 flags in one scan: the counts of each, nothing left behind, one vector."""
    relids = random.Random(count).sample(range(1, 2048), count)
    with Rig(engine, design=design, simd=simd, irqs=WIDE, cpus=1) as rig:
        channels = [rig.channel(relid) for relid in relids]
        for times in (1, 2):
            assert [1] * count == [rig.signal(relid) for relid in relids]
            assert 1 == rig.settle()
            assert [] == rig.flags()
            assert [times] * count == [int(ch.calls[0]) for ch in channels]
            assert [times] * count == [int(rig.stats(ch).interrupts) for ch in channels]
            if design == "rfc":
                assert [times] * count == [rig.cnt(ch.irq) for ch in channels]
        assert (2 * count if design == "rfc" else 0) == rig.irqs_sum()
        assert {} == rig.lost()


@pytest.mark.parametrize(("engine", "simd"), SCANNERS)
@pytest.mark.parametrize("design", DESIGNS)
def test_borders_of_words_and_of_the_area(engine: str, simd: str, design: str) -> None:
    """Flag 0 is consumed and ignored; 63, 64, 2046, 2047 are relids as any other; unmapped ones are consumed."""
    with Rig(engine, design=design, simd=simd, irqs=WIDE) as rig:
        channels = [rig.channel(relid) for relid in (1, 63, 64, 127, 128, 2046, 2047)]
        for flag in (0, *(ch.relid for ch in channels), 2, 65, 2045):
            assert 1 == rig.signal(flag)
        assert 10 == lib.vi_scan(rig.m, 0)
        assert [] == rig.flags()
        assert [1] * 7 == [int(ch.calls[0]) for ch in channels]
        assert {"flag_zero": 1, "unmapped": 3} == rig.lost()
        assert 0 == lib.vi_scan(rig.m, 0)


def noting(order: list[int], what: int) -> Callable[[int], int]:
    """Return a handler that appends ``what`` whenever it runs."""

    def handler(_cpu: int) -> int:
        order.append(what)
        return 1

    return handler


@pytest.mark.parametrize(("engine", "simd"), SCANNERS)
def test_handlers_run_in_ascending_order_of_relids(engine: str, simd: str) -> None:
    """A forward scan 0..2047, whether few words or many are pending."""
    for relids in ([9, 1, 2047, 64, 700], random.Random(1).sample(range(1, 2048), 400)):
        order: list[int] = []
        with Rig(engine, simd=simd, irqs=WIDE) as rig:
            for relid in relids:
                ch = rig.channel(relid, callback=None, request=False)
                rig.request(ch.irq, noting(order, relid), exact=False)
            for relid in relids:
                rig.signal(relid)
            assert 1 == rig.run()
            assert sorted(relids) == order


def test_a_relid_is_1_to_2047_and_mapped_once() -> None:
    """EINVAL for 0 and 2048; EEXIST for one that is mapped already, EBUSY for mapping it once more."""
    with Rig() as rig:
        out = ffi.new("struct vi_channel **")
        for relid in (0, 2048, 0xFFFF_FFFF):
            assert -errno.EINVAL == lib.vi_channel_create(rig.m, relid, lib.VI_CALL_ISR, out)
            assert -errno.EINVAL == lib.vi_scan_dispatch(rig.m, 0, relid)
        assert -errno.EINVAL == lib.vi_channel_create(rig.m, 1, 3, out)
        ch = rig.channel(1, request=False)
        assert -errno.EEXIST == lib.vi_channel_create(rig.m, 1, lib.VI_CALL_ISR, out)
        rig.close(ch)
        assert 0 == lib.vi_channel_unmap(ch.c)
        assert 0 == lib.vi_channel_create(rig.m, 1, lib.VI_CALL_ISR, out)  # ch waits for another relid
        assert 0 == lib.vi_channel_map(ch.c, ch.irq)
        assert -errno.EBUSY == lib.vi_channel_map(out[0], ch.irq)
        lib.vi_channel_destroy(out[0])


def test_an_unmapped_channel_can_take_another_relid() -> None:
    """A suspended channel keeps its counts and is named anew by the next offer (vmbus.md 7.4)."""
    with Rig() as rig:
        ch = rig.channel(5)
        rig.signal(5)
        rig.settle()
        assert -errno.EBUSY == lib.vi_channel_set_relid(ch.c, 9)
        rig.close(ch)
        assert 0 == lib.vi_channel_unmap(ch.c)
        assert [-errno.EINVAL] * 2 == [lib.vi_channel_set_relid(ch.c, relid) for relid in (0, 2048)]
        assert 0 == lib.vi_channel_set_relid(ch.c, 9)
        assert -errno.EINVAL == lib.vi_channel_map(ch.c, ch.irq)  # that IRQ is relid 5's
        assert 1 == rig.stats(ch).interrupts


@pytest.mark.parametrize("engine", ENGINES)
def test_an_irq_that_carries_a_channel_cannot_be_unmapped_from_under_it(engine: str) -> None:
    """EBUSY until the channel is unmapped; afterwards its flag is lost, and counted so."""
    with Rig(engine) as rig:
        ch = rig.channel(5, request=False)
        assert -errno.EBUSY == lib.vi_domain_unmap(rig.m, 5)
        assert -errno.EBUSY == lib.vi_irq_free_desc(rig.m, ch.irq)
        rig.close(ch)
        assert 0 == lib.vi_channel_unmap(ch.c)
        assert 0 == lib.vi_domain_unmap(rig.m, 5)
        rig.signal(5)
        rig.settle()
        assert {"unmapped": 1} == rig.lost()


def test_sub_steps_make_up_a_scan() -> None:
    """Claim a word, run a relid: what explores orders sees the states between."""
    with Rig() as rig:
        a, b = rig.channel(5), rig.channel(7)
        rig.signal(5)
        rig.signal(7)
        rig.signal(0)
        assert 1 << 5 | 1 << 7 == lib.vi_scan_claim_word(rig.m, 0, 0)
        assert [] == rig.flags()
        assert 1 == rig.signal(5)  # a new edge between claim and dispatch
        assert 1 == lib.vi_scan_dispatch(rig.m, 0, 5)
        assert [5] == rig.flags()
        assert [1, 0] == [rig.cnt(a.irq), rig.cnt(b.irq)]
        assert 1 == lib.vi_scan_dispatch(rig.m, 0, 7)
        assert 2 == rig.irqs_sum()
        assert [0, 0, 0] == [lib.vi_scan_claim_word(rig.m, *at) for at in ((0, 32), (2, 0), (0, 1))]
        assert -errno.EINVAL == lib.vi_scan(rig.m, 2)
        assert {"flag_zero": 1} == rig.lost()


def test_a_handler_cannot_scan_its_own_cpu() -> None:
    """EBUSY from inside; another CPU's flags may be scanned, which makes an arrival elsewhere deterministic."""
    inside: list[int] = []
    with Rig() as rig:
        ch = rig.channel(5, callback=None, request=False)
        other = rig.channel(6, cpu=1)

        def handler(_cpu: int) -> int:
            inside.extend([lib.vi_scan(rig.m, 0), lib.vi_scan_dispatch(rig.m, 0, 6), rig.run(0), rig.run(1)])
            return 1

        rig.request(ch.irq, handler, exact=False)
        rig.signal(5)
        rig.signal(6, cpu=1)
        assert 1 == rig.run(0)
        assert [-errno.EBUSY, -errno.EBUSY, 0, 1] == inside
        assert (1, 1) == (rig.cnt(ch.irq, 0), rig.cnt(other.irq, 1))


@pytest.mark.parametrize("exact", [True, False])
def test_an_arrival_elsewhere_while_the_owner_runs_is_not_lost_in_the_fast_engine(exact: bool) -> None:
    """Unlocked owner: raised again where it came. Locked owner: replayed where it runs. linux: dropped, trap 27."""
    for engine in ENGINES:
        with Rig(engine) as rig:
            ch = rig.channel(5, callback=None, request=False)
            ran: list[int] = []

            def handler(cpu: int, rig: Rig = rig, ran: list[int] = ran) -> int:
                ran.append(cpu)
                if len(ran) == 1:
                    assert 1 == rig.signal(5, cpu=1)
                    assert 1 == rig.run(1)
                return 1

            rig.request(ch.irq, handler, exact=exact)
            rig.signal(5)
            rig.settle()
            if engine == "linux":
                assert ([0], {"in_progress": 1}) == (ran, rig.lost())
            else:
                assert ([0, 0] if exact else [0, 1], {}) == (ran, rig.lost())
                assert len(ran) == rig.cnt(ch.irq)
            assert [] == rig.flags(0) + rig.flags(1)


def test_a_retarget_from_inside_the_handler_keeps_the_old_owner_a_hazard() -> None:
    """Owner moved while its handler runs: the new one waits by raising the flag again, then runs without a lock."""
    with Rig(cpus=3) as rig:
        ch = rig.channel(5, callback=None, request=False)
        ran: list[int] = []

        def handler(cpu: int) -> int:
            ran.append(cpu)
            if len(ran) == 1:
                for owner in (1, 2):
                    assert 0 == lib.vi_channel_set_cpu(ch.c, owner)
                    rig.signal(5, cpu=owner)
                    assert 1 == rig.run(owner)
                    assert [5] == rig.flags(owner)
            return 1

        rig.request(ch.irq, handler, exact=False)
        rig.signal(5)
        rig.settle()
        assert [0, 1, 2] == ran
        assert [1, 1, 1] == [rig.cnt(ch.irq, cpu) for cpu in range(3)]


# ---- batched handlers


def batched(
    rig: Rig, relids: list[int], results: Callable[[Any], list[int]] = lambda batch: [1] * len(batch)
) -> list[list[int]]:
    batches: list[list[int]] = []

    def handler(batch: Any) -> list[int]:
        batches.append(list(batch.hwirqs))
        return results(batch)

    for relid in relids:
        ch = rig.channel(relid, callback=None, request=False)
        rig.request_batched(ch.irq, handler)
        rig.signal(relid)
    return batches


def test_batched_actions_are_called_per_scan_and_counted_afterwards() -> None:
    """vi_hooks.batch gets the IRQs of one scan in its order; each result counts as its own."""
    with Rig() as rig:
        counts_inside: list[int] = []

        def results(batch: Any) -> list[int]:
            counts_inside.append(sum(rig.cnt(24 + relid) for relid in (5, 9, 30)))
            return [int(hwirq != 9) for hwirq in batch.hwirqs]

        batches = batched(rig, [5, 9, 30], results)
        assert 1 == rig.run()
        assert [[5, 9, 30]] == batches
        assert [0] == counts_inside
        assert [1, 1, 1] == [rig.cnt(24 + relid) for relid in (5, 9, 30)]
        assert [0, 1, 0] == [rig.c(24 + relid).irqs_unhandled for relid in (5, 9, 30)]
        assert 3 == rig.irqs_sum()
        rig.signal(9)  # unhandled before: now judged one by one
        rig.signal(30)
        rig.run()
        assert [[9], [30]] == batches[1:]
        assert [1, 2, 2] == [rig.cnt(24 + relid) for relid in (5, 9, 30)]


def test_the_linux_engine_calls_a_batched_action_per_interrupt() -> None:
    """Batches are the fast engine's; the counts are the same."""
    with Rig("linux") as rig:
        batches = batched(rig, [5, 9])
        rig.settle()
        assert [[5], [9]] == batches
        assert [1, 1] == [rig.cnt(29), rig.cnt(33)]


def test_a_batched_handler_that_fails_leaves_its_interrupts_unhandled() -> None:
    """A wrong number of results is an error of the handler; nothing is lost, everything counts as IRQ_NONE."""
    with Rig() as rig:
        batched(rig, [5, 9], lambda _batch: [1])
        rig.run()
        assert [1, 1] == [rig.cnt(29), rig.cnt(33)]
        assert [1, 1] == [rig.c(irq).irqs_unhandled for irq in (29, 33)]
        assert 1 <= len(rig.errors)
        rig.errors.clear()


# ---- against the plain reading


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("signal"), st.integers(0, 1), st.sampled_from([0, 1, 2, 3, 63, 64, 65, 500, 2047])),
        st.tuples(st.just("run"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("post"), st.integers(0, 1), st.just(0)),
        st.tuples(
            st.sampled_from(["close", "open", "rescind", "unrescind", "disable", "enable", "owner"]),
            st.integers(0, 4),
            st.integers(0, 1),
        ),
    ),
    max_size=60,
)
RELIDS = (1, 2, 63, 64, 2047)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SCANNERS), st.sampled_from(DESIGNS), STEPS)
def test_any_order_of_events_counts_as_the_plain_reading_does(
    scanner: tuple[str, str], design: str, steps: list[tuple[str, int, int]]
) -> None:
    """Flags on owner and other CPUs, messages, closed, rescinded, disabled channels.

    Counters equal after every step.
    """
    twin = Demux(design, 2)
    with Rig(scanner[0], design=design, simd=scanner[1], irqs=WIDE) as rig:
        channels = [rig.channel(relid) for relid in RELIDS]
        mirrors = [TwinChannel(ch.irq) for ch in channels]
        twin.channels = dict(zip(RELIDS, mirrors, strict=True))
        for what, at, arg in steps:
            if what == "signal":
                assert twin.signal(at, arg) == rig.signal(arg, at)
            elif what == "run":
                assert int(twin.run(at)) == rig.run(at)
            elif what == "post":
                free = lib.vi_synic_post(rig.m, at, VMBUS_SINT, 1, b"", 0) == 0
                assert twin.post(at) == free
            else:
                control(rig, twin, channels[at], mirrors[at], what, arg)
            compare(rig, twin, channels, mirrors)


def control(rig: Rig, twin: Demux, ch: Any, mirror: TwinChannel, what: str, cpu: int) -> None:
    if what == "close":
        rig.close(ch)
        mirror.callback = False
    elif what == "open":
        rig.open(ch)
        mirror.callback = True
    elif what in ("rescind", "unrescind"):
        mirror.rescind = what == "rescind"
        lib.vi_channel_set_rescind(ch.c, mirror.rescind)
    elif what == "owner":
        assert 0 == lib.vi_channel_set_cpu(ch.c, cpu)
    elif twin.design == "rfc" and what == "disable" and not mirror.disabled:
        assert 1 == lib.vi_irq_disable(rig.m, ch.irq)
        mirror.disabled = True
    elif twin.design == "rfc" and what == "enable" and mirror.disabled:
        assert 0 == lib.vi_irq_enable(rig.m, ch.irq)
        mirror.disabled = False
        if mirror.pending:  # the resend tasklet, before anything else can come
            run_resend(rig, twin, mirror)


def run_resend(rig: Rig, twin: Demux, mirror: TwinChannel) -> None:
    twin.run(0)
    twin.handle_irq(0, mirror)
    assert 1 == rig.run(0)


def compare(rig: Rig, twin: Demux, channels: list[Any], mirrors: list[TwinChannel]) -> None:
    for cpu in (0, 1):
        assert sorted(twin.flags[cpu]) == rig.flags(cpu)
        assert twin.hyp[cpu] == rig.hyp(cpu)
        assert twin.irqs_sum[cpu] == rig.irqs_sum(cpu)
        if twin.design == "rfc":
            assert [twin.cnt[ch.irq, cpu] for ch in channels] == [rig.cnt(ch.irq, cpu) for ch in channels]
    assert {name: n for name, n in twin.lost.items() if n} == rig.lost()
    assert [mirror.interrupts for mirror in mirrors] == [int(rig.stats(ch).interrupts) for ch in channels]
    assert [mirror.interrupts for mirror in mirrors] == [int(ch.calls[0]) for ch in channels]
