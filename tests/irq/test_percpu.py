"""irq/percpu: interrupts that every CPU has for itself (genirq.md 4.4, 4.5)."""

from __future__ import annotations

import errno

import pytest

from tests.irq.rig import Rig
from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.irq import Flow
from vmbusirq.irq.settings import (
    IRQ_HANDLED,
    IRQ_HIDDEN,
    IRQ_NONE,
    IRQ_NOREQUEST,
    IRQD_PER_CPU,
    IRQF_NO_SUSPEND,
    IRQF_PERCPU,
    IRQF_SHARED,
    IRQF_TIMER,
)

COOKIES = [f"cookie {cpu}" for cpu in range(4)]


def percpu(flow=Flow.PERCPU_DEVID, **options):
    """Return a rig and the descriptor of its per-CPU IRQ, as the arm64 platform code sets one up."""
    rig = Rig(nr_cpus=4, **options)
    desc = rig.core.irq_to_desc(rig.core.alloc_descs())
    rig.core.irq_set_percpu_devid(desc.irq)
    rig.core.set_chip_and_handler(desc.irq, rig.make_chip("GICv3"), flow)
    return rig, desc


def test_every_cpu_has_its_own_cookie():
    """genirq.md 4.4: the per-CPU cookie is a field of its own; the handler gets that of its CPU."""
    rig, desc = percpu()
    rig.core.request_percpu_irq(desc.irq, rig.handler, "Hyper-V VMbus", COOKIES)
    for cpu in (2, 0, 2):
        rig.fire(desc, cpu)
    assert [(24, "cookie 2"), (24, "cookie 0"), (24, "cookie 2")] == rig.calls
    assert [1, 0, 2, 0] == desc.kstat_irqs()
    assert (3, None, IRQF_PERCPU | IRQF_NO_SUSPEND) == (
        desc.tot_count,
        desc.actions[0].dev_id,
        desc.actions[0].flags,
    )
    assert (IRQD_PER_CPU, True, 1) == (desc.state & IRQD_PER_CPU, desc.is_per_cpu, desc.depth)


def test_c_handlers_get_pointers():
    """A C handler's cookies are pointers, one per CPU."""
    rig, desc = percpu()
    cookies = [ffi.cast("void *", 4096 * cpu) for cpu in range(4)]
    rig.core.request_percpu_irq(desc.irq, lib.vi_handler_message(), "x", cookies, IRQF_TIMER)
    rig.fire(desc, 3)
    assert [0, 0, 0, 1] == desc.kstat_irqs()
    assert cookies[3] == desc.actions[0].c.percpu_dev_id[3]
    assert "x" == rig.core.free_percpu_irq(desc.irq, cookies)


@pytest.mark.parametrize(
    ("cookies", "flags", "handler"),
    [
        (None, 0, True),
        (COOKIES[:3], 0, True),
        (COOKIES, IRQF_SHARED, True),
        (COOKIES, IRQF_TIMER | IRQF_SHARED, True),
        (COOKIES, 0, False),
    ],
)
def test_refused_requests(cookies, flags, handler):
    """kernel/irq/manage.c v6.10, __request_percpu_irq: EINVAL."""
    rig, desc = percpu()
    with pytest.raises(IrqError) as caught:
        rig.core.request_percpu_irq(desc.irq, rig.handler if handler else None, "x", cookies, flags)
    assert (errno.EINVAL, []) == (caught.value.errno, desc.actions)


def test_only_per_cpu_irqs():
    """kernel/irq/manage.c v6.10: EINVAL for an ordinary IRQ, one that may not be requested, and the other way round."""
    rig, desc = percpu()
    ordinary = rig.irq()
    calls = [
        (rig.core.request_percpu_irq, (ordinary.irq, rig.handler, "x", COOKIES)),
        (rig.core.free_percpu_irq, (ordinary.irq, COOKIES)),
        (rig.core.enable_percpu_irq, (ordinary.irq, 0)),
        (rig.core.percpu_enabled, (ordinary.irq,)),
        (rig.core.enable_irq, (desc.irq,)),
        (rig.core.disable_irq, (desc.irq,)),
        (rig.core.disable_irq_nosync, (desc.irq,)),
        (rig.core.enable_percpu_irq, (desc.irq, 4)),
        (rig.core.disable_percpu_irq, (desc.irq, -1)),
    ]
    rig.core.modify_status(desc.irq, set_=IRQ_NOREQUEST)
    calls.append((rig.core.request_percpu_irq, (desc.irq, rig.handler, "x", COOKIES)))
    for call, arguments in calls:
        with pytest.raises(IrqError) as caught:
            call(*arguments)
        assert errno.EINVAL == caught.value.errno


def test_each_cpu_enables_for_itself():
    """genirq.md 4.4: NOAUTOEN; the chip is told on the CPU that it is about."""
    told = []
    rig, desc = percpu()
    chip = rig.make_chip(
        "GICv3",
        irq_mask=lambda desc, cpu: told.append(("mask", cpu)),
        irq_unmask=lambda desc, cpu: told.append(("unmask", cpu)),
    )
    rig.core.set_chip_and_handler(desc.irq, chip, Flow.PERCPU_DEVID)
    rig.core.request_percpu_irq(desc.irq, rig.handler, "x", COOKIES)
    assert 0 == rig.core.percpu_enabled(desc.irq)
    for cpu in (0, 3):
        rig.core.enable_percpu_irq(desc.irq, cpu)
    rig.core.disable_percpu_irq(desc.irq, 0)
    assert 0b1000 == rig.core.percpu_enabled(desc.irq)
    assert [("unmask", 0), ("unmask", 3), ("mask", 0)] == told


def test_free_needs_the_cookies_and_nobody_enabled():
    """kernel/irq/manage.c v6.10, __free_percpu_irq: two warnings, each with NULL."""
    rig, desc = percpu()
    assert None is rig.core.free_percpu_irq(desc.irq, COOKIES)
    rig.core.request_percpu_irq(desc.irq, rig.handler, "x", COOKIES)
    assert None is rig.core.free_percpu_irq(desc.irq, list(COOKIES))
    rig.core.enable_percpu_irq(desc.irq, 2)
    assert None is rig.core.free_percpu_irq(desc.irq, COOKIES)
    rig.core.disable_percpu_irq(desc.irq, 2)
    assert "x" == rig.core.free_percpu_irq(desc.irq, COOKIES)
    assert ["Trying to free already-free IRQ 24"] * 2 + ["percpu IRQ 24 still enabled on CPU2!"] == rig.core.log.texts()
    assert ([], []) == (desc.actions, desc.action_dirs())


def test_free_irq_does_not_free_it():
    """kernel/irq/manage.c v6.10: free_irq of a per-CPU-devid IRQ warns and returns NULL."""
    rig, desc = percpu()
    rig.core.request_percpu_irq(desc.irq, rig.handler, "x", COOKIES)
    assert None is rig.core.free_irq(desc.irq)
    assert ["WARNING: free_irq of per-CPU irq 24"] == rig.core.log.texts()
    assert 1 == len(desc.actions)


def test_an_arrival_without_action_is_switched_off():
    """genirq.md 4.5, percpu_devid: counted, disabled on this CPU if it was enabled, printed once."""
    rig, desc = percpu()
    rig.core.enable_percpu_irq(desc.irq, 1)
    rig.core.enable_percpu_irq(desc.irq, 2)
    rig.fire(desc, 1, times=2)
    rig.fire(desc, 3)
    assert (0b0100, [0, 2, 0, 1]) == (rig.core.percpu_enabled(desc.irq), desc.kstat_irqs())
    texts = rig.core.log.texts()
    assert 1 == len(texts)
    assert texts[0].startswith("genirq: Spurious")
    assert texts[0].endswith("percpu IRQ24 on CPU1")


@pytest.mark.parametrize(
    ("flow", "result", "hidden", "count", "in_sum"),
    [
        (Flow.PERCPU_DEVID, IRQ_NONE, 0, 1, 1),
        (Flow.PERCPU_DEMUX, IRQ_HANDLED, 0, 1, 1),
        (Flow.PERCPU_DEMUX, IRQ_NONE, 0, 0, 0),
        (Flow.PERCPU_NOSTAT, IRQ_HANDLED, 0, 1, 0),
        (Flow.PERCPU_NOSTAT, IRQ_HANDLED, IRQ_HIDDEN, 0, 0),
    ],
)
def test_the_top_levels_of_the_designs(flow, result, hidden, count, in_sum):
    """genirq.md 4.5: percpu counts before, demux after and only if handled, nostat in cnt alone or nowhere."""
    rig, desc = percpu(flow)
    rig.result = result
    seen = []

    def handler(irq, dev_id):
        seen.append(desc.kstat_irqs_cpu(2))
        return rig.handler(irq, dev_id)

    rig.core.modify_status(desc.irq, set_=hidden)
    rig.core.request_percpu_irq(desc.irq, handler, "Hyper-V VMbus", COOKIES)
    rig.fire(desc, 2)
    assert ([int(flow is Flow.PERCPU_DEVID)], count) == (seen, desc.tot_count)  # trap 29
    assert in_sum == rig.core.counters.irqs_sum[2 * 8]
    assert [(24, "cookie 2")] == rig.calls
