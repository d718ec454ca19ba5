"""What a signal and a message cost on their way through the SynIC, and which step costs how much.

Two ways lead there. A channel's own signals take C's from end to end (csrc/hyperv/synic.c, connection.c); a guest that
makes a hypercall in register form, and whatever posts a message, goes through Python. C is timed by loops of its own,
Python by calls in a row; both do in each round all that must be undone again, and check it. Costs of steps are
differences between medians of one interleaved run, so a small one may come out negative.

Everything is user space on this CPU. No figure is one of Hyper-V or KVM: nothing here enters or leaves a guest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import MachineBug
from vmbusirq.hyperv.hypercall import HVCALL_POST_MESSAGE, HVCALL_SIGNAL_EVENT, HvStatus
from vmbusirq.hyperv.kvm import KvmVm
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.registers import Msr
from vmbusirq.lab.bench import ROUNDS, BenchRow, Finding, Progress, Timing, compare, interleave, pinned
from vmbusirq.limits import SINT_VMBUS

__all__ = ["SynicResult", "bench_synic"]

Sample = Callable[[], float]
Table = Mapping[str, Timing]

C_COUNT: Final = 2000
PYTHON_COUNT: Final = 30
PAYLOAD: Final[int] = lib.VI_SYNIC_BENCH_PAYLOAD
SINT_IRR: Final = 4
SINT_POLLING: Final = 5
VECTOR: Final = 0x51
SIEF, SIM, INPUT = 0x6000, 0x7000, 0x3000
EVENT_CONNECTION, MESSAGE_CONNECTION = 0x2005, 1
_FAST_SIGNAL: Final = HVCALL_SIGNAL_EVENT | 1 << 16
_NO_CALL: Final = 0x0FFF
_TO_HOST: Final = "to the host"
_TO_GUEST: Final = "to the guest"

_LOOPS: Final[Mapping[str, tuple[int, int]]] = {
    "floor": (lib.VI_SYNIC_BENCH_FLOOR, SINT_VMBUS),
    "C connection": (lib.VI_SYNIC_BENCH_CONNECTION, SINT_VMBUS),
    "C flag": (lib.VI_SYNIC_BENCH_FLAG, SINT_VMBUS),
    "C flag, polling": (lib.VI_SYNIC_BENCH_FLAG, SINT_POLLING),
    "C flag, irr": (lib.VI_SYNIC_BENCH_FLAG, SINT_IRR),
    "C set": (lib.VI_SYNIC_BENCH_SET, SINT_VMBUS),
    "C take": (lib.VI_SYNIC_BENCH_TAKE, SINT_VMBUS),
    "C message": (lib.VI_SYNIC_BENCH_MESSAGE, SINT_VMBUS),
    "C message, polling": (lib.VI_SYNIC_BENCH_MESSAGE, SINT_POLLING),
    "C queued": (lib.VI_SYNIC_BENCH_QUEUED, SINT_VMBUS),
}
_EOI_LOOPS: Final = {"C take, EOI": _LOOPS["C take"]}
"""The same with a SINT2 that is not auto-EOI."""

_SPLIT: Final = (
    # what, of which way, contender, without what
    ("hypercall decode and refusal", "signal to the host, Python", "decode", None),
    ("port lookup and signal, called from Python", "signal to the host, Python", "lookup", None),
    ("the rest: privilege, input", "signal to the host, Python", "hypercall", "decode + lookup"),
    ("all of it, with the eventfd of a connection", "signal to the host, KVM", "eventfd", None),
    ("port lookup and signal", "signal to the host, C", "C connection", None),
    ("flag set, no interrupt, and cleared again", "signal to the guest, C", "C flag, polling", None),
    ("vector request, callback vector's doorbell", "signal to the guest, C", "C flag", "C flag, polling"),
    ("vector request, IRR and notice", "signal to the guest, C", "C flag, irr", "C flag, polling"),
    ("a flag that is set already, no interrupt", "signal to the guest, C", "C set", None),
    ("taking the vector, scan of all flags", "signal to the guest, C", "C take", "C flag"),
    ("the guest's EOI, where it is not auto-EOI", "signal to the guest, C", "C take, EOI", "C take"),
    ("hypercall decode and refusal", "message to the host, Python", "decode", None),
    ("input read from guest memory", "message to the host, Python", "input", None),
    ("port lookup, buffer, and out of it", "message to the host, Python", "post", None),
    ("the rest: privilege, payload", "message to the host, Python", "post hypercall", "decode + input + post"),
    ("deposit without a queue, and taken", "message to the guest, Python", "deposit", None),
    ("the queue", "message to the guest, Python", "queue", "deposit"),
    ("queueing behind a busy slot, EOM", "message to the guest, Python", "queued", "queue"),
    ("vector accepted, EOI", "message to the guest, Python", "take", None),
    ("deposit, no interrupt, slot freed", "message to the guest, C", "C message, polling", None),
    ("vector request", "message to the guest, C", "C message", "C message, polling"),
    ("busy slot found, EOM", "message to the guest, C", "C queued", "C message"),
)

_RATES: Final = (
    ("signals", "C", _TO_HOST, "C connection"),
    ("signals", "hypercall in Python", _TO_HOST, "hypercall"),
    ("signals", "C, and taken", _TO_GUEST, "C take"),
    ("signals", "Synic.signal in Python", _TO_GUEST, "signal"),
    ("messages", "hypercall in Python", _TO_HOST, "post hypercall"),
    ("messages", "C, and taken", _TO_GUEST, "C message"),
    ("messages", "queue in Python, and taken", _TO_GUEST, "queue"),
)


@dataclass(frozen=True, slots=True)
class SynicResult:
    """Rows against bars; rates and costs of steps as findings; what each contender took."""

    rows: tuple[BenchRow, ...]
    findings: tuple[Finding, ...]
    timings: Table

    def to_json(self) -> dict[str, object]:
        """Return all three as JSON objects; timings are nanoseconds by contender."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "findings": [item.to_json() for item in self.findings],
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
        }


def bench_synic(*, rounds: int = ROUNDS, progress: Progress | None = None) -> SynicResult:
    """Measure signals and messages in both directions, in C and through Python.

    Args:
        rounds: samples of each contender.
        progress: called before the table and after it.
    Returns:
        Rows in nanoseconds per signal or message; findings in signals/s, messages/s and nanoseconds.
    Raises:
        MachineBug: a signal or message did not arrive.
    """
    if progress is not None:
        progress(0, 1, "signals and messages")
    with pinned(), _contenders() as contenders:
        table = interleave(contenders, rounds)
    if progress is not None:
        progress(1, 1, "signals and messages")
    return SynicResult(tuple(_rows(table)), (*_rates(table), *_split(table)), table)


def _rows(table: Table) -> list[BenchRow]:
    def row(id_: str, workload: str, ours: str, peer: str, bar: float) -> BenchRow:
        return compare(id_, workload, (ours, table[ours]), (peer, table[peer]), bar)

    return [
        row("S1", "signal to the guest, against two locked instructions", "C flag", "floor", 3.0),
        row("S2", "signal to the host, against two locked instructions", "C connection", "floor", 1.0),
        row("S3", "signal taken and ended by an EOI, against auto-EOI", "C take, EOI", "C take", 1.15),
        row("S4", "message to the guest and read, against two locked instructions", "C message", "floor", 5.0),
    ]


def _rates(table: Table) -> Iterator[Finding]:
    for what, way, where, contender in _RATES:
        yield Finding(f"{what}, {way}", f"{what} {where}", 1e9 / table[contender].median, f"{what}/s")


def _split(table: Table) -> Iterator[Finding]:
    for name, way, contender, without in _SPLIT:
        cost = table[contender].median - sum(table[part].median for part in (without or "").split(" + ") if part)
        yield Finding(name, way, cost, "ns")


# ---- contenders


@contextmanager
def _contenders() -> Iterator[dict[str, Sample]]:
    with ExitStack() as stack:
        partition = _partition("tlfs", stack)
        contenders = {name: _loop(partition, *_LOOPS[name]) for name in _LOOPS}
        ended = _partition("tlfs", stack)
        ended.vcpus[0].wrmsr(Msr.SINT0 + SINT_VMBUS, lib.VI_VECTOR_CALLBACK)
        contenders |= {name: _loop(ended, *loop) for name, loop in _EOI_LOOPS.items()}
        contenders |= {name: _calls(call, name) for name, call in _to_host(partition).items()}
        contenders |= {name: _calls(call, name) for name, call in _to_guest(partition).items()}
        contenders["queued"] = _calls(_queued(partition), "queued", per_call=2)
        contenders["eventfd"] = _calls(_eventfd(stack), "eventfd")
        yield contenders


def _partition(profile: str, stack: ExitStack) -> Partition:
    memory = stack.enter_context(GuestMemory(1 << 20))
    partition = Partition(Core(nr_cpus=1), memory, profile=profile)
    vcpu = partition.vcpus[0]
    vcpu.activate_synic()
    registers = {
        Msr.SCONTROL: 1,
        Msr.SIEFP: SIEF | 1,
        Msr.SIMP: SIM | 1,
        Msr.SINT0 + SINT_VMBUS: lib.VI_VECTOR_CALLBACK | lib.VI_SINT_AUTO_EOI,
        Msr.SINT0 + SINT_IRR: VECTOR,
        Msr.SINT0 + SINT_POLLING: VECTOR | lib.VI_SINT_POLLING,
    }
    for msr, value in registers.items():
        vcpu.wrmsr(msr, value)
    partition.create_event_port(EVENT_CONNECTION)
    partition.connect(EVENT_CONNECTION, EVENT_CONNECTION)
    return partition


def _loop(partition: Partition, contender: int, sint: int) -> Sample:
    work = ffi.new("struct vi_synic_work *", (contender, sint, EVENT_CONNECTION, C_COUNT))
    ns = ffi.new("uint64_t *")

    def sample() -> float:
        result = lib.vi_synic_bench_run(partition.core.handle, work, ns)
        if result:
            raise MachineBug(f"synic benchmark, loop {contender}, sint {sint}: went astray (error {-result})")
        return float(ns[0]) / C_COUNT

    return sample


def _calls(call: Callable[[], bool], name: str, *, per_call: int = 1) -> Sample:
    def sample() -> float:
        call()  # not looked at: the contender before left its vectors requested, and takes the first EOI or accept
        good = 0
        begin = time.perf_counter_ns()
        for _ in range(PYTHON_COUNT):
            good += call()
        ns = time.perf_counter_ns() - begin
        if good != PYTHON_COUNT:
            raise MachineBug(f"synic benchmark, {name}: {PYTHON_COUNT - good} of {PYTHON_COUNT} went astray")
        return ns / (PYTHON_COUNT * per_call)

    return sample


def _to_host(partition: Partition) -> dict[str, Callable[[], bool]]:
    port = partition.create_message_port(MESSAGE_CONNECTION)
    partition.connect(MESSAGE_CONNECTION, MESSAGE_CONNECTION)
    payload = bytes([0xA5] * PAYLOAD)
    header = b"".join(word.to_bytes(4, "little") for word in (MESSAGE_CONNECTION, 0, 1, PAYLOAD))
    partition.memory.write(INPUT, header + payload)

    def post_hypercall() -> bool:
        return partition.hypercall(0, HVCALL_POST_MESSAGE, INPUT) == 0 and port.receive() == payload

    def post() -> bool:
        status = partition.hv_post_message(MESSAGE_CONNECTION, 1, payload)
        return status == HvStatus.SUCCESS and port.receive() == payload

    return {
        "decode": lambda: partition.hypercall(0, _NO_CALL, 0) == HvStatus.INVALID_HYPERCALL_CODE,
        "lookup": lambda: partition.hv_signal_event(EVENT_CONNECTION) == HvStatus.SUCCESS,
        "hypercall": lambda: partition.hypercall(0, _FAST_SIGNAL, EVENT_CONNECTION) == 0,
        "input": lambda: len(partition.memory.read(INPUT, 256)) == 256,
        "post": post,
        "post hypercall": post_hypercall,
    }


def _to_guest(partition: Partition) -> dict[str, Callable[[], bool]]:
    synic, messages, apic = partition.synic, partition.messages, partition.vcpus[0].apic
    payload = bytes([0xA5] * PAYLOAD)
    word = lib.vi_synic_flags(partition.core.handle, 0, SINT_VMBUS)

    def signal() -> bool:
        signalled = synic.signal(0, 1)
        word[0] = 0
        return signalled

    def deposit() -> bool:
        deposited = synic.deposit(0, SINT_IRR, 1, 0, payload, 0) == 1
        return deposited and synic.take_message(0, SINT_IRR) == payload

    def queue() -> bool:
        status = messages.post(0, SINT_IRR, 1, payload)
        return status == HvStatus.SUCCESS and synic.take_message(0, SINT_IRR) == payload

    def take() -> bool:
        return apic.request(VECTOR) and apic.accept() == VECTOR and apic.eoi() == VECTOR

    return {"signal": signal, "deposit": deposit, "queue": queue, "take": take}


def _queued(partition: Partition) -> Callable[[], bool]:
    """Two messages: the second finds the slot busy, and comes when the guest has freed it and written EOM."""
    synic, messages = partition.synic, partition.messages
    first, second = bytes([1] * PAYLOAD), bytes([2] * PAYLOAD)

    def queued() -> bool:
        for payload in (first, second):
            messages.post(0, SINT_IRR, 1, payload)
        taken = synic.take_message(0, SINT_IRR)
        partition.triggers.take()
        return taken == first and synic.take_message(0, SINT_IRR) == second

    return queued


def _eventfd(stack: ExitStack) -> Callable[[], bool]:
    """HvSignalEvent of a connection that has an eventfd: no exit to user space, which is what KVM saves by it."""
    vm = stack.enter_context(KvmVm(_partition("kvm", stack)))
    fd = os.eventfd(0)
    stack.callback(os.close, fd)
    vm.hyperv_eventfd(EVENT_CONNECTION, fd)
    (vcpu,) = vm.vcpus
    return lambda: vm.hypercall(vcpu, _FAST_SIGNAL, EVENT_CONNECTION) == HvStatus.SUCCESS
