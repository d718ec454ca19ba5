"""What each step of an interrupt is: in words, who does the work here, and who does the same in Linux or Hyper-V.

The steps themselves come from a trace; nothing here decides which of them happen. Kernel names are those of v6.10, of
the RFC where it adds something, and of the TLFS for what the hypervisor does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.designs import Design, HypCount
from vmbusirq.lab.trace import NO_CPU, Event

__all__ = ["Place", "Setting", "Telling", "tell"]

HOST: Final = "host"
HYPERVISOR: Final = "hypervisor"


@dataclass(frozen=True, slots=True)
class Place:
    """A function of this project: path from the root, and name."""

    file: str
    function: str

    def __str__(self) -> str:
        return f"{self.file} {self.function}()"


@dataclass(frozen=True, slots=True)
class Setting:
    """On what the words depend.

    Attributes:
        design: the interrupt design.
        linux: the engine is ``linux``.
        arm64: the top level is a PPI.
        nr_irqs_max: columns above that are channels without an IRQ.
        target: the CPU that the guest wants the channel's interrupts on.
    """

    design: Design
    linux: bool
    arm64: bool
    nr_irqs_max: int
    target: int

    def irq(self, number: int) -> str:
        """Return what to call the IRQ of an event."""
        return f"IRQ {number}" if number < self.nr_irqs_max else "no IRQ, a counter of the channel alone"


@dataclass(frozen=True, slots=True)
class Telling:
    """One step in words.

    Attributes:
        where: ``host``, ``hypervisor``, or empty for the CPU.
        what: one sentence.
        inner: who does the work for the function that reported the step.
        kernel: who does the same in Linux (file and function) or what the TLFS calls it.
    """

    where: str
    what: str
    kernel: str
    inner: tuple[Place, ...] = ()


_RING: Final = "csrc/wire/ring_buffer.c"
_READER: Final = "csrc/wire/ring_reader.c"
_K_RING: Final = "drivers/hv/ring_buffer.c"
_K_VMBUS: Final = "drivers/hv/vmbus_drv.c"
_K_CHIP: Final = "kernel/irq/chip.c"
_K_STUB: Final = "arch/x86/include/asm/idtentry.h asm_sysvec_hyperv_callback()"
_K_SYSVEC: Final = "arch/x86/kernel/cpu/mshyperv.c sysvec_hyperv_callback()"
_MODES: Final = {
    lib.VI_CALL_BATCHED: ("BATCHED", "masks the ring and schedules the channel's tasklet"),
    lib.VI_CALL_DIRECT: ("DIRECT", "schedules the channel's tasklet; the ring stays unmasked"),
    lib.VI_CALL_ISR: ("ISR", "calls the driver's callback here, in the hard interrupt"),
}
_SOFTIRQS: Final = {
    lib.VI_SOFTIRQ_TASKLET: ("TASKLET", "tasklets", "kernel/softirq.c handle_softirqs(), tasklet_action()"),
    lib.VI_SOFTIRQ_NET_RX: ("NET_RX", "NAPI polls", "net/core/dev.c net_rx_action()"),
}
_PERCPU_FLOWS: Final = {
    lib.VI_FLOW_PERCPU_DEVID: (f"{_K_CHIP} handle_percpu_devid_irq()", "counts first, always", "has counted already"),
    lib.VI_FLOW_PERCPU_DEMUX: (
        f"{_K_CHIP} handle_percpu_demux_irq() (RFC patch 06)",
        "counts nothing yet",
        "counts only if the service routine says that it handled something itself, which is a control message",
    ),
    lib.VI_FLOW_PERCPU_NOSTAT: (
        "a flow handler that the review of RFC patch 06 asks for",
        "counts nothing yet",
        "adds to its own row unless that is hidden, never to the total of /proc/stat",
    ),
}


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# ---- the host and the hypervisor


def _ring_put(event: Event, _: Setting) -> Telling:
    what = "copies a packet into the in ring, past the write index: the guest cannot see it yet"
    if event.value < 0:
        what = "finds no room in the in ring: the packet is refused"
    return Telling(HOST, what, f"{_K_RING} hv_ringbuffer_write()", (Place(_RING, "vi_ring_put"),))


def _ring_publish(event: Event, _: Setting) -> Telling:
    what = "stores the new write index: from here on the packet is there" if event.value else "has nothing to publish"
    return Telling(HOST, what, f"{_K_RING} hv_set_next_write_location()", (Place(_RING, "vi_ring_publish"),))


def _ring_decide(event: Event, _: Setting) -> Telling:
    what = "looks whether the guest must be told: the ring was empty and is not masked, so yes"
    if not event.value:
        what = "looks whether the guest must be told: no signal"  # who explains adds why
    return Telling(HOST, what, f"{_K_RING} hv_signal_on_write()", (Place(_RING, "vi_ring_must_signal"),))


def _synic_flag(event: Event, _: Setting) -> Telling:
    what = f"sets event flag {event.id} of SINT 2 in the flag page of CPU {event.cpu}"
    what += ": 0 to 1" if event.value else ": it was set already, so there is no new vector"
    return Telling(HYPERVISOR, what, "TLFS 11.8, SynIC event flags page")


def _synic_vector(event: Event, _: Setting) -> Telling:
    return Telling(HYPERVISOR, f"requests the vector of SINT 2 on CPU {event.cpu}", "TLFS 11.3, SINTx: vector")


def _synic_busy(event: Event, _: Setting) -> Telling:
    what = f"finds a message in the slot of CPU {event.cpu}: marks it, and looks once more"
    return Telling(HYPERVISOR, what, "TLFS 11.8, message pending flag")


def _host_signal(event: Event, _: Setting) -> Telling:
    if event.cpu == NO_CPU:
        what = "signals nobody: the guest has opened the channel without interrupts"
    elif event.value < 0:
        what = f"has signalled CPU {event.cpu} in vain: that SynIC is off, the flag is lost"
    else:
        what = f"has signalled the flag of the channel on CPU {event.cpu}" + ("" if event.value else ", which was set")
    return Telling(HOST, what, "TLFS, HvCallSignalEvent")


# ---- the CPU, hard interrupt


def _vector(event: Event, setting: Setting) -> Telling:
    kernel = "drivers/irqchip/irq-gic-v3.c gic_handle_irq()" if setting.arm64 else _K_STUB
    what = "takes the vector: the request goes back to 0 before any flag is looked at"
    if not event.value:
        what, kernel = "has no vector, but softirqs left over", "kernel/softirq.c run_ksoftirqd()"
    return Telling("", what, kernel)


_ENTRY: Final = {
    HypCount.ALWAYS: "enters: the HYP row counts every vector",
    HypCount.MESSAGE: "enters: the HYP row waits for what the service routine finds",
    HypCount.NEVER: "enters: nobody counts the top level",
}
_ENTRY_END: Final = {
    HypCount.ALWAYS: "leaves the service routine: HYP has counted already",
    HypCount.MESSAGE: "leaves the service routine: HYP counts only if there was a control message",
    HypCount.NEVER: "leaves the service routine: nobody counts the top level",
}


def _entry(event: Event, _: Setting) -> Telling:
    return Telling("", _ENTRY[HypCount(event.value)], _K_SYSVEC)


def _entry_end(event: Event, _: Setting) -> Telling:
    kernel = _K_SYSVEC + (" (RFC patch 09)" if event.value == HypCount.MESSAGE else "")
    return Telling("", _ENTRY_END[HypCount(event.value)], kernel)


def _flow_entry(event: Event, setting: Setting) -> Telling:
    kernel, before, _ = _PERCPU_FLOWS[setting.design.toplevel_flow]
    what = f"runs the flow handler of the per-CPU PPI, IRQ {event.id}: it {before}"
    return Telling("", what, kernel)


def _flow_exit(event: Event, setting: Setting) -> Telling:
    kernel, _, after = _PERCPU_FLOWS[setting.design.toplevel_flow]
    return Telling("", f"ends the flow handler of the PPI: it {after}", kernel)


def _scan(event: Event, _: Setting) -> Telling:
    what = "enters the service routine, which looks for event flags of SINT 2"
    return Telling("", what, f"{_K_VMBUS} vmbus_isr(), vmbus_chan_sched()")


def _claim(event: Event, setting: Setting) -> Telling:
    how = "its bit alone" if setting.linux else "its whole word at once"
    what = f"finds flag {event.id} and claims it with a locked instruction, {how}"
    inner = () if setting.linux else (Place("csrc/vmbus/scan.c", "claim_word"),)
    return Telling("", what, f"{_K_VMBUS} vmbus_chan_sched(): sync_test_and_clear_bit()", inner)


def _lookup(event: Event, setting: Setting) -> Telling:
    kernel = "drivers/hv/connection.c relid2channel()"
    kernel += ": irq_resolve_mapping() (RFC patch 08)" if setting.design.channel_irqs else ""
    slow = Place("csrc/irq/irqdomain.c", "vi_slot_handle_irq")
    simple = Place("csrc/irq/chip.c", "handle_simple_irq")
    irq = setting.irq(event.id)
    ways: Mapping[int, tuple[str, tuple[Place, ...]]] = {
        lib.VI_WAY_SLOT: (f"looks up the slot: {irq}, owned by this CPU; its handler is called without a lock", ()),
        lib.VI_WAY_STUB: (
            f"looks up the slot: {irq}; its state asks for the locked way, through the flow handler",
            (slow, simple),
        ),
        lib.VI_WAY_NOT_OWNER: (
            f"looks up the slot: {irq}, owned by CPU {setting.target}, so it goes the slower, locked way",
            (slow, simple),
        ),
        lib.VI_WAY_FLOW: (f"looks up the domain: {irq}; its flow handler is next", (simple,)),
        lib.VI_WAY_CHANNEL: ("looks up the channel by its relid: there is no IRQ", ()),
        lib.VI_WAY_UNMAPPED: ("finds nothing under this relid: the flag is consumed and nobody counts it", ()),
        lib.VI_WAY_RESCINDED: ("finds a channel that is being taken away: the flag is consumed", ()),
    }
    what, inner = ways[event.value]
    return Telling("", what, kernel, inner)


def _flow(setting: Setting, part: str) -> str:
    """Return where the kernel does a part of the simple flow; without channel IRQs it has nothing of the kind."""
    if setting.design.channel_irqs:
        return f"{_K_CHIP} handle_simple_irq(){part}"
    return f"{_K_VMBUS} vmbus_chan_sched(), which counts channel->interrupts and calls the channel"


def _flow_count(event: Event, setting: Setting) -> Telling:
    what = f"runs the simple flow of {setting.irq(event.id)}: under its lock it counts, then calls the action"
    return Telling("", what, _flow(setting, ": kstat_incr_irqs_this_cpu()"))


def _flow_drop(event: Event, setting: Setting) -> Telling:
    fate = "remembered" if event.value else "dropped"
    what = f"finds {setting.irq(event.id)} running on another CPU: this arrival is {fate}"
    return Telling("", what, _flow(setting, ": irq_may_run()"))


def _flow_pending(event: Event, setting: Setting) -> Telling:
    what = f"finds nobody to call on {setting.irq(event.id)}: remembered as PENDING, counted nowhere"
    return Telling("", what, _flow(setting, ": IRQS_PENDING"))


def _flow_done(event: Event, setting: Setting) -> Telling:
    what = "is back from the action"
    if setting.design.channel_irqs:
        what += ": entropy sample, spurious check" if setting.linux else ": spurious check"
    return Telling(
        "",
        what,
        _flow(setting, ": handle_irq_event()"),
        (Place("csrc/irq/handle.c", "vi_handle_irq_event"),),
    )


def _arrival(setting: Setting) -> str:
    if setting.design.channel_irqs:
        return f"{_K_VMBUS} vmbus_chan_handler() (RFC patch 09)"
    return f"{_K_VMBUS} vmbus_chan_sched(): switch (channel->callback_mode)"


def _channel(event: Event, setting: Setting) -> Telling:
    name, what = _MODES[event.value]
    return Telling("", f"is in the channel's handler; mode {name} {what}", _arrival(setting))


def _channel_closed(event: Event, setting: Setting) -> Telling:
    return Telling("", "finds the channel closed: nobody to call", _arrival(setting))


def _napi(event: Event, _: Setting) -> Telling:
    what = "is in the driver's callback: it masks the ring and schedules a NAPI poll"
    return Telling("", what, "drivers/net/hyperv/netvsc.c netvsc_channel_cb()")


def _count(event: Event, setting: Setting) -> Telling:
    what = f"counts the arrival, after the call: {setting.irq(event.id)}"
    return Telling("", what, _flow(setting, ": kstat_incr_irqs_this_cpu(), there before the call"))


def _scan_end(event: Event, _: Setting) -> Telling:
    return Telling("", f"finds no more flags: {event.value} claimed", f"{_K_VMBUS} vmbus_chan_sched()")


def _message(event: Event, _: Setting) -> Telling:
    found = f"a message of type {event.value:#x}" if event.value else "no control message"
    return Telling("", f"looks at the message slot of SINT 2: {found}", f"{_K_VMBUS} vmbus_isr()")


def _redirect(event: Event, setting: Setting) -> Telling:
    irq, kernel = setting.irq(event.id), "kernel/irq/irqdesc.c generic_handle_demux_domain_irq() (redirection)"
    what = f"must not run {irq} here: an irq_work for it is queued on CPU {event.value}"
    if event.value < 0:
        what = f"must not run {irq} here, and nobody has requested it: the event is dropped"
    return Telling("", what, kernel)


def _irq_work(event: Event, setting: Setting) -> Telling:
    what = f"takes the interrupt of an irq_work, and runs the flow handler of {setting.irq(event.id)}"
    return Telling("", what, "kernel/irq_work.c irq_work_run()", (Place("csrc/irq/redirect.c", "vi_take_irq_work"),))


# ---- the CPU, softirq


def _softirq(event: Event, _: Setting) -> Telling:
    name, what, kernel = _SOFTIRQS.get(event.id, (str(event.id), "softirqs", "kernel/softirq.c handle_softirqs()"))
    return Telling("", f"counts {name} once and runs its {what}", kernel)


def _callback(event: Event, _: Setting) -> Telling:
    what = "runs the channel's tasklet, which calls the driver's callback"
    return Telling("", what, "drivers/hv/connection.c vmbus_on_event()")


def _read(event: Event, _: Setting) -> Telling:
    what = f"reads the ring: {_plural(event.value, 'packet')} copied out and checked, the room given back"
    kernel = f"{_K_RING} hv_pkt_iter_first(), __hv_pkt_iter_next(), hv_pkt_iter_close()"
    return Telling("", what, kernel, (Place(_READER, "vi_ring_drain"),))


def _answer(event: Event, _: Setting) -> Telling:
    what = "reads a request, and writes the answer into the out ring" + ("" if event.value else "; no signal is due")
    return Telling("", what, "drivers/hv/hv_util.c heartbeat_onchannelcallback(), timesync_onchannelcallback()")


def _host_event(event: Event, _: Setting) -> Telling:
    how = "by a hypercall" if event.value else "by the monitor page"
    return Telling("", f"signals the host {how}", "drivers/hv/channel.c vmbus_setevent()")


def _unmask(event: Event, _: Setting) -> Telling:
    raced = f"{event.value} bytes came meanwhile" if event.value else "nothing came meanwhile"
    inner = (Place(_READER, "vi_ring_end_read"),)
    what = f"wants signals again, and looks once more: {raced}"
    return Telling("", what, f"{_K_RING} hv_end_read()", inner)


def _reschedule(event: Event, _: Setting) -> Telling:
    what = "masks the ring and schedules itself once more"
    return Telling("", what, "drivers/hv/connection.c vmbus_on_event()")


def _irq_exit(event: Event, _: Setting) -> Telling:
    return Telling("", "leaves the interrupt", "kernel/softirq.c irq_exit_rcu()")


_TELLERS: Final[Mapping[int, Callable[[Event, Setting], Telling]]] = {
    lib.VI_TRACE_RING_PUT: _ring_put,
    lib.VI_TRACE_RING_PUBLISH: _ring_publish,
    lib.VI_TRACE_RING_DECIDE: _ring_decide,
    lib.VI_TRACE_SYNIC_FLAG: _synic_flag,
    lib.VI_TRACE_SYNIC_VECTOR: _synic_vector,
    lib.VI_TRACE_SYNIC_BUSY: _synic_busy,
    lib.VI_TRACE_HOST_SIGNAL: _host_signal,
    lib.VI_TRACE_VECTOR: _vector,
    lib.VI_TRACE_ENTRY: _entry,
    lib.VI_TRACE_FLOW_ENTRY: _flow_entry,
    lib.VI_TRACE_SCAN: _scan,
    lib.VI_TRACE_CLAIM: _claim,
    lib.VI_TRACE_LOOKUP: _lookup,
    lib.VI_TRACE_FLOW_COUNT: _flow_count,
    lib.VI_TRACE_FLOW_DROP: _flow_drop,
    lib.VI_TRACE_FLOW_PENDING: _flow_pending,
    lib.VI_TRACE_CHANNEL: _channel,
    lib.VI_TRACE_CHANNEL_CLOSED: _channel_closed,
    lib.VI_TRACE_NAPI: _napi,
    lib.VI_TRACE_FLOW_DONE: _flow_done,
    lib.VI_TRACE_COUNT: _count,
    lib.VI_TRACE_SCAN_END: _scan_end,
    lib.VI_TRACE_MESSAGE: _message,
    lib.VI_TRACE_ENTRY_END: _entry_end,
    lib.VI_TRACE_FLOW_EXIT: _flow_exit,
    lib.VI_TRACE_SOFTIRQ: _softirq,
    lib.VI_TRACE_CALLBACK: _callback,
    lib.VI_TRACE_READ: _read,
    lib.VI_TRACE_ANSWER: _answer,
    lib.VI_TRACE_HOST_EVENT: _host_event,
    lib.VI_TRACE_UNMASK: _unmask,
    lib.VI_TRACE_RESCHEDULE: _reschedule,
    lib.VI_TRACE_IRQ_EXIT: _irq_exit,
    lib.VI_TRACE_REDIRECT: _redirect,
    lib.VI_TRACE_IRQ_WORK: _irq_work,
}


def tell(event: Event, setting: Setting) -> Telling:
    """Return what an event is, in words."""
    return _TELLERS[event.step](event, setting)
