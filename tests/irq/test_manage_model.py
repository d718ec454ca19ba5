"""irq/manage against a model of a few lines: any order of request, free, enable, disable, arrivals and softirqs."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.irq.rig import Rig
from vmbusirq.irq.settings import (
    IRQD_IRQ_DISABLED,
    IRQF_NO_AUTOEN,
    IRQF_SHARED,
    IRQS_PENDING,
    IRQS_REPLAY,
)


class Model:
    """One simple IRQ as kernel/irq/{manage,chip,resend}.c v6.10 have it: what is counted, what is remembered."""

    def __init__(self):
        self.depth = 1
        self.disabled = True
        self.started = False
        self.actions = []
        self.pending = False
        self.replay = False
        self.queued = False
        self.warnings = 0
        self.calls = []
        self.counts = [0, 0, 0, 0]

    def arrive(self, cpu):
        self.replay = False
        if self.disabled or not self.actions:
            self.pending = True
            return
        self.pending = False
        self.counts[cpu] += 1
        self.calls += self.actions

    def start(self):
        self.depth = 0
        self.disabled = False
        self.started = True
        if self.pending and not self.replay:
            self.pending, self.replay, self.queued = False, True, True

    def request(self, dev_id, autoen):
        self.actions.append(dev_id)
        if len(self.actions) > 1:
            return
        if autoen:
            self.start()
        else:
            self.depth = 1  # the depth alone: an IRQ that somebody enabled before stays enabled

    def free(self, dev_id):
        self.actions.remove(dev_id)
        if not self.actions and self.started:
            self.started = False
            self.disabled = True
            self.depth = 1
            self.queued = False

    def disable(self):
        self.disabled = self.disabled or self.depth == 0
        self.depth += 1

    def enable(self):
        if self.depth == 0:
            self.warnings += 1
        elif self.depth == 1:
            self.start()
        else:
            self.depth -= 1

    def softirq(self):
        if self.queued:
            self.queued = False
            self.arrive(0)


class ManageMachine(RuleBasedStateMachine):
    """The same operations on a core and on the model; everything visible is the same after each."""

    engine = "fast"

    @initialize()
    def begin(self):
        self.rig = Rig(nr_cpus=4, nr_irqs=40, nr_irqs_max=40, engine=self.engine)
        self.desc = self.rig.irq(7)
        self.model = Model()
        self.shared = True

    @rule(cpu=st.integers(0, 3))
    def arrive(self, cpu):
        self.rig.fire(self.desc, cpu)
        self.model.arrive(cpu)

    @rule(cpu=st.integers(0, 3))
    def signal(self, cpu):
        self.model.softirq()
        self.rig.settle()
        self.rig.signal(7, cpu)
        self.model.arrive(cpu)
        self.model.softirq()

    @rule()
    def softirq(self):
        self.rig.settle()
        self.model.softirq()

    @precondition(lambda self: not self.model.actions)
    @rule(autoen=st.booleans())
    def request_first(self, autoen):
        self.shared = autoen
        flags = IRQF_SHARED if autoen else IRQF_NO_AUTOEN
        self.rig.core.request_irq(self.desc.irq, self.rig.handler, flags, "a", 1)
        self.model.request(1, autoen)

    @precondition(lambda self: self.model.actions and self.shared and len(self.model.actions) < 3)
    @rule()
    def request_more(self):
        dev_id = max(self.model.actions) + 1
        self.rig.core.request_irq(self.desc.irq, self.rig.handler, IRQF_SHARED, "a", dev_id)
        self.model.request(dev_id, autoen=True)

    @precondition(lambda self: self.model.actions)
    @rule(which=st.integers(0, 2))
    def free(self, which):
        dev_id = self.model.actions[which % len(self.model.actions)]
        assert "a" == self.rig.core.free_irq(self.desc.irq, dev_id)
        self.model.free(dev_id)

    @rule(sync=st.booleans())
    def disable(self, sync):
        call = self.rig.core.disable_irq if sync else self.rig.core.disable_irq_nosync
        self.model.disable()
        assert self.model.depth == call(self.desc.irq)

    @rule()
    def enable(self):
        self.model.enable()
        assert self.model.depth == self.rig.core.enable_irq(self.desc.irq)

    @rule(mask=st.integers(1, 15))
    def move(self, mask):
        self.rig.core.irq_set_affinity(self.desc.irq, mask)

    @invariant()
    def same(self):
        if not hasattr(self, "model"):
            return
        model, desc = self.model, self.desc
        assert model.depth == desc.depth
        assert model.started == desc.started
        assert model.disabled == bool(desc.state & IRQD_IRQ_DISABLED)
        assert (model.pending, model.replay) == (bool(desc.istate & IRQS_PENDING), bool(desc.istate & IRQS_REPLAY))
        assert model.counts == desc.kstat_irqs()
        assert [(desc.irq, dev_id) for dev_id in model.calls] == self.rig.calls
        assert ["Unbalanced enable for IRQ 24"] * model.warnings == self.rig.core.log.texts()
        assert model.actions == [action.dev_id for action in desc.actions]


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_manage_equals_the_model(engine):
    """genirq.md 4.4, 4.6, 4.7, both engines: counts, replay, depth and warnings for any order of operations."""
    machine = type("ManageMachine", (ManageMachine,), {"engine": engine})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
