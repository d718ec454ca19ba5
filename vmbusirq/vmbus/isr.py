"""One delivery of the callback vector on one CPU as steps: hard interrupt, then softirqs (vmbus_isr, v6.10).

The data plane takes a vector in one call, vi_vcpu_run(). Here the same code is run piece by piece, so that another CPU,
the host or a change of the control plane can come in between; run to its end it leaves the same counters and state.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError, check
from vmbusirq.limits import SINT_FLAGS
from vmbusirq.steps import Context, Lock, LockKind, Step, Steps

__all__ = ["Delivery", "deliverable", "in_interrupt", "sched_lock", "vcpu_steps"]

_SINT_WORDS: Final = int(lib.VI_SINT_WORDS)


def sched_lock(relid: int) -> Lock:
    """Return ``channel->sched_lock``: held by an arrival while it calls, or schedules, the channel's callback."""
    return Lock(f"channel {relid} sched_lock", LockKind.SPINNING)


def deliverable(core: Core, cpu: int) -> bool:
    """Return whether :func:`vcpu_steps` would find something to do on a CPU now; False for one in an interrupt."""
    return bool(lib.vi_step_deliverable(core.handle, cpu))


def in_interrupt(core: Core, cpu: int) -> bool:
    """Return whether a CPU is in an interrupt, softirqs included.

    What waits for CPUs or handlers in one call (free_irq, synchronize_irq, a channel's unmap) raises IrqError(EBUSY)
    while a CPU that is run by steps is in what it waits for; ``csrc/vmbusirq_api.h`` says which waits for what.
    """
    return bool(lib.vi_step_in_interrupt(core.handle, cpu))


def vcpu_steps(core: Core, cpu: int) -> Steps[int]:
    """Take what is pending on a CPU: irq_works, or the callback vector, unless it is held, and softirqs.

    Names in ``touches``: ``vector``, ``interrupt``, ``flags``, ``slot`` and ``softirq`` of a CPU (``flags cpu1``);
    ``irq N``; ``relid N``, its place in the domain; ``channel N``, by relid, its tasklet too; ``ring N in``;
    ``resend``; ``host``, whom a reader signals. No CPU is interrupted again before it has left, as in vi_vcpu_run().
    The fast engine's dispatch of a slot is one step, and takes desc->lock within it where it has to.

    Returns:
        1, or 0 when there was nothing to do or the CPU was in an interrupt.
    Raises:
        IrqError: EINVAL no such CPU, or an IRQ, or the machine as it was, is gone from under the interrupt.
    """
    return Delivery(core, cpu).steps()


@lru_cache(maxsize=1024)
def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


class Delivery:
    """A CPU on its way through an interrupt; :func:`vcpu_steps` tells what it does.

    Attributes:
        context: the part of the interrupt that it is in.
    """

    def __init__(self, core: Core, cpu: int) -> None:
        self._core = core
        self._machine = core.handle
        self._cpu = cpu
        self._what = f"cpu {cpu}: is not in an interrupt that is run step by step, or its irq is gone"
        self._number = ffi.new("uint32_t *")
        self._bits = ffi.new("uint64_t *")
        self.context = Context.HARDIRQ

    def _step(self, point: str, *touches: str, takes: Lock | None = None, anything: bool = False) -> Step:
        return Step(point, self.context, takes=takes, touches=None if anything else _names(*touches))

    def _call(self, function: Any, *args: Any) -> int:
        return check(function(self._machine, self._cpu, *args), self._what)

    def _use(self, what: str, function: Any, *args: Any) -> int:
        """Call what may find that ``what`` was freed meanwhile."""
        result: int = function(self._machine, self._cpu, *args)
        if result == -errno.EFAULT:
            raise self._freed(what)
        return check(result, self._what)

    def _freed(self, what: str) -> IrqError:
        return IrqError(errno.EFAULT, f"cpu {self._cpu} uses {what}, which was freed (EFAULT)")

    def _check_desc(self, irq: int, desc: Any) -> None:
        if lib.vi_irq_to_desc(self._machine, irq) != desc:
            raise self._freed(f"the descriptor of irq {irq}")

    def steps(self) -> Steps[int]:
        """Yield the steps of :func:`vcpu_steps`."""
        cpu = self._cpu
        resend = ("resend",) if cpu == 0 else ()
        softirq = f"softirq cpu{cpu}"
        yield self._step(
            f"cpu {cpu}: takes the callback vector", f"vector cpu{cpu}", f"interrupt cpu{cpu}", softirq, *resend
        )
        taken = check(lib.vi_step_vector(self._machine, cpu), f"cpu {cpu}: there is none")
        if not taken:
            return 0
        if taken & lib.VI_STEP_WORK:
            yield from self._works()
        if taken & lib.VI_STEP_ISR:
            yield from self._scan()
            taken |= yield from self._message()
        if taken & lib.VI_STEP_VECTOR:
            yield self._step(f"cpu {cpu}: ends the hard interrupt", f"vector cpu{cpu}", f"slot cpu{cpu}")
            self._call(lib.vi_step_vector_end, taken)
        self.context = Context.SOFTIRQ
        yield from self._softirqs()
        yield self._step(f"cpu {cpu}: irq_exit", f"interrupt cpu{cpu}")
        self._call(lib.vi_step_leave)
        return 1

    # ---- the scan

    def _scan(self) -> Steps[None]:
        if self._core.engine == "fast":
            yield from self._scan_words()
        else:
            yield from self._scan_flags()

    def _scan_flags(self) -> Steps[None]:
        cpu, relid = self._cpu, -1
        while True:
            yield self._step(
                f"cpu {cpu}: vmbus_chan_sched claims the next event flag from {relid + 1} on", f"flags cpu{cpu}"
            )
            relid = self._call(lib.vi_step_claim_flag, relid + 1)
            if relid == SINT_FLAGS:
                return
            yield self._step(
                f"cpu {cpu}: vmbus_chan_sched has claimed relid {relid}, looks it up",
                f"relid {relid}",
                f"channel {relid}",
            )
            way = self._call(lib.vi_step_lookup, relid, self._number)
            if way == lib.VI_WAY_FLOW:
                irq = self._number[0]
                if not self._core.redirect or not (yield from self._redirected(irq)):
                    yield from self._flow(irq, relid)
            elif way == lib.VI_WAY_CHANNEL:
                yield self._arrival(
                    f"channel {relid}: vmbus_chan_sched takes sched_lock on cpu {cpu}", self._number[0], relid
                )
                self._call(lib.vi_step_arrival, relid)

    def _scan_words(self) -> Steps[None]:
        cpu, word = self._cpu, -1
        while True:
            yield self._step(
                f"cpu {cpu}: the scan claims the next word of event flags from {(word + 1) * 64} on", f"flags cpu{cpu}"
            )
            word = self._call(lib.vi_step_claim_word, word + 1, self._bits)
            if word == _SINT_WORDS:
                break
            for relid in _set_bits(self._bits[0], word):
                yield self._step(f"cpu {cpu}: the scan has claimed relid {relid}, dispatches it", anything=True)
                self._call(lib.vi_step_dispatch, relid)
        self._call(lib.vi_step_scan_end)

    # ---- redirection

    def _redirected(self, irq: int) -> Steps[int]:
        """Return 1 where the child may not run on this CPU: then it is queued on its target, or dropped."""
        cpu = self._cpu
        targets = (f"vector cpu{other}" for other in range(self._core.nr_cpus))
        point = f"irq {irq}: generic_handle_demux_domain_irq takes desc->lock on cpu {cpu}"
        yield self._step(point, f"irq {irq}", *targets, takes=Lock(f"irq {irq} desc->lock"))
        return self._call(lib.vi_step_redirect, irq)

    def _works(self) -> Steps[None]:
        """What others have queued on this CPU, in that order (irq_work_run)."""
        cpu = self._cpu
        while True:
            yield self._step(f"cpu {cpu}: irq_work_run takes the next work", f"vector cpu{cpu}")
            if not self._call(lib.vi_step_work, self._number):
                return
            irq = self._number[0]
            if self._core.engine == "fast":
                yield self._step(f"irq {irq}: its work runs the flow handler on cpu {cpu}", anything=True)
                self._call(lib.vi_step_do_work, irq)
            else:
                yield from self._flow(irq, int(lib.vi_irq_to_desc(self._machine, irq).hwirq))

    # ---- flow handlers

    def _flow(self, irq: int, relid: int | None) -> Steps[None]:
        """Let the simple flow of an IRQ run; any other flow runs as a whole in its first step."""
        cpu, machine = self._cpu, self._machine
        lock = Lock(f"irq {irq} desc->lock")
        desc = lib.vi_irq_to_desc(machine, irq)
        simple = desc.flow == lib.VI_FLOW_SIMPLE
        name = "handle_simple_irq" if simple else "its flow handler"
        yield self._step(
            f"irq {irq}: {name} takes desc->lock on cpu {cpu}", f"irq {irq}", takes=lock, anything=not simple
        )
        self._check_desc(irq, desc)
        again = self._call(lib.vi_step_flow_enter, irq)
        while again:
            yield self._arrival(f"irq {irq}: handle_irq_event runs the actions on cpu {cpu}", irq, relid)
            self._check_desc(irq, desc)
            self._use(f"an action of irq {irq}", lib.vi_step_flow_actions, irq)
            yield self._step(
                f"irq {irq}: handle_irq_event takes desc->lock again on cpu {cpu}, clears IN_PROGRESS",
                f"irq {irq}",
                takes=lock,
            )
            self._check_desc(irq, desc)
            again = self._use(f"an action of irq {irq}", lib.vi_step_flow_exit, irq)

    def _arrival(self, point: str, irq: int, relid: int | None) -> Step:
        """Return the step before the actions: a channel's takes sched_lock, and what it calls may do anything."""
        if relid is None:
            return self._step(point, anything=True)
        touches = (f"irq {irq}", f"channel {relid}", f"ring {relid} in", f"softirq cpu{self._cpu}")
        if lib.vi_step_reads(self._machine, relid):
            return self._step(point, *touches, "host", takes=sched_lock(relid))
        own = lib.vi_step_is_own(self._machine, irq)
        return self._step(point, *touches, takes=sched_lock(relid), anything=not own)

    # ---- the message slot

    def _message(self) -> Steps[int]:
        cpu = self._cpu
        timer = lib.vi_synic_slot(self._machine, cpu, lib.VI_SINT_VMBUS).type == lib.VI_MSG_TIMER_EXPIRED
        yield self._step(
            f"cpu {cpu}: vmbus_isr looks at the message slot", f"slot cpu{cpu}", f"softirq cpu{cpu}", anything=timer
        )
        there = self._call(lib.vi_step_message, self._number)
        if self._number[0]:
            yield from self._flow(self._number[0], None)
        return int(lib.VI_STEP_HANDLED) if there else 0

    # ---- softirqs

    def _softirqs(self) -> Steps[None]:
        for _round in range(lib.VI_STEP_ROUNDS):
            pending = lib.vi_step_softirqs(self._machine, self._cpu)
            if not pending:
                return
            for vector in _set_bits(pending):
                self._call(lib.vi_step_softirq, vector)
                yield from self._tasklets()

    def _tasklets(self) -> Steps[None]:
        cpu, tasklet = self._cpu, ffi.new("struct vi_step_tasklet *")
        while self._call(lib.vi_step_tasklet, tasklet):
            kind, relid = tasklet.kind, tasklet.relid
            of_channel = kind in (lib.VI_STEP_CHANNEL, lib.VI_STEP_POLL)
            whose, *touches = (f"channel {relid}",) * 2 if of_channel else (f"cpu {cpu}",)
            step = self._step(f"{whose}: {_TASKLETS[kind]} begins on cpu {cpu}", f"softirq cpu{cpu}", *touches)
            yield replace(step, ready=self._is_free) if of_channel else step
            if of_channel and self._call(lib.vi_step_tasklet, tasklet) and tasklet.gone:
                raise self._freed(f"channel {relid}")
            if not self._call(lib.vi_step_tasklet_begin):
                continue
            if of_channel:
                yield from self._channel(kind, relid, bool(tasklet.own))
            elif kind == lib.VI_STEP_MESSAGES:
                yield from self._messages()
            else:
                yield from self._resend()
            self._call(lib.vi_step_tasklet_end)

    def _is_free(self) -> bool:
        """Whether the next tasklet runs nowhere; the kernel schedules it anew until that is so."""
        tasklet = ffi.new("struct vi_step_tasklet *")
        return not (self._call(lib.vi_step_tasklet, tasklet) and tasklet.running)

    def _channel(self, kind: int, relid: int, own: bool) -> Steps[None]:
        """The channel's callback, then what vmbus_on_event, or the end of a NAPI poll, does after it."""
        what = f"channel {relid}: {_TASKLETS[kind]}"
        yield self._step(f"{what} calls the driver on cpu {self._cpu}", *self._of_ring(relid), "host", anything=not own)
        if self._call(lib.vi_step_callback):
            yield from self.end_read(what, relid)

    def _of_ring(self, relid: int) -> tuple[str, ...]:
        return f"channel {relid}", f"ring {relid} in", f"softirq cpu{self._cpu}"

    def end_read(self, what: str, relid: int) -> Steps[None]:
        """Yield the steps of hv_end_read, by which ``what`` ends its read: unmask, then look once more."""
        yield from self.unmask(what, relid)
        yield from self.look_again(what, relid)

    def unmask(self, what: str, relid: int) -> Steps[None]:
        """Yield the step that lets the host signal again."""
        yield self._step(f"{what} unmasks the ring on cpu {self._cpu} (hv_end_read)", *self._of_ring(relid)[:2])
        self._use(f"the in ring of channel {relid}", lib.vi_step_unmask)

    def look_again(self, what: str, relid: int) -> Steps[None]:
        """Yield the step that masks, and comes back, if something is in the ring."""
        yield self._step(f"{what} looks on cpu {self._cpu} for what raced in", *self._of_ring(relid))
        self._use(f"the in ring of channel {relid}", lib.vi_step_end_read)

    def _messages(self) -> Steps[None]:
        cpu, message = self._cpu, ffi.new("struct vi_message *")
        yield self._step(f"cpu {cpu}: vmbus_on_msg_dpc copies the message", f"slot cpu{cpu}")
        kind = self._call(lib.vi_step_message_copy, message)
        if kind == lib.VI_MSG_NONE:
            return
        yield self._step(f"cpu {cpu}: vmbus_on_msg_dpc hands the message on", anything=True)
        self._call(lib.vi_step_message_hand, message)
        slot = f"slot cpu{cpu}", f"vector cpu{cpu}"  # which EOM fills again, if another message waits
        yield self._step(f"cpu {cpu}: vmbus_signal_eom frees the message slot", *slot)
        self._call(lib.vi_step_message_eom, kind)

    def _resend(self) -> Steps[None]:
        cpu, word = self._cpu, -1
        while True:
            yield self._step(f"cpu {cpu}: resend_irqs takes the irqs to replay", "resend")
            word = self._call(lib.vi_step_resend, word + 1, self._bits)
            if word == lib.VI_STEP_WORDS_END:
                return
            for irq in _set_bits(self._bits[0], word):
                if lib.vi_irq_to_desc(self._machine, irq) == ffi.NULL:
                    continue
                if self._core.engine == "fast":
                    yield self._step(f"irq {irq}: resend_irqs runs its flow handler on cpu {cpu}", anything=True)
                    self._call(lib.vi_step_handle_irq, irq)
                else:
                    yield from self._flow(irq, None)


_TASKLETS: Final = {
    int(lib.VI_STEP_CHANNEL): "vmbus_on_event",
    int(lib.VI_STEP_POLL): "the NAPI poll",
    int(lib.VI_STEP_MESSAGES): "vmbus_on_msg_dpc",
    int(lib.VI_STEP_RESEND): "resend_irqs",
}


def _set_bits(bits: int, word: int = 0) -> list[int]:
    return [word * 64 + bit for bit in range(64) if bits >> bit & 1]
