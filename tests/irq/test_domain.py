"""irq/domain: names, mappings, and how failures look (genirq.md 4.3)."""

from __future__ import annotations

import errno

import pytest

from tests.irq.rig import Rig
from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError
from vmbusirq.irq import NO_IRQ_CHIP, Flow, Fwnode, IrqDomainOps
from vmbusirq.irq.settings import IRQ_NOREQUEST


@pytest.mark.parametrize(
    ("fwnode", "name", "flags"),
    [
        (Fwnode.named("hv-vmbus"), "hv-vmbus", 2),
        (Fwnode.named_id("IO-APIC", 0), "IO-APIC-0", 2),
        (Fwnode.at(0xFEE00000), "irqchip@0x00000000fee00000", 0),
    ],
)
def test_domain_is_named_by_its_fwnode(fwnode, name, flags):
    """kernel/irq/irqdomain.c v6.10: named, named-id, and plain with an address; bit 1: the name was allocated."""
    domain = Rig().core.irq_domain_create_linear(fwnode, 16, IrqDomainOps())
    assert (name, flags, 16, 0) == (domain.name, domain.flags, domain.size, domain.mapcount)


def test_domains_without_a_name_are_numbered():
    """kernel/irq/irqdomain.c v6.10: unknown-N, N from 1; a fwnode that cannot name one is an error in the log."""
    core = Rig().core
    nameless = [core.irq_domain_create_linear(fwnode, 1, IrqDomainOps()).name for fwnode in (None, Fwnode.named(""))]
    assert ["unknown-1", "unknown-2"] == nameless
    assert ["irq: Invalid fwnode type for irqdomain"] == core.log.texts()


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_mapping_twice_gives_the_same_irq(engine):
    """Trap 30: the existing mapping comes back and ops.map is not called again."""
    rig = Rig(engine=engine)
    mapped = []
    ops = IrqDomainOps(map=lambda domain, irq, hwirq: mapped.append((domain.name, irq, hwirq)))
    domain = rig.core.irq_domain_create_linear(Fwnode.named("IO-APIC-0"), 24, ops)
    assert [24, 24, 25] == [rig.core.irq_create_mapping(domain, hwirq) for hwirq in (9, 9, 8)]
    assert [("IO-APIC-0", 24, 9), ("IO-APIC-0", 25, 8)] == mapped
    assert (2, 24, 0) == (domain.mapcount, rig.core.irq_find_mapping(domain, 9), rig.core.irq_find_mapping(domain, 1))


def test_numbers_follow_creation_order_on_x86():
    """genirq.md 4.2, sample check: IRQs from 24 carry relids 7 9 10 11 14 15 1 3 4 5 in the order of creation."""
    rig = Rig()
    relids = [7, 9, 10, 11, 14, 15, 1, 3, 4, 5]
    assert list(range(24, 34)) == [rig.irq(relid).irq for relid in relids]
    assert relids == [rig.core.irq_to_desc(irq).hwirq for irq in range(24, 34)]


def test_numbers_follow_relids_loosely_on_arm64():
    """Trap 32: the lowest free number >= hwirq mod nr_irqs (0 becomes 1), and from 1 only if that fails."""
    rig = Rig(nr_irqs=64, dynirq_base=0, nr_irqs_max=70)
    for irq in range(1, 6):
        rig.core.alloc_descs(irq)
    assert [7, 14, 8, 15, 6] == [rig.irq(relid).irq for relid in (7, 14, 71, 78, 64)]
    assert [63, 64] == [rig.irq(relid).irq for relid in (63, 127)]
    assert 65 == rig.core.nr_irqs
    for irq in range(64, 70):
        rig.core.descs.get(irq) or rig.core.alloc_descs(irq)
    assert 70 == rig.core.nr_irqs
    assert 9 == rig.irq(2 * 70 - 1).irq  # 69 and everything after it is taken


def test_mapping_fills_the_revmap_that_scans_use():
    """vi_domain_find: the data plane finds the IRQ of a relid exactly while it is mapped."""
    rig = Rig()
    assert 0 == lib.vi_domain_find(rig.machine, 7)
    desc = rig.irq(7)
    assert (24, desc) == (lib.vi_domain_find(rig.machine, 7), rig.core.irq_resolve_mapping(rig.domain, 7))
    assert (rig.domain, 7, 1) == (desc.domain, desc.hwirq, rig.domain.mapcount)
    rig.core.irq_dispose_mapping(desc.irq)
    assert (0, None, 0) == (
        lib.vi_domain_find(rig.machine, 7),
        rig.core.irq_resolve_mapping(rig.domain, 7),
        rig.domain.mapcount,
    )


@pytest.mark.parametrize(
    ("hwirq", "irq", "log"),
    [
        (0, 24, []),
        (2047, 24, []),
        (2048, 0, ["error: hwirq 0x800 is too large for hv-vmbus"]),
        (-1, 0, ["error: hwirq 0xffffffff is too large for hv-vmbus"]),
    ],
)
def test_hwirq_past_the_domain_gives_0(hwirq, irq, log):
    """Trap 30: failures are 0, never negative, and the descriptor is given back."""
    rig = Rig()
    assert irq == rig.core.irq_create_mapping(rig.domain, hwirq)
    assert log == rig.core.log.texts()
    assert ([24] if irq else []) == list(rig.core.descs)


@pytest.mark.parametrize(
    ("returned", "log"),
    [
        (-errno.EINVAL, ["irq: picky didn't like hwirq-0x7 to VIRQ24 mapping (rc=-22)"]),
        (IrqError(errno.ENOSPC, "full"), ["irq: picky didn't like hwirq-0x7 to VIRQ24 mapping (rc=-28)"]),
        (-errno.EPERM, []),
    ],
)
def test_map_that_refuses_gives_0(returned, log):
    """kernel/irq/irqdomain.c v6.10: the descriptor goes back, and the log says so unless it was EPERM."""
    rig = Rig()

    def refuse(domain, irq, hwirq):
        if isinstance(returned, int):
            return returned
        raise returned

    domain = rig.core.irq_domain_create_linear(Fwnode.named("picky"), 16, IrqDomainOps(map=refuse))
    assert 0 == rig.core.irq_create_mapping(domain, 7)
    assert log == rig.core.log.texts()
    assert ({}, 0) == (rig.core.descs, domain.mapcount)


def test_no_free_descriptor_gives_0():
    """Trap 30: allocation failure is 0, too."""
    rig = Rig(nr_irqs_max=25)
    assert [24, 0] == [rig.core.irq_create_mapping(rig.domain, hwirq) for hwirq in (1, 2)]


def test_no_domain_means_the_default_domain():
    """kernel/irq/irqdomain.c v6.10: without one, a warning and 0."""
    rig = Rig()
    assert 0 == rig.core.irq_create_mapping(None, 0xA)
    assert ["irq_create_mapping_affinity(, a) called with NULL domain"] == rig.core.log.texts()
    assert (0, None) == (rig.core.irq_find_mapping(None, 10), rig.core.irq_resolve_mapping(None, 10))
    rig.core.irq_set_default_host(rig.domain)
    irq = rig.core.irq_create_mapping(None, 10)
    assert (24, 24) == (irq, rig.core.irq_find_mapping(rig.domain, 10))


def test_fixed_numbers_can_be_mapped():
    """irq_domain_associate: boot code maps numbers that exist, once."""
    rig = Rig()
    domain = rig.core.irq_domain_create_linear(Fwnode.named_id("IO-APIC", 0), 24, IrqDomainOps())
    rig.core.alloc_descs(9)
    rig.core.irq_domain_associate(domain, 9, 9)
    assert (9, 9) == (rig.core.irq_find_mapping(domain, 9), rig.core.irq_to_desc(9).hwirq)
    rig.core.alloc_descs(10)
    for irq, hwirq in [(9, 1), (11, 1), (10, 24), (10, 9)]:
        with pytest.raises(IrqError) as caught:
            rig.core.irq_domain_associate(domain, irq, hwirq)
        assert errno.EINVAL == caught.value.errno


def test_mapping_clears_norequest():
    """kernel/irq/irqdomain.c v6.10: a mapped IRQ may be requested."""
    rig = Rig()
    rig.core.alloc_descs(9)
    rig.core.modify_status(9, set_=IRQ_NOREQUEST)
    rig.core.irq_domain_associate(rig.domain, 9, 9)
    assert 0 == rig.core.irq_to_desc(9).settings & IRQ_NOREQUEST


def test_dispose_order_and_result():
    """kernel/irq/irqdomain.c v6.10: chip and flow handler are gone when ops.unmap runs; then the number is free."""
    rig = Rig()
    seen = []

    def unmap(domain, irq):
        desc = rig.core.irq_to_desc(irq)
        seen.append((irq, desc.chip, desc.flow, bool(desc.settings & IRQ_NOREQUEST), desc.hwirq))

    ops = IrqDomainOps(map=rig.map, unmap=unmap)
    domain = rig.core.irq_domain_create_linear(Fwnode.named("x"), 16, ops)
    irq = rig.core.irq_create_mapping(domain, 5)
    rig.core.irq_dispose_mapping(irq)
    assert [(24, NO_IRQ_CHIP, Flow.BAD, True, 5)] == seen
    assert 24 == rig.core.irq_create_mapping(domain, 6)


def test_dispose_of_nothing_does_nothing():
    """kernel/irq/irqdomain.c v6.10: irq 0 and numbers without descriptor; a descriptor without domain is a warning."""
    core = Rig().core
    core.irq_dispose_mapping(0)
    core.irq_dispose_mapping(99)
    assert [] == core.log.texts()
    core.irq_dispose_mapping(core.alloc_descs())
    assert ["WARNING: irq 24: irq_dispose_mapping without a domain"] == core.log.texts()


def test_dispose_refuses_an_irq_with_a_handler():
    """Trap 31: free first. Nothing was changed by the attempt."""
    rig = Rig()
    desc = rig.requested()
    with pytest.raises(IrqError, match="irq 24: cannot be disposed: heartbeat still uses it; free_irq first") as caught:
        rig.core.irq_dispose_mapping(desc.irq)
    assert errno.EBUSY == caught.value.errno
    rig.signal(7, cpu=0)
    assert 1 == desc.tot_count


def test_a_domain_goes_when_it_is_empty():
    """kernel/irq/irqdomain.c v6.10: the caller has disposed all mappings; here that is checked."""
    rig = Rig()
    rig.core.irq_set_default_host(rig.domain)
    irq = rig.irq().irq
    with pytest.raises(IrqError, match="1 hwirqs are still mapped"):
        rig.core.irq_domain_remove(rig.domain)
    rig.core.irq_dispose_mapping(irq)
    rig.core.irq_domain_remove(rig.domain)
    assert ([], None) == (rig.core.domains, rig.core.default_domain)


@pytest.mark.parametrize(
    ("size", "demux", "expected"), [(0, False, errno.EINVAL), (2049, True, errno.EINVAL), (16, True, errno.EBUSY)]
)
def test_refused_domains(size, demux, expected):
    """A linear domain has slots; scans look into one domain of at most 2048."""
    with pytest.raises(IrqError) as caught:
        Rig().core.irq_domain_create_linear(Fwnode.named("second"), size, IrqDomainOps(), demux=demux)
    assert expected == caught.value.errno


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_domain_delivery(engine):
    """kernel/irq/irqdesc.c v6.10, generic_handle_domain_irq: lookup and handle; EINVAL when unmapped."""
    rig = Rig(engine=engine)
    desc = rig.requested(9)
    rig.core.generic_handle_domain_irq(rig.domain, 9, cpu=3)
    assert [0, 0, 0, 1] == desc.kstat_irqs()[:4]
    for domain_hwirq in (8, 2048):
        with pytest.raises(IrqError, match=f"hwirq {domain_hwirq} is not mapped") as caught:
            rig.core.generic_handle_domain_irq(rig.domain, domain_hwirq, cpu=3)
        assert errno.EINVAL == caught.value.errno
    with pytest.raises(IrqError) as caught:
        rig.core.generic_handle_domain_irq(rig.domain, 9, cpu=8)
    assert errno.EINVAL == caught.value.errno
