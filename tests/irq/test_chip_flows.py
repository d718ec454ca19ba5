"""Flow handlers: who counts, what the chip hears, what becomes of an arrival that cannot run (genirq.md 4.5, 4.6)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from tests.reference.accounting import HANDLED, NONE
from tests.rig import ENGINES, Rig, chip_ops
from vmbusirq._ffi import ffi, lib

IRQ = 9
FLOWS = {
    name: getattr(lib, f"VI_FLOW_{name.upper()}")
    for name in (
        *("bad", "simple", "untracked", "edge", "level", "fasteoi"),
        *("percpu", "percpu_devid", "percpu_demux", "percpu_nostat"),
    )
}
MASK_ONLY = ("mask", "unmask")
GENTLE = ("ack", "eoi", "mask", "unmask")  # every callback that a flow handler may call, mask_ack left out

# What one arrival adds to (cnt, irqs_sum, tot_count) by what the action returned (table of genirq.md 4.5).
COUNTS = {
    "bad": {NONE: (1, 1, 1), HANDLED: (1, 1, 1)},
    "simple": {NONE: (1, 1, 1), HANDLED: (1, 1, 1)},
    "untracked": {NONE: (0, 0, 0), HANDLED: (0, 0, 0)},
    "edge": {NONE: (1, 1, 1), HANDLED: (1, 1, 1)},
    "level": {NONE: (1, 1, 1), HANDLED: (1, 1, 1)},
    "fasteoi": {NONE: (1, 1, 1), HANDLED: (1, 1, 1)},
    "percpu": {NONE: (1, 1, 0), HANDLED: (1, 1, 0)},
    "percpu_devid": {NONE: (1, 1, 0), HANDLED: (1, 1, 0)},
    "percpu_demux": {NONE: (0, 0, 0), HANDLED: (1, 1, 0)},
    "percpu_nostat": {NONE: (1, 0, 0), HANDLED: (1, 0, 0)},
}
# What the chip hears of one arrival that runs, of one while the IRQ is disabled, and of one without action.
RUNS = {
    "bad": "",
    "simple": "",
    "untracked": "",
    "edge": "ack",
    "level": "mask ack unmask",
    "fasteoi": "eoi",
    "percpu": "ack eoi",
    "percpu_devid": "ack eoi",
    "percpu_demux": "ack eoi",
    "percpu_nostat": "ack eoi",
}
DISABLED = RUNS | {"edge": "mask ack", "level": "mask ack", "fasteoi": "mask eoi"}
SERIALISED = ("simple", "untracked", "edge", "level", "fasteoi")  # those with IN_PROGRESS
COUNTED_BEFORE = {"simple", "edge", "level", "fasteoi", "percpu", "percpu_devid"}


def noting(order: list[Any], what: Any = None, result: int = HANDLED) -> Callable[[int], int]:
    """Return a handler that appends ``what``, or the CPU, whenever it runs."""

    def handler(cpu: int) -> int:
        order.append(cpu if what is None else what)
        return result

    return handler


def counted(rig: Rig, cpu: int = 0) -> tuple[int, int, int]:
    return rig.cnt(IRQ, cpu), rig.irqs_sum(cpu), rig.c(IRQ).tot_count


def heard(rig: Rig) -> str:
    """Return the callbacks since the last call."""
    names = " ".join(op for op, _cpu in rig.calls)
    rig.calls.clear()
    return names


def started(
    engine: str, flow: str, handler: Callable[[int], int] | int = HANDLED, *, ops: tuple[str, ...] = GENTLE, **how: Any
) -> Rig:
    """Return a rig whose IRQ has one action and is enabled."""
    rig = Rig(engine, **how)
    rig.alloc(IRQ, FLOWS[flow], ops=chip_ops(*ops))
    rig.request(IRQ, handler)
    rig.calls.clear()
    return rig


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("result", [NONE, HANDLED])
@pytest.mark.parametrize("flow", FLOWS)
def test_one_arrival_counts_as_the_table_says(engine: str, flow: str, result: int) -> None:
    """genirq.md 4.5: count2, count3, after the fact, or not at all."""
    ran = []

    def handler(cpu: int) -> int:
        ran.append(cpu)
        return result

    with started(engine, flow, handler) as rig:
        rig.arrive(IRQ, 1)
        assert ([1] if flow != "bad" else []) == ran
        assert COUNTS[flow][result] == counted(rig, 1)
        assert (0, 0) == counted(rig, 0)[:2]
        assert RUNS[flow] == heard(rig)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", FLOWS)
def test_a_handler_sees_its_own_count_where_it_is_made_before_the_action(engine: str, flow: str) -> None:
    """Trap 29: percpu_demux counts after the actions, percpu before."""
    seen: list[int] = []

    def handler(_cpu: int) -> int:
        seen.append(rig.cnt(IRQ, 0))
        return HANDLED

    with started(engine, flow, handler) as rig:
        rig.arrive(IRQ)
        expected = [] if flow == "bad" else [int(flow in COUNTED_BEFORE)]
        assert expected == seen


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", SERIALISED)
def test_a_disabled_irq_remembers_one_arrival_and_counts_it_at_enable(engine: str, flow: str) -> None:
    """genirq.md 4.7.

    N arrivals while disabled replay as one, by the resend tasklet, which runs on the boot CPU here.
    """
    with started(engine, flow) as rig:
        assert 1 == lib.vi_irq_disable(rig.m, IRQ)
        assert 2 == lib.vi_irq_disable(rig.m, IRQ)
        assert "" == heard(rig)  # lazy
        rig.arrive(IRQ, 1)
        assert DISABLED[flow] == heard(rig)
        rig.arrive(IRQ, 1)
        assert (0, 0, 0) == counted(rig, 1)
        assert lib.VI_IRQS_PENDING == rig.c(IRQ).istate
        assert 1 == lib.vi_irq_enable(rig.m, IRQ)
        assert 0 == rig.run(0)
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        assert (0, 0, 0) == counted(rig, 0)
        assert lib.VI_IRQS_REPLAY == rig.c(IRQ).istate
        assert 1 == rig.run(0)
        assert COUNTS[flow][HANDLED] == counted(rig, 0)
        assert 0 == rig.c(IRQ).istate
        assert 1 == rig.softirq(lib.VI_SOFTIRQ_TASKLET)
        assert -errno.EPERM == lib.vi_irq_enable(rig.m, IRQ)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", SERIALISED)
def test_an_arrival_before_the_request_replays_at_the_request(engine: str, flow: str) -> None:
    """genirq.md 4.4: the first action clears AUTODETECT, SPURIOUS_DISABLED, ONESHOT, WAITING; PENDING is kept."""
    with Rig(engine) as rig:
        rig.alloc(IRQ, FLOWS[flow], ops=chip_ops(*GENTLE))
        rig.arrive(IRQ, 1)
        assert (0, 0, 0) == counted(rig, 1)
        rig.request(IRQ, HANDLED)
        rig.settle()
        assert COUNTS[flow][HANDLED] == counted(rig, 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", [*SERIALISED, "percpu", "percpu_demux", "percpu_nostat"])
def test_an_arrival_while_the_irq_runs_on_another_cpu(engine: str, flow: str) -> None:
    """irq_may_run(): simple drops it (trap 27) or is replayed (fast engine); edge runs again uncounted.

    Per-CPU runs.
    """
    ran: list[int] = []

    def handler(cpu: int) -> int:
        ran.append(cpu)
        if len(ran) == 1:
            rig.arrive(IRQ, 1)
        return HANDLED

    with started(engine, flow, handler) as rig:
        rig.arrive(IRQ, 0)
        rig.settle()
        fast = engine == "fast"
        if flow in ("simple", "untracked"):
            runs = [0, 0] if fast else [0]
            lost = {} if fast else {"in_progress": 1}
        elif flow == "edge":
            runs, lost = [0, 0], {}
        elif flow == "fasteoi":
            runs, lost = [0, 0] if fast else [0], {}
        elif flow == "level":
            runs, lost = [0], {}
        else:
            runs, lost = [0, 1], {}
        assert runs == ran
        assert lost == rig.lost()
        times = {"simple": len(runs), "fasteoi": len(runs), "edge": 1, "level": 1, "untracked": 0}.get(flow, 1)
        assert times == rig.cnt(IRQ, 0)
        assert int(flow.startswith("percpu")) == rig.cnt(IRQ, 1)
        assert {"edge": "ack mask ack unmask", "level": "mask ack ack unmask"}.get(flow) in (None, heard(rig))


@pytest.mark.parametrize("flow", ["simple", "untracked", "edge", "level", "fasteoi"])
def test_a_handler_that_disables_its_irq_keeps_the_arrival_for_enable(flow: str) -> None:
    """Replay stops at a disabled IRQ: the arrival stays PENDING and is run at enable."""
    ran: list[int] = []

    def handler(cpu: int) -> int:
        ran.append(cpu)
        if len(ran) == 1:
            assert 1 == lib.vi_irq_disable(rig.m, IRQ)
            rig.arrive(IRQ, 1)
        return HANDLED

    with started("fast", flow, handler, ops=MASK_ONLY) as rig:
        rig.arrive(IRQ, 0)
        assert [0] == ran
        remembered = flow != "level"  # a level interrupt is still there when it is unmasked
        assert remembered == bool(rig.c(IRQ).istate & (lib.VI_IRQS_PENDING | lib.VI_IRQS_REPLAY))
        assert 0 == lib.vi_irq_enable(rig.m, IRQ)
        rig.settle()
        assert ([0, 0] if remembered else [0]) == ran


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shared_irq_runs_every_action_and_counts_once(engine: str) -> None:
    """__handle_irq_event_percpu(): results are OR-ed; the count belongs to the arrival."""
    order: list[str] = []
    with Rig(engine) as rig:
        rig.alloc(IRQ, lib.VI_FLOW_SIMPLE)
        first = rig.request(IRQ, noting(order, "a", NONE))
        rig.request(IRQ, noting(order, "b"))
        rig.arrive(IRQ)
        assert ["a", "b"] == order
        assert (1, 1, 1) == counted(rig)
        assert 0 == rig.c(IRQ).irqs_unhandled
        rig.free(first)
        rig.arrive(IRQ)
        assert ["a", "b", "b"] == order


@pytest.mark.parametrize("engine", ENGINES)
def test_percpu_devid_gives_this_cpus_cookie_and_disables_itself_without_action(engine: str) -> None:
    """handle_percpu_devid_irq(): one action; without it, irq_percpu_disable() on this CPU."""
    cookies: list[int] = []
    for ops, off in (
        (("ack", "eoi", "enable", "disable", "mask"), "disable"),
        (("ack", "eoi", "mask", "unmask"), "mask"),
    ):
        with Rig(engine) as rig:
            rig.alloc(IRQ, lib.VI_FLOW_PERCPU_DEVID, ops=chip_ops(*ops))
            assert 0 == lib.vi_irq_modify_settings(rig.m, IRQ, 0, lib.VI_IRQ_PER_CPU | lib.VI_IRQ_PER_CPU_DEVID)
            assert 0 == lib.vi_irq_percpu_enable(rig.m, IRQ, 1, 1)
            rig.calls.clear()
            rig.arrive(IRQ, 1)
            assert [("ack", 1), (off, 1), ("eoi", 1)] == rig.calls
            assert [("spurious_percpu", IRQ, 1)] == rig.reports
            rig.calls.clear()
            rig.arrive(IRQ, 1)
            assert [("ack", 1), ("eoi", 1)] == rig.calls
            assert ("spurious_percpu", IRQ, 0) == rig.reports[-1]
            assert (2, 2, 0) == counted(rig, 1)
            rig.request(IRQ, noting(cookies), startup=False, cookies=[0, 1])
            rig.arrive(IRQ, 1)
            assert [1] == cookies
            cookies.clear()


@pytest.mark.parametrize("flow", ["percpu_demux", "percpu_nostat"])
def test_a_percpu_demultiplexer_gives_this_cpus_cookie(flow: str) -> None:
    """The flows that replace percpu_devid for the top level keep its cookies."""
    with Rig() as rig:
        rig.alloc(IRQ, FLOWS[flow])
        ran: list[int] = []

        def handler(cpu: int) -> int:
            ran.append(cpu)
            return HANDLED

        rig.request(IRQ, handler, startup=False, cookies=[1, 1])
        rig.arrive(IRQ, 0)
        rig.arrive(IRQ, 1)
        assert [0, 1] == ran


def test_nostat_counts_nowhere_when_hidden() -> None:
    """The review of RFC patch 06: a hidden top level leaves no trace."""
    with started("fast", "percpu_nostat") as rig:
        assert 0 == lib.vi_irq_modify_settings(rig.m, IRQ, 0, lib.VI_IRQ_HIDDEN)
        rig.arrive(IRQ)
        assert (0, 0, 0) == counted(rig)


@pytest.mark.parametrize(("arch", "errors"), [("x86", 0), ("arm64", 1)])
def test_a_bad_irq_is_an_error_on_arm64_only(arch: str, errors: int) -> None:
    """ack_bad_irq(): arm64 counts it in Err, x86 prints."""
    with Rig(arch=arch) as rig:
        rig.alloc(IRQ, lib.VI_FLOW_BAD)
        rig.arrive(IRQ)
        assert errors == rig.counters.irq_err_count[0]
        assert [("bad_irq", IRQ, 0)] == rig.reports


@pytest.mark.parametrize(("eoi_if_handled", "expected"), [(0, "mask eoi"), (lib.VI_CHIP_EOI_IF_HANDLED, "mask")])
def test_fasteoi_leaves_out_the_eoi_of_what_did_not_run(eoi_if_handled: int, expected: str) -> None:
    """IRQCHIP_EOI_IF_HANDLED."""
    with Rig() as rig:
        rig.alloc(IRQ, lib.VI_FLOW_FASTEOI, ops=chip_ops(*GENTLE), flags=eoi_if_handled)
        rig.request(IRQ, HANDLED)
        assert 1 == lib.vi_irq_disable(rig.m, IRQ)
        rig.calls.clear()
        rig.arrive(IRQ)
        assert expected == heard(rig)


def test_fasteoi_masks_a_oneshot_irq_while_it_runs() -> None:
    """cond_unmask_eoi_irq(): eoi, then unmask."""
    with Rig() as rig:
        rig.alloc(IRQ, lib.VI_FLOW_FASTEOI, ops=chip_ops(*GENTLE))
        rig.request(IRQ, HANDLED, flags=lib.VI_IRQF_ONESHOT)
        rig.calls.clear()
        rig.arrive(IRQ)
        assert "mask eoi unmask" == heard(rig)


def test_masked_follows_the_callback() -> None:
    """Trap 33: a chip without mask and unmask leaves the IRQ MASKED for ever, although it works."""
    for ops, masked in ((), True), (MASK_ONLY, False):
        with started("fast", "simple", ops=ops) as rig:
            assert masked == bool(rig.c(IRQ).state & lib.VI_IRQD_MASKED)
            rig.arrive(IRQ)
            assert (1, 1, 1) == counted(rig)


def test_shutdown_of_a_disabled_irq_only_masks_it() -> None:
    """irq_shutdown() -> __irq_disable(desc, true): irq_disable of the chip was called already."""
    with started("fast", "simple", ops=("disable", "mask", "unmask", "enable")) as rig:
        assert 1 == lib.vi_irq_disable(rig.m, IRQ)
        assert "disable" == heard(rig)
        assert 0 == lib.vi_irq_shutdown(rig.m, IRQ)
        assert "" == heard(rig)  # MASKED since the disable


def test_free_of_the_last_action_forgets_disable_unlazy() -> None:
    """__free_irq(): irq_settings_clr_disable_unlazy()."""
    with started("fast", "simple") as rig:
        assert 0 == lib.vi_irq_modify_settings(rig.m, IRQ, 0, lib.VI_IRQ_DISABLE_UNLAZY)
        rig.free(rig.descs[IRQ].actions[0])
        assert 0 == rig.c(IRQ).settings & lib.VI_IRQ_DISABLE_UNLAZY
        assert 1 == rig.c(IRQ).depth


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flow", [flow for flow in FLOWS if flow not in ("untracked", "percpu_nostat")])
def test_counters_wrap_at_2_to_32(engine: str, flow: str) -> None:
    """kstat_irqs is an unsigned int; the total of /proc/stat has 64 bits and goes on."""
    with started(engine, flow) as rig:
        rig.poke(IRQ, 0, 0xFFFF_FFFF)
        rig.counters.irqs_sum[0] = 0xFFFF_FFFF
        rig.c(IRQ).tot_count = 0xFFFF_FFFF
        rig.arrive(IRQ)
        tot = 0 if COUNTS[flow][HANDLED][2] else 0xFFFF_FFFF
        assert (0, 1 << 32, tot) == counted(rig)


def test_what_a_handler_may_not_do_to_its_own_irq() -> None:
    """What waits for handlers to end says EDEADLK from inside one, on whatever way it was called."""
    seen: list[int] = []

    def handler(_cpu: int) -> int:
        action = rig.descs[IRQ].actions[0].c
        seen.append(lib.vi_irq_remove_action(rig.m, IRQ, action))
        seen.append(lib.vi_irq_synchronize(rig.m, IRQ))
        seen.append(lib.vi_domain_unmap(rig.m, 3))
        seen.append(lib.vi_irq_free_desc(rig.m, IRQ + 1))
        return HANDLED

    with Rig() as rig:
        rig.alloc(IRQ, hwirq=3)
        rig.alloc(IRQ + 1)
        rig.request(IRQ, handler)
        rig.arrive(IRQ)
        assert [-errno.EDEADLK] * 4 == seen
        seen.clear()
        assert 0 == lib.vi_generic_handle_domain_irq(rig.m, 0, 3)
        assert 1 == rig.signal(3)
        assert 1 == rig.run()
        assert 1 == rig.signal(3)
        assert 1 == lib.vi_scan(rig.m, 0)
        assert [-errno.EDEADLK] * 12 == seen


def test_bad_arguments_are_refused() -> None:
    """Errno of the table: EINVAL, EEXIST, EBUSY, ENOENT, ERANGE, ENOSPC."""
    action = ffi.new("struct vi_irqaction *")
    with Rig(irqs=16) as rig:
        m = rig.m
        rig.alloc(IRQ)
        rig.request(IRQ, HANDLED)
        for irq in (8, 16, 0xFFFF_FFFF):
            assert -errno.EINVAL == lib.vi_generic_handle_irq(m, 0, irq)
            assert ffi.NULL == lib.vi_irq_to_desc(m, irq)
            for call in (
                lib.vi_irq_disable,
                lib.vi_irq_enable,
                lib.vi_irq_shutdown,
                lib.vi_irq_synchronize,
                lib.vi_irq_free_desc,
            ):
                assert -errno.EINVAL == call(m, irq)
        assert -errno.EINVAL == lib.vi_generic_handle_irq(m, 2, IRQ)
        assert -errno.EEXIST == lib.vi_irq_alloc_desc(m, IRQ)
        assert -errno.EINVAL == lib.vi_irq_alloc_desc(m, 16)
        assert -errno.EBUSY == lib.vi_irq_free_desc(m, IRQ)
        assert -errno.EINVAL == lib.vi_irq_add_action(m, IRQ, action)
        assert -errno.ENOENT == lib.vi_irq_remove_action(m, IRQ, action)
        assert -errno.EINVAL == lib.vi_irq_set_chip_and_flow(m, IRQ, ffi.NULL, lib.VI_FLOWS)
        assert -errno.ERANGE == lib.vi_domain_map(m, 2048, IRQ)
        assert -errno.EINVAL == lib.vi_domain_map(m, 5, 0)
        assert -errno.ENOENT == lib.vi_domain_unmap(m, 5)
        assert 0 == lib.vi_domain_map(m, 2047, IRQ)
        assert -errno.EBUSY == lib.vi_domain_map(m, 5, IRQ)
        assert IRQ == lib.vi_domain_find(m, 2047)
        assert 0 == lib.vi_domain_find(m, 2048)
        assert -errno.EINVAL == lib.vi_generic_handle_domain_irq(m, 0, 5)
        assert -errno.EINVAL == lib.vi_generic_handle_domain_irq(m, 0, 2048)
        while len(rig.descs[IRQ].actions) < lib.VI_ACTIONS_MAX:
            rig.request(IRQ, HANDLED)
        action.handler = lib.vi_handler_message()
        assert -errno.ENOSPC == lib.vi_irq_add_action(m, IRQ, action)
