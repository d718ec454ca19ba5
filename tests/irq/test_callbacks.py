"""irq/callbacks: Python handlers called by C: exact and batched, their errors, what they may not do."""

from __future__ import annotations

import errno
import gc
import threading
import weakref

import pytest

from tests.irq.rig import Rig
from tests.synic import switch_synic
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.irq import Flow, IrqBatch
from vmbusirq.irq.callbacks import in_handler, smp_processor_id
from vmbusirq.irq.settings import IRQ_HANDLED, IRQ_NONE, IRQF_PERCPU, IRQF_SHARED

ENGINES = pytest.mark.parametrize("engine", ["fast", "linux"])


@ENGINES
def test_handlers_know_where_they_run(engine):
    """smp_processor_id() is the CPU of the arrival; outside handlers there is none."""
    rig = Rig(engine=engine)
    desc = rig.irq()
    seen = []

    def handler(irq, dev_id):
        seen.append((smp_processor_id(), in_handler(), desc.kstat_irqs_cpu(5)))
        return IRQ_HANDLED

    rig.core.request_irq(desc.irq, handler)
    rig.fire(desc, cpu=5)
    rig.signal(7, cpu=5)
    assert [(5, True, 1), (5, True, 2)] == seen  # counted before the handler runs, as simple does
    assert (None, False) == (smp_processor_id(), in_handler())


@ENGINES
def test_handlers_return_an_irqreturn(engine):
    """True and False are IRQ_HANDLED and IRQ_NONE; nothing at all is an error."""
    rig = Rig(engine=engine)
    desc = rig.irq()
    results = iter([True, False, None])
    rig.core.request_irq(desc.irq, lambda irq, dev_id: next(results))
    rig.fire(desc, times=2)
    assert (2, 1) == (desc.tot_count, desc.irqs_unhandled)
    rig.core.reraise()
    rig.fire(desc)
    with pytest.raises(TypeError):
        rig.core.reraise()


@ENGINES
def test_an_exception_makes_the_arrival_irq_none(engine):
    """It is counted, goes to the spurious accounting, and comes out once at the public edge."""
    rig = Rig(engine=engine)
    desc = rig.irq()

    def handler(irq, dev_id):
        raise ValueError(f"call {len(rig.calls)}")

    rig.core.request_irq(desc.irq, handler)
    rig.fire(desc, times=3)
    assert (3, 3) == (desc.tot_count, desc.irqs_unhandled)
    with pytest.raises(ValueError, match="call 0") as caught:
        rig.core.reraise()
    assert ["2 more exception(s) were raised by callbacks after this one"] == caught.value.__notes__
    rig.core.reraise()


@ENGINES
def test_handlers_may_not_wait_for_themselves(engine):
    """free_irq, disable_irq, synchronize_irq and dispose raise EDEADLK in a handler; disable_irq_nosync works."""
    rig = Rig(engine=engine)
    desc = rig.irq()
    errors = []

    def handler(irq, dev_id):
        for call in (
            lambda: rig.core.free_irq(irq, "x"),
            lambda: rig.core.disable_irq(irq),
            lambda: rig.core.synchronize_irq(irq),
            lambda: rig.core.irq_dispose_mapping(irq),
            lambda: rig.core.free_descs(irq),
        ):
            with pytest.raises(IrqError) as caught:
                call()
            errors.append(caught.value.errno)
        rig.core.disable_irq_nosync(irq)
        return IRQ_HANDLED

    rig.core.request_irq(desc.irq, handler, 0, "x", "x")
    rig.fire(desc)
    rig.core.reraise()
    assert ([errno.EDEADLK] * 5, 1) == (errors, desc.depth)
    rig.fire(desc)
    assert 1 == desc.tot_count
    rig.core.enable_irq(desc.irq)


def test_the_control_plane_belongs_to_one_thread():
    """design.md 4: other threads are refused with EBUSY; reading is free."""
    rig = Rig()
    desc = rig.requested()
    errors = []

    def other():
        for call in (
            lambda: rig.core.alloc_descs(),
            lambda: rig.core.request_irq(desc.irq, rig.handler),
            lambda: rig.core.free_irq(desc.irq, "heartbeat"),
            lambda: rig.core.disable_irq(desc.irq),
            lambda: rig.core.enable_irq(desc.irq),
            lambda: rig.core.irq_set_affinity(desc.irq, 1),
            lambda: rig.core.irq_create_mapping(rig.domain, 1),
            lambda: rig.core.irq_dispose_mapping(desc.irq),
            lambda: rig.core.modify_status(desc.irq),
        ):
            try:
                call()
            except IrqError as error:
                errors.append(error.errno)
        rig.fire(desc, cpu=3)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert [errno.EBUSY] * 9 == errors
    assert 1 == desc.kstat_irqs_cpu(3)


def test_chip_callbacks_may_not_call_the_core():
    """They run under the descriptor's lock: EDEADLK instead of a hang; the error comes out at the edge."""
    rig = Rig()
    seen = []

    def ack(desc, cpu):
        seen.append((desc.irq, cpu, smp_processor_id(), in_handler()))
        rig.core.disable_irq_nosync(desc.irq)

    desc = rig.requested(irq_ack=ack)
    rig.core.set_chip_and_handler(desc.irq, rig.chip, Flow.EDGE, "edge")
    rig.fire(desc, cpu=6)
    assert ([(24, 6, 6, False)], 1) == (seen, desc.tot_count)
    with pytest.raises(IrqError) as caught:
        rig.core.reraise()
    assert errno.EDEADLK == caught.value.errno


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        (Flow.SIMPLE, []),
        (Flow.EDGE, ["ack"]),
        (Flow.LEVEL, ["mask_ack", "unmask"]),
        (Flow.FASTEOI, ["eoi"]),
        (Flow.PERCPU, ["ack", "eoi"]),
    ],
)
def test_flow_handlers_call_the_chip(flow, told):
    """genirq.md 4.5: who acks, masks and ends, in which order."""
    rig = Rig()
    seen = []
    names = ["ack", "eoi", "mask", "unmask", "mask_ack"]
    desc = rig.requested(**{f"irq_{name}": lambda desc, cpu, name=name: seen.append(name) for name in names})
    rig.core.set_chip_and_handler(desc.irq, rig.chip, flow)
    seen.clear()
    rig.fire(desc)
    assert (told, 1) == (seen, desc.kstat_irqs_cpu(0))


# ---- batched


def batched(rig, hwirqs, results):
    """Request hwirqs with one batched handler that remembers its batches and returns ``results(batch)``."""
    batches = []

    def handler(batch):
        batches.append((batch.cpu, list(batch.irqs), list(batch.hwirqs), list(batch.dev_ids)))
        return results(batch)

    for hwirq in hwirqs:
        rig.core.request_irq(rig.irq(hwirq).irq, handler, 0, f"ch{hwirq}", f"dev {hwirq}", batched=True)
    return batches


def raise_flags(rig, cpu, hwirqs):
    """Signal several channels before the CPU looks."""
    switch_synic(rig.machine, cpu, True)
    for hwirq in hwirqs:
        assert 1 == lib.vi_synic_signal(rig.machine, cpu, lib.VI_SINT_VMBUS, hwirq)


def test_one_scan_is_one_call():
    """A batched handler gets the hwirqs of one scan, in scan order; they are counted afterwards."""
    rig = Rig()
    counts = []

    def results(batch):
        counts.append([rig.core.irq_to_desc(irq).tot_count for irq in batch.irqs])
        return [IRQ_HANDLED] * len(batch)

    batches = batched(rig, [3, 200, 64, 5], results)
    for cpu in (0, 2):
        rig.core.irq_set_affinity(24, 1 << cpu)
    for hwirq in (3, 5, 64, 200):
        rig.core.irq_set_affinity(rig.core.irq_find_mapping(rig.domain, hwirq), 1 << 2)
    raise_flags(rig, 2, [200, 64, 5, 3])
    rig.settle()
    assert [(2, [24, 27, 26, 25], [3, 5, 64, 200], ["dev 3", "dev 5", "dev 64", "dev 200"])] == batches
    assert [[0, 0, 0, 0]] == counts
    assert [1, 1, 1, 1] == [rig.core.irq_to_desc(irq).kstat_irqs_cpu(2) for irq in (24, 25, 26, 27)]


@ENGINES
def test_batched_handlers_serve_single_arrivals_too(engine):
    """Off the batching path (another CPU, the linux engine, a replay) a batch has one interrupt."""
    rig = Rig(engine=engine)
    batches = batched(rig, [3], lambda batch: [IRQ_HANDLED])
    desc = rig.irq(3)
    rig.fire(desc, cpu=7)
    assert [(7, [24], [3], ["dev 3"])] == batches
    rig.core.disable_irq(desc.irq)
    rig.fire(desc)
    rig.core.enable_irq(desc.irq)
    rig.settle()
    assert (2, 2) == (len(batches), desc.tot_count)
    rig.core.reraise()


def test_results_of_a_batch_belong_to_their_irqs():
    """One irqreturn each: what is IRQ_NONE goes to that IRQ's spurious accounting."""
    rig = Rig()
    batched(rig, [1, 2, 3], lambda batch: [IRQ_HANDLED if hwirq != 2 else IRQ_NONE for hwirq in batch.hwirqs])
    raise_flags(rig, 0, [1, 2, 3])
    rig.settle()
    descs = [rig.irq(hwirq) for hwirq in (1, 2, 3)]
    assert [1, 1, 1] == [desc.tot_count for desc in descs]
    assert [0, 1, 0] == [desc.irqs_unhandled for desc in descs]


@pytest.mark.parametrize(
    ("results", "error"),
    [
        (lambda batch: [IRQ_HANDLED], ValueError),
        (lambda batch: [IRQ_HANDLED] * 4, ValueError),
        (lambda batch: None, TypeError),
        (lambda batch: 1 / 0, ZeroDivisionError),
    ],
)
def test_a_batch_that_fails_is_unhandled(results, error):
    """The wrong number of results, or an exception: every arrival of the batch is IRQ_NONE; others are not touched."""
    rig = Rig()
    batched(rig, [1, 2, 3], results)
    fine = batched(rig, [4], lambda batch: [IRQ_HANDLED])
    raise_flags(rig, 0, [1, 2, 3, 4])
    rig.settle()
    descs = [rig.irq(hwirq) for hwirq in (1, 2, 3, 4)]
    assert [1, 1, 1, 1] == [desc.tot_count for desc in descs]
    assert [1, 1, 1, 0] == [desc.irqs_unhandled for desc in descs]
    assert 1 == len(fine)
    with pytest.raises(error):
        rig.core.reraise()


@pytest.mark.parametrize("flags", [IRQF_SHARED, IRQF_PERCPU])
def test_batched_is_not_for_shared_and_per_cpu(flags):
    """Not for the top level; a chain cannot be collected either, and C handlers have no use for it."""
    rig = Rig()
    desc = rig.irq()
    for handler, its_flags in [(lambda batch: [], flags), (lib.vi_handler_message(), 0)]:
        with pytest.raises(IrqError, match="batched") as caught:
            rig.core.request_irq(desc.irq, handler, its_flags, "x", "x", batched=True)
        assert errno.EINVAL == caught.value.errno


def test_a_batched_handler_does_not_share():
    """A second request meets EBUSY like any other that is not shared."""
    rig = Rig()
    batched(rig, [1], lambda batch: [IRQ_HANDLED])
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(24, rig.handler, IRQF_SHARED, "x", "x")
    assert errno.EBUSY == caught.value.errno


def test_a_batch_has_a_length():
    """len(batch) is the number of its interrupts."""
    assert 2 == len(IrqBatch(0, [24, 25], [1, 2], [None, None]))


# ---- lifetimes


@ENGINES
def test_nothing_is_kept_after_free(engine):
    """Handler and cookie go when the action goes; the core, its machine and its descriptors go together."""
    rig = Rig(engine=engine)

    class Cookie:
        pass

    cookie = Cookie()
    gone = weakref.ref(cookie)
    desc = rig.requested(dev_id=cookie)
    rig.fire(desc)
    rig.core.free_irq(desc.irq, cookie)
    rig.calls.clear()
    del cookie
    gc.collect()
    assert None is gone()
    core = weakref.ref(rig.core)
    del rig, desc
    gc.collect()
    assert None is core()
