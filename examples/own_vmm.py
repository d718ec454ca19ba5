"""Check a VMM against KVM's SynIC: a guest of a page, a VMM of a page, and real eventfds between them.

The guest programs its SynIC, posts a message, signals a connection and takes interrupts; the VMM activates the SynIC,
answers exits, raises a SINT by an eventfd and hears of the guest's acknowledges by another. A VMM of your own does the
same with `/dev/kvm`; wherever it gets another answer than this one, one of the two is wrong.

    $ .venv/bin/python examples/own_vmm.py
    exit SYNIC: SCONTROL is written: control 0x1, flags 0x0, messages 0x0
    exit SYNIC: SIEFP is written: control 0x1, flags 0x6001, messages 0x0
    exit SYNIC: SIMP is written: control 0x1, flags 0x6001, messages 0x7001
    SINT 4 is 0x51: no exit
    exit HCALL: HvPostMessage, input at 0x3000: b'hello, host'; the VMM answers 0
    guest: HvPostMessage gives 0x0, HvSignalEvent 0x0, of an unknown connection 0x12
    signalled without an exit: 1
    irqfd: 1 GSI raised, vector 0x51 accepted; acknowledged before EOI 0 times, after EOI 1, after EOM 1
    masked: 1 GSI raised, it gives ENOENT, vector accepted: None
"""

from __future__ import annotations

import errno
import os

from vmbusirq.core import Core
from vmbusirq.hyperv.hypercall import HVCALL_POST_MESSAGE, HVCALL_SIGNAL_EVENT, HvStatus
from vmbusirq.hyperv.kvm import RESAMPLE, Guest, HcallExit, Hypercall, KvmCap, KvmVm, SintRoute, Wrmsr
from vmbusirq.hyperv.memory import GuestMemory
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.registers import BY_MSR, SINT_RESET, Msr

SINT, VECTOR, GSI = 4, 0x51, 30
INPUT, FLAGS, MESSAGES = 0x3000, 0x6000, 0x7000
MESSAGE_CONNECTION, EVENT_CONNECTION = 1, 5
FAST = 1 << 16


def guest(results: list[int]) -> Guest:
    """Switch the SynIC on, post what lies at INPUT, signal two connections."""
    yield Wrmsr(Msr.SCONTROL, 1)
    yield Wrmsr(Msr.SIEFP, FLAGS | 1)
    yield Wrmsr(Msr.SIMP, MESSAGES | 1)
    yield Wrmsr(Msr.SINT0 + SINT, VECTOR)
    print(f"SINT {SINT} is {VECTOR:#x}: no exit")
    results.append((yield Hypercall(HVCALL_POST_MESSAGE, INPUT)))
    results.append((yield Hypercall(HVCALL_SIGNAL_EVENT | FAST, EVENT_CONNECTION)))
    results.append((yield Hypercall(HVCALL_SIGNAL_EVENT | FAST, EVENT_CONNECTION + 1)))


def vmm(vm: KvmVm) -> None:
    """Run vCPU 0 and answer its exits, as the loop around KVM_RUN does."""
    vcpu = vm.vcpus[0]
    while (exit_ := vcpu.run()) is not None:
        if not isinstance(exit_, HcallExit):
            pages = f"control {exit_.control:#x}, flags {exit_.evt_page:#x}, messages {exit_.msg_page:#x}"
            print(f"exit SYNIC: {BY_MSR[exit_.msr].name} is written: {pages}")
        elif exit_.input & 0xFFFF == HVCALL_POST_MESSAGE:
            data = vm.partition.memory.read(exit_.params[0], 256)
            print(f"exit HCALL: HvPostMessage, input at {exit_.params[0]:#x}: {data[16 : 16 + data[12]]!r}", end="; ")
            print(f"the VMM answers {HvStatus.SUCCESS}")
            vcpu.store_result(HvStatus.SUCCESS)
        else:
            vcpu.store_result(HvStatus.INVALID_CONNECTION_ID)


def main() -> None:
    """Boot the guest, then raise its SINT through an irqfd with a resampler."""
    results: list[int] = []
    memory = GuestMemory(1 << 20)
    trigger, resample, signalled = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
    text = b"hello, host"
    memory.write(INPUT, b"".join(word.to_bytes(4, "little") for word in (MESSAGE_CONNECTION, 0, 1, len(text))) + text)

    with KvmVm(Partition(Core(nr_cpus=1), memory, profile="kvm")) as vm:
        vcpu = vm.vcpus[0]
        vcpu.enable_cap(KvmCap.HYPERV_SYNIC2)
        vm.set_gsi_routing([SintRoute(GSI, vcpu=0, sint=SINT)])  # after activation, or nobody hears of acknowledges
        vm.irqfd(trigger, GSI, RESAMPLE, resample)
        vm.hyperv_eventfd(EVENT_CONNECTION, signalled)
        vcpu.load(guest(results))
        vmm(vm)
        post, signal, unknown = results
        print(f"guest: HvPostMessage gives {post:#x}, HvSignalEvent {signal:#x}, of an unknown connection {unknown:#x}")
        print(f"signalled without an exit: {count(signalled)}")

        os.eventfd_write(trigger, 1)  # any thread or process may: it is all that a device needs
        raised, apic = vm.pump(), vcpu.vcpu.apic
        print(f"irqfd: {raised} GSI raised, vector {apic.accept():#x} accepted; acknowledged", end=" ")
        print(f"before EOI {count(resample)} times", end=", ")
        apic.eoi()
        print(f"after EOI {count(resample)}", end=", ")
        vcpu.vcpu.wrmsr(Msr.EOM, 0)
        print(f"after EOM {count(resample)}")

        vcpu.vcpu.wrmsr(Msr.SINT0 + SINT, SINT_RESET | VECTOR)
        os.eventfd_write(trigger, 1)
        raised, (irqfd,) = vm.pump(), vm.irqfds.items
        what = errno.errorcode[-(irqfd.last_result or 0)]
        print(f"masked: {raised} GSI raised, it gives {what}, vector accepted: {apic.accept()}")
    for fd in (trigger, resample, signalled):
        os.close(fd)
    memory.close()


def count(fd: int) -> int:
    """Return what an eventfd has counted."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


if __name__ == "__main__":
    main()
