"""Build an interrupt controller of one's own on the genirq core: a chip, a domain, Python handlers.

No bus and no device is involved. Lines are raised as event flags of CPU 0, as a host would, and a scan delivers
them. An ordinary handler is called once per interrupt and already counted, as in the kernel; a batched one gets all
lines of one scan that have it, at the price of one call, and is counted afterwards. Both return an irqreturn per
interrupt.

    $ .venv/bin/python examples/own_domain.py
    irq 24 "button" on cpu 0, counted 1
    4 lines of "queue" in one call: hwirqs 8 9 10 11
    counts on cpu 0: 1 1 1 1 1, spurious: 1 of irq 28
    irq 24 disabled, raised 3 times, enabled: counted 2
"""

from __future__ import annotations

from vmbusirq.core import Core
from vmbusirq.hyperv.partition import Partition
from vmbusirq.irq import Flow, Fwnode, IrqBatch, IrqChip, IrqCore, IrqDomain, IrqDomainOps, nop
from vmbusirq.irq.settings import IRQ_HANDLED, IRQ_NONE
from vmbusirq.vmbus.synic import GuestSynic

BUTTON = 5
QUEUES = (8, 9, 10, 11)


def main() -> None:
    """Map five lines, request them in both ways, raise them."""
    core = Core(nr_cpus=2)
    irq = IrqCore(core.handle, nr_cpus=2, nr_irqs=64, dynirq_base=24)
    chip = IrqChip("demo", irq_mask=nop, irq_unmask=nop)

    def set_up(domain: IrqDomain, number: int, hwirq: int) -> None:
        irq.set_chip_and_handler(number, chip, Flow.SIMPLE)

    domain = irq.irq_domain_create_linear(Fwnode.named("demo"), 64, IrqDomainOps(map=set_up), demux=True)

    def on_button(number: int, dev_id: object) -> int:
        print(f'irq {number} "{dev_id}" on cpu 0, counted {irq.irq_to_desc(number).kstat_irqs_cpu(0)}')
        return IRQ_HANDLED

    def on_queues(batch: IrqBatch) -> list[int]:
        print(f'{len(batch)} lines of "queue" in one call: hwirqs', *batch.hwirqs)
        return [IRQ_NONE if hwirq == QUEUES[-1] else IRQ_HANDLED for hwirq in batch.hwirqs]

    button = irq.irq_create_mapping(domain, BUTTON)
    irq.request_irq(button, on_button, 0, "button", "button")
    queues = [irq.irq_create_mapping(domain, hwirq) for hwirq in QUEUES]
    for queue in queues:
        irq.request_irq(queue, on_queues, 0, "queue", queue, batched=True)

    partition = Partition(core)
    GuestSynic(partition).enable(0)
    synic = partition.synic
    for hwirq in (BUTTON, *QUEUES):
        synic.signal(cpu=0, flag=hwirq)
    core.settle()
    irq.reraise()  # what a handler raised, if one did
    spurious = [number for number in queues if irq.irq_to_desc(number).irqs_unhandled]
    print("counts on cpu 0:", *irq.counts[button : queues[-1] + 1, 0], end=", ")
    print("spurious:", len(spurious), "of irq", *spurious)

    irq.free_irq(button, "button")
    irq.request_irq(button, lambda number, dev_id: IRQ_HANDLED, 0, "button", "button")
    irq.disable_irq(button)
    for _ in range(3):
        synic.signal(cpu=0, flag=BUTTON)
        core.settle()
    irq.enable_irq(button)
    core.settle()
    print(f"irq {button} disabled, raised 3 times, enabled: counted {irq.counts[button, 0]}")


if __name__ == "__main__":
    main()
