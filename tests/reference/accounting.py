"""A slow second reading of kernel/irq/{chip,handle,spurious,resend,manage}.c, v6.10: who counts, what is remembered.

One descriptor, no locks: the rules of genirq.md 4.4 to 4.8 as sentences. Actions are plain callables that may let the
same IRQ arrive on another CPU while they run, which is how an arrival in progress elsewhere becomes deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

NONE, HANDLED, WAKE_THREAD = 0, 1, 2
SAMPLE, LIMIT, WINDOW_MS = 100_000, 99_900, 100
DEFERRED = 1 << 31

Action = Callable[[int], int]  # the CPU -> irqreturn


@dataclass
class Desc:
    """One IRQ.

    Attributes:
        flow: "bad", "simple", "untracked", "edge", "level", "fasteoi", "percpu", "percpu_devid", "percpu_demux" or
            "percpu_nostat".
        ops: names of the callbacks that the chip has.
        replay: an arrival while the IRQ runs elsewhere is run again afterwards (fast engine), not dropped (v6.10).
    """

    cpus: int
    flow: str
    ops: frozenset[str] = frozenset()
    eoi_if_handled: bool = False
    replay: bool = False
    level: bool = False
    hidden: bool = False
    no_debug: bool = False
    polled: bool = False
    unlazy: bool = False
    adds_depth: bool = False

    cnt: list[int] = field(default_factory=list)
    irqs_sum: list[int] = field(default_factory=list)
    tot_count: int = 0
    dropped: int = 0
    calls: list[tuple[str, int]] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    now_ms: int = 0

    depth: int = 1
    disabled: bool = True
    masked: bool = True
    started: bool = False
    in_progress: bool = False
    pending: bool = False
    replaying: bool = False
    oneshot: bool = False
    spurious_disabled: bool = False
    resend_queued: bool = False
    irq_count: int = 0
    irqs_unhandled: int = 0
    last_unhandled_ms: int = 0
    threads_handled: int = 0
    threads_handled_last: int = 0
    percpu_enabled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.cnt = [0] * self.cpus
        self.irqs_sum = [0] * self.cpus

    # ---- the chip

    def call(self, op: str, cpu: int = 0) -> bool:
        """Call a callback of the chip; False if it has none."""
        if op in self.ops:
            self.calls.append((op, cpu))
        return op in self.ops

    def mask(self, cpu: int = 0) -> None:
        if not self.masked and self.call("mask", cpu):
            self.masked = True

    def unmask(self, cpu: int = 0) -> None:
        if self.masked and self.call("unmask", cpu):
            self.masked = False

    def mask_ack(self, cpu: int) -> None:
        if self.call("mask_ack", cpu):
            self.masked = True
        else:
            self.mask(cpu)
            self.call("ack", cpu)

    # ---- counting

    def count2(self, cpu: int) -> None:
        self.cnt[cpu] += 1
        self.irqs_sum[cpu] += 1

    def count3(self, cpu: int) -> None:
        self.count2(cpu)
        self.tot_count += 1

    # ---- one arrival

    def arrive(self, cpu: int) -> None:
        """Let the flow handler run on ``cpu``."""
        getattr(self, f"flow_{self.flow}")(cpu)

    def usable(self) -> bool:
        if self.actions and not self.disabled:
            return True
        self.pending = True
        return False

    def run(self, cpu: int) -> int:
        result = NONE
        for action in list(self.actions):
            one = action(cpu)
            if one == WAKE_THREAD:
                self.reports.append("wake_without_thread")
            result |= one
        return result

    def event(self, cpu: int, *, tracked: bool = True) -> None:
        self.pending = False
        self.in_progress = True
        result = self.run(cpu)
        if tracked and not self.no_debug:
            self.note(result)
        self.in_progress = False

    def flow_bad(self, cpu: int) -> None:
        self.count3(cpu)
        self.reports.append("bad_irq")

    def flow_simple(self, cpu: int, *, tracked: bool = True) -> None:
        if self.in_progress:
            if self.replay:
                self.pending = True
            else:
                self.dropped += 1
            return
        while True:
            self.replaying = False
            if not self.usable():
                return
            if tracked:
                self.count3(cpu)
            self.event(cpu, tracked=tracked)
            if not (self.replay and self.pending):
                return

    def flow_untracked(self, cpu: int) -> None:
        self.flow_simple(cpu, tracked=False)

    def flow_edge(self, cpu: int) -> None:
        self.replaying = False
        if self.in_progress or not self.usable():
            self.pending = True
            self.mask_ack(cpu)
            return
        self.count3(cpu)
        self.call("ack", cpu)
        while True:
            if not self.actions:
                self.mask(cpu)
                return
            if self.pending and not self.disabled:
                self.unmask(cpu)
            self.event(cpu)
            if not self.pending or self.disabled:
                return

    def flow_level(self, cpu: int) -> None:
        self.mask_ack(cpu)
        if self.in_progress:
            return
        self.replaying = False
        if not self.usable():
            return
        self.count3(cpu)
        self.event(cpu)
        if not self.disabled:
            self.unmask(cpu)

    def flow_fasteoi(self, cpu: int) -> None:
        if self.in_progress:
            self.pending |= self.replay
            self.eoi_unrun(cpu)
            return
        self.replaying = False
        if not self.usable():
            self.mask(cpu)
            self.eoi_unrun(cpu)
            return
        self.count3(cpu)
        if self.oneshot:
            self.mask(cpu)
        self.event(cpu)
        self.call("eoi", cpu)
        if self.oneshot and not self.disabled:
            self.unmask(cpu)
        if self.pending:
            self.check_resend()

    def eoi_unrun(self, cpu: int) -> None:
        if not self.eoi_if_handled:
            self.call("eoi", cpu)

    def flow_percpu(self, cpu: int) -> None:
        self.count2(cpu)
        self.call("ack", cpu)
        result = self.run(cpu)
        if not self.no_debug:
            self.note(result)
        self.call("eoi", cpu)

    def flow_percpu_devid(self, cpu: int) -> None:
        self.count2(cpu)
        self.call("ack", cpu)
        if self.actions:
            self.actions[0](cpu)
        else:
            if cpu in self.percpu_enabled:
                self.percpu_enable(cpu, on=False)
            self.reports.append("spurious_percpu")
        self.call("eoi", cpu)

    def flow_percpu_demux(self, cpu: int) -> None:
        self.call("ack", cpu)
        result = NONE
        for action in list(self.actions):
            result |= action(cpu)
        if result != NONE:
            self.count2(cpu)
        self.call("eoi", cpu)

    def flow_percpu_nostat(self, cpu: int) -> None:
        self.call("ack", cpu)
        for action in list(self.actions):
            action(cpu)
        self.call("eoi", cpu)
        if not self.hidden:
            self.cnt[cpu] += 1

    # ---- spurious

    def note(self, result: int) -> None:
        """Keep account of arrivals that nobody handled (note_interrupt)."""
        if self.polled:
            return
        if result > (HANDLED | WAKE_THREAD):
            self.reports.append("bogus_return")
            return
        if result == WAKE_THREAD:
            if not self.threads_handled_last & DEFERRED:
                self.threads_handled_last |= DEFERRED
                return
            moved = (self.threads_handled | DEFERRED) != self.threads_handled_last
            self.threads_handled_last = self.threads_handled | DEFERRED
            result = HANDLED if moved else NONE
        elif result & WAKE_THREAD:
            self.threads_handled_last &= ~DEFERRED
        if result == NONE:
            if self.now_ms > self.last_unhandled_ms + WINDOW_MS:
                self.irqs_unhandled = 1
            else:
                self.irqs_unhandled += 1
            self.last_unhandled_ms = self.now_ms
        if not self.irqs_unhandled:
            return
        self.irq_count += 1
        if self.irq_count < SAMPLE:
            return
        self.irq_count = 0
        if self.irqs_unhandled > LIMIT:
            self.reports.append("nobody_cared")
            self.spurious_disabled = True
            self.depth += 1
            self.disable_inner(mask=self.unlazy)
        self.irqs_unhandled = 0

    # ---- control

    def enable_inner(self) -> None:
        if not self.disabled:
            self.unmask()
            return
        self.disabled = False
        if self.call("enable"):
            self.masked = False
        else:
            self.unmask()

    def disable_inner(self, *, mask: bool) -> None:
        if self.disabled:
            if mask:
                self.mask()
            return
        self.disabled = True
        if self.call("disable"):
            self.masked = True
        elif mask:
            self.mask()

    def startup(self, *, resend: bool = True) -> None:
        self.depth = 0
        if self.started:
            self.enable_inner()
        else:
            if self.call("startup"):
                self.disabled = self.masked = False
            else:
                self.enable_inner()
            self.started = True
        if resend:
            self.check_resend()

    def shutdown(self) -> None:
        if not self.started:
            return
        self.resend_queued = False
        self.depth = self.depth + 1 if self.adds_depth else 1
        if self.call("shutdown"):
            self.disabled = self.masked = True
        else:
            self.disable_inner(mask=True)
        self.started = False

    def disable(self) -> int:
        self.depth += 1
        if self.depth == 1:
            self.disable_inner(mask=self.unlazy)
        return self.depth

    def enable(self) -> int | None:
        """Undo one disable; None: there was none to undo."""
        if self.depth == 0:
            return None
        if self.depth == 1:
            self.startup()
        else:
            self.depth -= 1
        return self.depth

    def check_resend(self) -> None:
        if self.level:
            self.pending = False
        elif not self.replaying and self.pending:
            self.pending = False
            self.replaying = True
            if not self.call("retrigger"):
                self.resend_queued = True

    def softirq(self) -> None:
        """Run the resend tasklet, on the boot CPU."""
        if self.resend_queued:
            self.resend_queued = False
            self.arrive(0)

    def add(self, action: Action, *, oneshot: bool = False) -> None:
        revive = bool(self.actions) and self.spurious_disabled
        if not self.actions:
            self.spurious_disabled = self.in_progress = False
            self.oneshot = oneshot
        self.irq_count = self.irqs_unhandled = 0
        self.actions.append(action)
        if revive:
            self.spurious_disabled = False
            self.enable()

    def remove(self, action: Action) -> None:
        self.actions.remove(action)
        if not self.actions:
            self.unlazy = False
            self.shutdown()

    def percpu_enable(self, cpu: int, *, on: bool) -> None:
        (self.percpu_enabled.add if on else self.percpu_enabled.discard)(cpu)
        if on:
            self.call("enable", cpu) or self.call("unmask", cpu)
        else:
            self.call("disable", cpu) or self.call("mask", cpu)
