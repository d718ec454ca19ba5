"""C handlers, and what the core says of handlers that answer wrongly or are not there (genirq.md 4)."""

from __future__ import annotations

import pytest

from tests.irq.rig import Rig
from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.irq import CHandler
from vmbusirq.irq.settings import (
    IRQ_HANDLED,
    IRQ_NONE,
    IRQ_WAKE_THREAD,
    IRQF_SHARED,
    IRQS_SPURIOUS_DISABLED,
)
from vmbusirq.log import Level

ENGINES = pytest.mark.parametrize("engine", ["fast", "linux"])


# ---- C handlers


def test_c_handler_with_its_own_dev_id():
    """A vi_handler_t runs without Python; its dev_id is a pointer."""
    rig = Rig()
    desc = rig.irq()
    rig.core.request_irq(desc.irq, lib.vi_handler_message(), 0, "vmbus-msg")
    rig.fire(desc, cpu=1)
    assert (1, "vmbus-msg") == (desc.tot_count, rig.core.free_irq(desc.irq))


def self_binding():
    """Return a CHandler, and the list of what it was bound to."""
    bound = []

    def bind(action):
        bound.append(action)
        if action != ffi.NULL:
            action.handler = lib.vi_handler_message()

    return CHandler(bind), bound


def test_c_handler_that_binds_itself():
    """A CHandler fills in the action, and is told with NULL to forget it."""
    rig = Rig()
    desc = rig.irq()
    handler, bound = self_binding()
    rig.core.request_irq(desc.irq, handler, 0, "x", "cookie")
    rig.fire(desc)
    assert ([desc.actions[0].c], 1) == (bound, desc.tot_count)
    assert "x" == rig.core.free_irq(desc.irq, "cookie")
    assert ffi.NULL == bound[1]


def test_c_handler_forgets_what_does_not_fit():
    """The 65th action on an IRQ was bound in vain."""
    rig = Rig()
    desc = rig.irq()
    for number in range(lib.VI_ACTIONS_MAX):
        rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "x", number)
    handler, bound = self_binding()
    with pytest.raises(IrqError):
        rig.core.request_irq(desc.irq, handler, IRQF_SHARED, "x", "cookie")
    assert ffi.NULL == bound[1]


# ---- what the data plane reports


@ENGINES
@pytest.mark.parametrize(("unhandled", "killed"), [(99_900, False), (99_901, True)])
def test_nobody_cared(engine, unhandled, killed):
    """kernel/irq/spurious.c v6.10: at the 100 000th arrival, more than 99 900 unhandled ones disable the IRQ."""
    rig = Rig(engine=engine)
    rig.result = IRQ_NONE
    desc = rig.requested(name="noise")
    rig.fire(desc)
    desc.c.irq_count, desc.c.irqs_unhandled = 99_999, unhandled - 1
    rig.fire(desc)
    assert (0, 0) == (desc.irq_count, desc.irqs_unhandled)
    assert (killed, int(killed)) == (bool(desc.istate & IRQS_SPURIOUS_DISABLED), desc.depth)
    texts = rig.core.log.texts()
    if not killed:
        assert [] == texts
        return
    assert ['irq 24: nobody cared (try booting with the "irqpoll" option)', "handlers:"] == texts[:2]
    assert texts[2].endswith("] noise")
    assert ["Disabling IRQ #24"] == texts[3:]
    assert ["Disabling IRQ #24"] == rig.core.log.texts(Level.EMERG)


def test_another_handler_revives_a_killed_line():
    """kernel/irq/manage.c v6.10: a later action that shares it gives the line another chance."""
    rig = Rig()
    rig.result = IRQ_NONE
    desc = rig.requested(flags=IRQF_SHARED, dev_id=1)
    rig.fire(desc)
    desc.c.irq_count, desc.c.irqs_unhandled = 99_999, 99_999
    rig.fire(desc)
    assert 1 == desc.depth
    rig.core.request_irq(desc.irq, lambda irq, dev_id: IRQ_HANDLED, IRQF_SHARED, "rescue", 2)
    assert (0, 0) == (desc.depth, desc.istate & IRQS_SPURIOUS_DISABLED)
    rig.fire(desc)
    assert 3 == desc.tot_count


@pytest.mark.parametrize("result", [4, 256, -1, 0xFFFF_FFFF])
def test_bogus_return_values(result):
    """kernel/irq/spurious.c v6.10: reported, at most 100 times, and not accounted; internal codes are no way around."""
    rig = Rig()
    rig.result = result
    desc = rig.requested()
    rig.fire(desc, times=101)
    reports = [text for text in rig.core.log.texts() if "bogus" in text]
    assert [f"irq event 24: bogus return value {result & 0xFFFF_FFFF:x}"] * 100 == reports
    assert (101, 0) == (desc.tot_count, desc.irqs_unhandled)


def test_wake_thread_without_thread_warns_once_per_action():
    """kernel/irq/handle.c v6.10, warn_no_thread."""
    rig = Rig()
    rig.result = IRQ_WAKE_THREAD
    desc = rig.irq()
    rig.core.request_irq(desc.irq, lambda irq, dev_id: IRQ_HANDLED, IRQF_SHARED, "fine", 1)
    rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "lazy", 2)
    rig.fire(desc, times=3)
    assert [
        "genirq: IRQ 24 device lazy returned IRQ_WAKE_THREAD but no thread function available."
    ] == rig.core.log.texts()


@pytest.mark.parametrize(("arch", "errors"), [(lib.VI_ARCH_X86, 0), (lib.VI_ARCH_ARM64, 12)])
def test_arrivals_without_flow_handler(arch, errors):
    """kernel/irq/handle.c v6.10, handle_bad_irq: counted; printed no more than 10 times in 5 s; arm64 counts Err."""
    rig = Rig(config={"arch": arch})
    desc = rig.core.irq_to_desc(rig.core.alloc_descs())
    rig.fire(desc, cpu=2, times=12)
    assert (12, errors) == (desc.tot_count, rig.core.counters.irq_err_count[0])
    assert ["unexpected IRQ trap at vector 18"] * 10 == rig.core.log.texts()
