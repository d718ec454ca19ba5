"""Flow handlers in any order of events, against a plain reading of the kernel (tests/reference/accounting.py)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.accounting import HANDLED, NONE, Desc
from tests.rig import ENGINES, OPS, Rig, chip_ops
from vmbusirq._ffi import lib

IRQ = 9
FLOWS = {
    name: getattr(lib, f"VI_FLOW_{name.upper()}")
    for name in (
        *("simple", "untracked", "edge", "level", "fasteoi"),
        *("percpu", "percpu_devid", "percpu_demux", "percpu_nostat"),
    )
}
ALL_OPS = tuple(OPS.values())


@st.composite
def descs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "engine": draw(st.sampled_from(ENGINES)),
        "flow": draw(st.sampled_from(list(FLOWS))),
        "ops": draw(st.frozensets(st.sampled_from(ALL_OPS))),
        "eoi_if_handled": draw(st.booleans()),
        "level": draw(st.integers(0, 4)) == 0,
        "no_debug": draw(st.integers(0, 4)) == 0,
        "unlazy": draw(st.booleans()),
        "bound": draw(st.booleans()),
        "exact": draw(st.booleans()),
    }


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(0, 1)),
        st.tuples(st.just("nested"), st.sampled_from(["arrive", "disable", "enable"])),
        st.tuples(st.sampled_from(["disable", "enable", "shutdown", "startup", "softirq", "remove"]), st.just(0)),
        st.tuples(st.just("add"), st.sampled_from([0, lib.VI_IRQF_ONESHOT])),
        st.tuples(st.just("result"), st.sampled_from([NONE, HANDLED, HANDLED, 2, 3, 7])),
        st.tuples(st.just("time"), st.integers(0, 150)),
    ),
    max_size=40,
)


class Pair:
    """The C descriptor and its twin, with actions that do the same."""

    def __init__(self, how: dict[str, Any]) -> None:
        self.rig = Rig(how["engine"])
        flags = lib.VI_CHIP_EOI_IF_HANDLED if how["eoi_if_handled"] else 0
        hwirq = 7 if how["bound"] else None
        self.rig.alloc(IRQ, FLOWS[how["flow"]], ops=chip_ops(*how["ops"]), flags=flags, hwirq=hwirq)
        names = {"level": lib.VI_IRQ_LEVEL, "no_debug": lib.VI_IRQ_NO_DEBUG, "unlazy": lib.VI_IRQ_DISABLE_UNLAZY}
        assert 0 == lib.vi_irq_modify_settings(self.rig.m, IRQ, 0, sum(bit for name, bit in names.items() if how[name]))
        twin = {name: how[name] for name in ("flow", "ops", "eoi_if_handled", "level", "no_debug", "unlazy")}
        self.twin = Desc(2, replay=how["engine"] == "fast", **twin)
        self.exact = how["exact"]
        self.result, self.nested = HANDLED, {"c": "", "twin": ""}
        self.actions: list[tuple[Any, Callable[[int], int]]] = []

    def act(self, side: str, cpu: int) -> int:
        """What an action does, in C and in the twin: something once from inside, then its result."""
        nested, self.nested[side] = self.nested[side], ""
        if nested == "arrive":
            self.rig.arrive(IRQ, 1 - cpu) if side == "c" else self.twin.arrive(1 - cpu)
        elif nested == "disable":
            lib.vi_irq_disable(self.rig.m, IRQ) if side == "c" else self.twin.disable()
        elif nested == "enable":
            lib.vi_irq_enable(self.rig.m, IRQ) if side == "c" else self.twin.enable()
        return self.result

    def step(self, what: str, arg: Any) -> None:
        rig, twin, m = self.rig, self.twin, self.rig.m
        if what == "arrive":
            rig.arrive(IRQ, arg)
            twin.arrive(arg)
        elif what == "nested":
            self.nested = {"c": arg, "twin": arg}
        elif what == "result":
            self.result = arg
        elif what == "time":
            twin.now_ms += arg
            lib.vi_machine_set_time(m, twin.now_ms)
        elif what == "disable":
            assert twin.disable() == lib.vi_irq_disable(m, IRQ)
        elif what == "enable":
            depth = twin.enable()
            assert (-errno.EPERM if depth is None else depth) == lib.vi_irq_enable(m, IRQ)
        elif what == "shutdown":
            twin.shutdown()
            assert 0 == lib.vi_irq_shutdown(m, IRQ)
        elif what == "startup":
            twin.startup()
            assert 0 == lib.vi_irq_startup(m, IRQ, 1)
        elif what == "softirq":
            rig.run(0)
            twin.softirq()
        elif what == "add" and len(self.actions) < 3:
            action = rig.request(IRQ, lambda cpu: self.act("c", cpu), startup=False, flags=arg, exact=self.exact)

            def twin_action(cpu: int) -> int:
                return self.act("twin", cpu)

            twin.add(twin_action, oneshot=bool(arg))
            self.actions.append((action, twin_action))
        elif what == "remove" and self.actions:
            action, mirror = self.actions.pop(0)
            rig.free(action)
            twin.remove(mirror)

    def compare(self) -> None:
        rig, twin, desc = self.rig, self.twin, self.rig.c(IRQ)
        assert twin.cnt == [rig.cnt(IRQ, cpu) for cpu in (0, 1)]
        assert twin.irqs_sum == [rig.irqs_sum(cpu) for cpu in (0, 1)]
        assert twin.tot_count == desc.tot_count
        assert twin.calls == rig.calls
        assert twin.dropped == rig.lost().get("in_progress", 0)
        assert twin.reports == [name for name, _irq, _value in rig.reports]
        state = {"disabled": lib.VI_IRQD_DISABLED, "masked": lib.VI_IRQD_MASKED, "started": lib.VI_IRQD_STARTED}
        assert {name: getattr(twin, name) for name in state} == {
            name: bool(desc.state & bit) for name, bit in state.items()
        }
        istate = {"pending": lib.VI_IRQS_PENDING, "replaying": lib.VI_IRQS_REPLAY, "oneshot": lib.VI_IRQS_ONESHOT}
        assert {name: getattr(twin, name) for name in istate} == {
            name: bool(desc.istate & bit) for name, bit in istate.items()
        }
        spurious = (desc.irq_count, desc.irqs_unhandled, desc.last_unhandled_ms, desc.threads_handled_last)
        assert (twin.irq_count, twin.irqs_unhandled, twin.last_unhandled_ms, twin.threads_handled_last) == spurious
        assert twin.depth == desc.depth


@settings(max_examples=300, deadline=None)
@given(descs(), STEPS)
def test_any_order_of_events_leaves_what_the_kernel_would_leave(
    how: dict[str, Any], steps: list[tuple[str, Any]]
) -> None:
    """Counters, chip callbacks in order, PENDING, REPLAY, depth, spurious fields.

    Equal to the twin after every step.
    """
    pair = Pair(how)
    with pair.rig:
        for what, arg in steps:
            pair.step(what, arg)
            pair.compare()
