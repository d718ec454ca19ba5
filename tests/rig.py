"""A machine of the C core alone, put together by hand: what the tests of csrc/ stand on.

Nothing of the Python control plane is used but its trampolines, which can be defined once per process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import vmbusirq.irq.callbacks
import vmbusirq.vmbus.callbacks
from tests.synic import switch_synic
from vmbusirq._ffi import ffi, lib

VMBUS_SINT = lib.VI_SINT_VMBUS
SIMDS = ("scalar", "avx2", "avx512")[: lib.vi_simd_best() + 1]
ENGINES = ("fast", "linux")
OPS = {
    getattr(lib, f"VI_CHIP_{name.upper()}"): name
    for name in (
        *("ack", "eoi", "mask", "unmask", "mask_ack"),
        *("enable", "disable", "startup", "shutdown", "retrigger"),
    )
}
REPORTS = {
    lib.VI_REPORT_NOBODY_CARED: "nobody_cared",
    lib.VI_REPORT_BOGUS_RETURN: "bogus_return",
    lib.VI_REPORT_BAD_IRQ: "bad_irq",
    lib.VI_REPORT_SPURIOUS_PERCPU: "spurious_percpu",
    lib.VI_REPORT_WAKE_WITHOUT_THREAD: "wake_without_thread",
}

Handler = Callable[[int], int]  # the virtual CPU it runs on -> enum vi_irqreturn


def chip_ops(*names: str) -> int:
    """Return the bits of vi_irq_chip.ops for these callbacks."""
    return sum(op for op, name in OPS.items() if name in names)


@dataclass(eq=False)
class Action:
    """A handler on an IRQ; carries what the trampoline of Python handlers looks for."""

    irq: int
    c: Any
    handler: Any = None
    owner: Any = None
    desc: Any = None
    dev_id: Any = None
    percpu_dev_id: Any = None
    batched: bool = False
    keep: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Channel:
    """A channel of the guest and, with rings, the host's end of it."""

    relid: int
    irq: int
    c: Any
    calls: Any  # uint64_t[1], what VI_CALLBACK_COUNT adds to
    vsp: Any = None
    rings: tuple[Any, ...] = ()
    action: Action | None = None


class _Desc:
    """What the trampolines look for behind owner.irq.descs[irq]: the chip's callbacks and the actions."""

    def __init__(self, rig: Rig, irq: int) -> None:
        self.rig, self.irq, self.hwirq = rig, irq, 0
        self.chip = self
        self.actions: list[Action] = []

    def op(self, op: int) -> Callable[[Any, int], None]:
        return lambda _desc, cpu: self.rig.calls.append((OPS[op], cpu))


class Rig:
    """A machine with everything switched on; a context manager that takes it apart in the right order.

    Args:
        engine: "fast" or "linux".
        design: "rfc" (channels have IRQs, HYP counts messages) or "legacy" (no IRQs, HYP counts always).
        redirect: channels run on a CPU of their effective mask.
    """

    def __init__(
        self,
        engine: str = "fast",
        *,
        cpus: int = 2,
        irqs: int = 64,
        design: str = "rfc",
        arch: str = "x86",
        simd: str = "scalar",
        redirect: bool = False,
    ) -> None:
        self.engine, self.cpus, self.irqs, self.design = engine, cpus, irqs, design
        config = ffi.new(
            "struct vi_config *",
            {
                "nr_cpus": cpus,
                "nr_irqs_max": irqs,
                "engine": lib.VI_ENGINE_FAST if engine == "fast" else lib.VI_ENGINE_LINUX,
                "simd": SIMDS.index(simd),
                "arch": lib.VI_ARCH_ARM64 if arch == "arm64" else lib.VI_ARCH_X86,
                "hyp_count": lib.VI_HYP_ALWAYS if design == "legacy" else lib.VI_HYP_MESSAGE,
                "channel_irqs": design != "legacy",
                "redirect": redirect,
                "seed": 1,
            },
        )
        out = ffi.new("struct vi_machine **")
        assert 0 == lib.vi_machine_create(config, out)
        self.m = out[0]
        self.counters = ffi.new("struct vi_counters *")
        lib.vi_machine_counters(self.m, self.counters)
        self.calls: list[tuple[str, int]] = []
        self.reports: list[tuple[str, int, int]] = []
        self.messages: list[tuple[int, int, bytes]] = []
        self.batches: list[list[int]] = []
        self.errors: list[BaseException] = []
        self.descs: dict[int, _Desc] = {}
        self.channels: dict[int, Channel] = {}
        self.irq, self.rooms = self, {"vmbus": self}  # for owner_of(cpu).irq and owner_of(cpu).rooms
        self._keep: list[Any] = [ffi.new_handle(self)]
        lib.vi_machine_set_owner(self.m, self._keep[0])
        hooks = {"batch": lib.vi_py_batch, "message": lib.vi_py_message, "report": lib.vi_py_report}
        hooks["packet"] = lib.vi_py_packet
        lib.vi_machine_set_hooks(self.m, ffi.new("struct vi_hooks *", hooks))
        for cpu in range(cpus):
            switch_synic(self.m, cpu, True, arch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channels = list(self.channels.values())
        for channel in channels:
            self.close(channel)
            if lib.vi_channel_unmap(channel.c) not in (0, -2):
                raise AssertionError(f"channel {channel.relid} cannot be unmapped")
        for desc in self.descs.values():
            for action in desc.actions:
                assert 0 == lib.vi_irq_remove_action(self.m, desc.irq, action.c)
            assert 0 == lib.vi_irq_free_desc(self.m, desc.irq)
        for channel in channels:
            lib.vi_channel_destroy(channel.c)
            if channel.vsp is not None:
                lib.vi_vsp_destroy(channel.vsp)
            for ring in channel.rings:
                lib.vi_ring_mem_destroy(ring)
        lib.vi_machine_destroy(self.m)
        if error is None and self.errors:
            raise self.errors[0]

    # ---- what the trampolines call

    def keep(self, error: BaseException) -> None:
        """Keep what a callback raised until the machine is taken apart."""
        self.errors.append(error)

    def report(self, what: int, irq: int, value: int, _cpu: int) -> None:
        """Note a report of the data plane."""
        self.reports.append((REPORTS[what], irq, value))

    def on_message(self, message_type: int, size: int, payload: bytes) -> None:
        """Note a control message."""
        self.messages.append((message_type, size, payload))

    # ---- IRQs

    def alloc(
        self, irq: int, flow: int = lib.VI_FLOW_SIMPLE, *, ops: int = 0, flags: int = 0, hwirq: int | None = None
    ) -> Any:
        """Allocate a descriptor with a chip whose calls are noted; return the C descriptor."""
        chip = ffi.new("struct vi_irq_chip *", {"ops": ops, "flags": flags, "call": lib.vi_py_chip_call})
        self._keep.append(chip)
        assert 0 == lib.vi_irq_alloc_desc(self.m, irq)
        assert 0 == lib.vi_irq_set_chip_and_flow(self.m, irq, chip, flow)
        self.descs[irq] = _Desc(self, irq)
        if hwirq is not None:
            assert 0 == lib.vi_domain_map(self.m, hwirq, irq)
            self.descs[irq].hwirq = hwirq
        return self.c(irq)

    def c(self, irq: int) -> Any:
        """Return the C descriptor."""
        return lib.vi_irq_to_desc(self.m, irq)

    def request(
        self,
        irq: int,
        handler: Handler | int,
        *,
        startup: bool = True,
        flags: int = 0,
        exact: bool = True,
        cookies: Sequence[int] = (),
    ) -> Action:
        """Add an action that calls ``handler`` with the CPU, or always returns that number."""
        answer = handler if callable(handler) else lambda _cpu: handler
        action = Action(irq, ffi.new("struct vi_irqaction *"), owner=self, desc=self.descs[irq])
        action.handler = lambda _irq, _dev: answer(int(vmbusirq.irq.callbacks.smp_processor_id() or 0))
        action.keep.append(ffi.new_handle(action))
        action.c.handler, action.c.dev_id = lib.vi_py_handler, action.keep[0]
        action.c.flags, action.c.exact = flags, exact
        if cookies:
            action.keep.append(ffi.new("void *[]", [action.keep[0] if cookie else ffi.NULL for cookie in cookies]))
            action.c.percpu_dev_id = action.keep[1]
        self.add(action, startup=startup)
        return action

    def request_batched(self, irq: int, results: Callable[[Any], Sequence[int]]) -> Action:
        """Add an action that is called once per scan."""
        action = Action(irq, ffi.new("struct vi_irqaction *"), owner=self, desc=self.descs[irq], batched=True)
        action.handler = results
        action.keep.append(ffi.new_handle(action))
        action.c.handler, action.c.dev_id, action.c.batched = lib.vi_py_handler, action.keep[0], 1
        self.add(action)
        return action

    def add(self, action: Action, *, startup: bool = True) -> None:
        """Put an action into its chain and start the IRQ with it."""
        assert 0 == lib.vi_irq_add_action(self.m, action.irq, action.c)
        self.descs[action.irq].actions.append(action)
        if startup:
            assert 0 == lib.vi_irq_startup(self.m, action.irq, 1)

    def free(self, action: Action) -> None:
        """Take an action out of its chain."""
        assert 0 == lib.vi_irq_remove_action(self.m, action.irq, action.c)
        self.descs[action.irq].actions.remove(action)

    def arrive(self, irq: int, cpu: int = 0) -> None:
        """Let the flow handler run."""
        assert 0 == lib.vi_generic_handle_irq(self.m, cpu, irq)

    # ---- channels

    def channel(
        self,
        relid: int,
        *,
        mode: int = lib.VI_CALL_ISR,
        callback: int | None = lib.VI_CALLBACK_COUNT,
        cpu: int = 0,
        ring: int = 0,
        irq: int | None = None,
        request: bool = True,
    ) -> Channel:
        """Make a channel with its IRQ (24 + relid), rings and callback; the host signals its CPU."""
        number = 0 if self.design == "legacy" else 24 + relid if irq is None else irq
        out = ffi.new("struct vi_channel **")
        assert 0 == lib.vi_channel_create(self.m, relid, mode, out)
        ch = Channel(relid, number, out[0], ffi.new("uint64_t *"))
        self.channels[relid] = ch
        assert 0 == lib.vi_channel_set_cpu(ch.c, cpu)
        if number:
            self.alloc(number, ops=chip_ops("mask", "unmask"), hwirq=relid)
        assert 0 == lib.vi_channel_map(ch.c, number)
        if number and request:
            ch.action = Action(number, ffi.new("struct vi_irqaction *"))
            lib.vi_channel_bind_action(ch.c, ch.action.c)
            self.add(ch.action)
        if ring:
            self._rings(ch, ring)
            assert 0 == lib.vi_vsp_set_target(ch.vsp, cpu)
        if callback is not None:
            self.open(ch, callback)
        return ch

    def _rings(self, ch: Channel, size: int) -> None:
        ch.rings = (ffi.new("struct vi_ring_mem *"), ffi.new("struct vi_ring_mem *"))
        for ring in ch.rings:
            assert 0 == lib.vi_ring_mem_create(size, ring)
            lib.vi_ring_reset(ring)
        assert 0 == lib.vi_channel_set_rings(ch.c, *ch.rings, 4096)
        out = ffi.new("struct vi_vsp **")
        assert 0 == lib.vi_vsp_create(self.m, ch.relid, *ch.rings, out)
        ch.vsp = out[0]

    def open(self, ch: Channel, callback: int = lib.VI_CALLBACK_COUNT) -> None:
        """Set the callback."""
        context = ch.calls if callback == lib.VI_CALLBACK_COUNT else ffi.NULL
        assert 0 == lib.vi_channel_set_callback(ch.c, callback, ffi.NULL, context)

    def close(self, ch: Channel) -> None:
        """Clear the callback."""
        assert 0 == lib.vi_channel_set_callback(ch.c, lib.VI_CALLBACK_NONE, ffi.NULL, ffi.NULL)

    def stats(self, ch: Channel) -> Any:
        """Return struct vi_channel_stats."""
        out = ffi.new("struct vi_channel_stats *")
        lib.vi_channel_get_stats(ch.c, out)
        return out

    def sent(self, ch: Channel) -> Any:
        """Return struct vi_vsp_stats."""
        out = ffi.new("struct vi_vsp_stats *")
        lib.vi_vsp_get_stats(ch.vsp, out)
        return out

    # ---- running

    def signal(self, flag: int, cpu: int = 0) -> int:
        """Raise an event flag of the VMBus SINT; 1 if it was clear."""
        return int(lib.vi_synic_signal(self.m, cpu, VMBUS_SINT, flag))

    def run(self, cpu: int = 0) -> int:
        """Take one vector."""
        return int(lib.vi_vcpu_run(self.m, cpu))

    def settle(self) -> int:
        """Run until idle."""
        return int(lib.vi_machine_settle(self.m))

    def flags(self, cpu: int = 0) -> list[int]:
        """Return the flags of the VMBus SINT that are set."""
        words = lib.vi_synic_flags(self.m, cpu, VMBUS_SINT)
        return [word * 64 + bit for word in range(32) for bit in range(64) if words[word] >> bit & 1]

    # ---- counters

    def cnt(self, irq: int, cpu: int | None = None) -> int:
        """Return the count of an IRQ on one CPU, or on all together."""
        at = [cpu] if cpu is not None else range(self.cpus)
        return sum(int(self.counters.irq[c * self.counters.irq_stride + irq]) for c in at)

    def poke(self, irq: int, cpu: int, value: int) -> None:
        """Set a counter."""
        self.counters.irq[cpu * self.counters.irq_stride + irq] = value

    def irqs_sum(self, cpu: int = 0) -> int:
        """Return what a CPU adds to the total of /proc/stat."""
        return int(self.counters.irqs_sum[cpu * lib.VI_IRQS_SUM_STRIDE])

    def hyp(self, cpu: int = 0) -> int:
        """Return the HYP row of a CPU."""
        return int(self.counters.arch[cpu * lib.VI_ARCH_STRIDE + lib.VI_ROW_HYP])

    def softirq(self, vector: int, cpu: int = 0) -> int:
        """Return one cell of /proc/softirqs."""
        return int(self.counters.softirq[cpu * lib.VI_SOFTIRQ_STRIDE + vector])

    def lost(self) -> dict[str, int]:
        """Return what went by uncounted, without the zeroes."""
        out = ffi.new("struct vi_lost *")
        lib.vi_machine_lost(self.m, out)
        names = ("unmapped", "flag_zero", "rescinded", "no_callback", "in_progress", "no_action")
        return {name: int(getattr(out, name)) for name in names if getattr(out, name)}

    def snapshot(self) -> dict[str, Any]:
        """Return every counter that both engines must agree on, without the zeroes."""
        c = self.counters
        counts: dict[str, Any] = {}
        for cpu in range(self.cpus):
            for irq in range(self.irqs):
                counts[f"irq {irq} cpu {cpu}"] = self.cnt(irq, cpu)
            counts[f"sum cpu {cpu}"] = self.irqs_sum(cpu)
            for row in range(lib.VI_ARCH_ROWS):
                counts[f"arch {row} cpu {cpu}"] = int(c.arch[cpu * lib.VI_ARCH_STRIDE + row])
            for vector in range(lib.VI_SOFTIRQS):
                counts[f"softirq {vector} cpu {cpu}"] = self.softirq(vector, cpu)
            counts[f"flags cpu {cpu}"] = self.flags(cpu)
        for irq in self.descs:
            desc = self.c(irq)
            counts[f"desc {irq}"] = (desc.state, desc.istate, desc.depth, desc.irq_count, desc.irqs_unhandled)
        for relid, ch in self.channels.items():
            stats = self.stats(ch)
            counts[f"channel {relid}"] = (
                *(int(stats.interrupts), int(stats.no_callback), int(stats.calls), int(ch.calls[0])),
                *(int(stats.packets), int(stats.bytes), int(stats.checksum), int(stats.sig_events)),
            )
            if ch.vsp is not None:
                sent = self.sent(ch)
                counts[f"host {relid}"] = (int(sent.packets), int(sent.signals), int(sent.edges), int(sent.full))
        counts["lost"] = self.lost()
        return {name: value for name, value in counts.items() if value}
