"""irq domains: hardware interrupt numbers to Linux IRQs, linear ones (kernel/irq/irqdomain.c, v6.10)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from vmbusirq._ffi import lib
from vmbusirq.errors import IrqError, check
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.irq.percpu import PercpuLayer
from vmbusirq.irq.settings import IRQ_NOREQUEST, Flow
from vmbusirq.steps import Steps, run

__all__ = ["DomainLayer", "Fwnode", "FwnodeKind", "IrqDomain", "IrqDomainOps"]

IRQ_DOMAIN_NAME_ALLOCATED: Final = 0x2
DEMUX_SIZE_MAX: Final = int(lib.VI_DOMAIN_SIZE)


class FwnodeKind(Enum):
    """Where a firmware node's name comes from."""

    REAL = "real"  # an address; a static name
    NAMED = "named"
    NAMED_ID = "named-id"


@dataclass(frozen=True, slots=True, eq=False)
class Fwnode:
    """A firmware node whose only use is to name a domain (struct irqchip_fwid)."""

    name: str
    kind: FwnodeKind = FwnodeKind.NAMED

    @classmethod
    def named(cls, name: str) -> Fwnode:
        """Return a node with this very name (irq_domain_alloc_named_fwnode)."""
        return cls(name)

    @classmethod
    def named_id(cls, name: str, number: int) -> Fwnode:
        """Return a node called ``name-number`` (irq_domain_alloc_named_id_fwnode)."""
        return cls(f"{name}-{number}", FwnodeKind.NAMED_ID)

    @classmethod
    def at(cls, address: int) -> Fwnode:
        """Return a node called after a physical address (irq_domain_alloc_fwnode)."""
        return cls(f"irqchip@{address:#018x}", FwnodeKind.REAL)


@dataclass(frozen=True, slots=True)
class IrqDomainOps:
    """What a domain's owner does (struct irq_domain_ops); each may raise IrqError.

    Attributes:
        map: (domain, irq, hwirq) sets chip, flow handler and data of a new IRQ; may also return a negative errno.
        unmap: (domain, irq) undoes it.
        activate, deactivate: (domain, irq) around the time that an IRQ has actions.
    """

    map: Callable[[IrqDomain, int, int], object] | None = None
    unmap: Callable[[IrqDomain, int], object] | None = None
    activate: Callable[[IrqDomain, int], object] | None = None
    deactivate: Callable[[IrqDomain, int], object] | None = None


class IrqDomain:
    """A linear domain (struct irq_domain).

    Attributes:
        name: shown in debugfs.
        size: slots of the reverse map; hwirqs are 0 to size - 1.
        host_data: whatever its owner wants to find again.
        mapcount: mapped hwirqs.
        flags: enum irq_domain_flags bits.
        demux: this domain's reverse map is the one that the data plane's scans look hwirqs up in.
        revmap: hwirq to descriptor.
    """

    __slots__ = ("core", "demux", "flags", "host_data", "name", "ops", "revmap", "size")

    def __init__(
        self, core: DomainLayer, name: str, flags: int, size: int, ops: IrqDomainOps, host_data: Any, demux: bool
    ) -> None:
        self.core = core
        self.name = name
        self.flags = flags
        self.size = size
        self.ops = ops
        self.host_data = host_data
        self.demux = demux
        self.revmap: dict[int, IrqDesc] = {}

    def __repr__(self) -> str:
        return f"<IrqDomain {self.name} size {self.size} mapped {self.mapcount}>"

    @property
    def mapcount(self) -> int:
        """How many hwirqs are mapped."""
        return len(self.revmap)


class DomainLayer(PercpuLayer):
    """Domains and the mappings in them.

    Attributes:
        domains: all domains, newest last.
        default_domain: what a mapping without a domain goes to, None for none.
    """

    def __init__(self, machine: Any, **manage: Any) -> None:
        super().__init__(machine, **manage)
        self.domains: list[IrqDomain] = []
        self.default_domain: IrqDomain | None = None
        self._unknown_domains = 0

    def irq_domain_create_linear(
        self, fwnode: Fwnode | None, size: int, ops: IrqDomainOps, host_data: Any = None, *, demux: bool = False
    ) -> IrqDomain:
        """Make a linear domain. A missing or empty name becomes ``unknown-N``, N from 1.

        Raises:
            IrqError(EINVAL): no slots, or for ``demux`` more than 2048.
            IrqError(EBUSY): a second ``demux`` domain.
        """
        self.check_owner()
        name = fwnode.name if fwnode is not None else ""
        flags = IRQ_DOMAIN_NAME_ALLOCATED
        if size < 1:
            raise IrqError(errno.EINVAL, f"irq domain {name or '(no name)'}: a linear domain of {size} slots")
        if demux and size > DEMUX_SIZE_MAX:
            raise IrqError(errno.EINVAL, f"irq domain {name}: {size} slots; the data plane scans {DEMUX_SIZE_MAX}")
        if demux and any(domain.demux for domain in self.domains):
            raise IrqError(errno.EBUSY, f"irq domain {name}: another domain is demultiplexed already")
        if not name:
            if fwnode is not None:
                self.log.err("irq: Invalid fwnode type for irqdomain")
            self._unknown_domains += 1
            name = f"unknown-{self._unknown_domains}"
        elif fwnode is not None and fwnode.kind is FwnodeKind.REAL:
            flags = 0
        domain = IrqDomain(self, name, flags, size, ops, host_data, demux)
        self.domains.append(domain)
        return domain

    def irq_set_default_host(self, domain: IrqDomain | None) -> None:
        """Set the domain of mappings that name none."""
        self.check_owner()
        self.default_domain = domain

    def irq_domain_remove(self, domain: IrqDomain) -> None:
        """Take a domain away. Raises IrqError(EBUSY): hwirqs are still mapped."""
        self.check_owner()
        if domain.revmap:
            raise IrqError(
                errno.EBUSY, f"irq domain {domain.name}: {domain.mapcount} hwirqs are still mapped; dispose them first"
            )
        self.domains.remove(domain)
        if self.default_domain is domain:
            self.default_domain = None

    def irq_create_mapping(
        self, domain: IrqDomain | None, hwirq: int, *, affinity: int | None = None, managed: bool = False
    ) -> int:
        """Return the IRQ of ``hwirq``, allocated and mapped if it has none; 0 when that fails, and the log says why.

        See: kernel/irq/irqdomain.c, irq_create_mapping_affinity, v6.10.
        """
        self.check_owner()
        domain = domain or self.default_domain
        if domain is None:
            self.log.warn(f"irq_create_mapping_affinity(, {hwirq:x}) called with NULL domain")
            return 0
        irq = self.irq_find_mapping(domain, hwirq)
        if irq:
            return irq
        try:
            irq = self._alloc_for(hwirq, affinity, managed)
        except IrqError:
            return 0
        try:
            self._associate(domain, irq, hwirq)
        except IrqError:
            self.free_descs(irq)
            return 0
        return irq

    def _alloc_for(self, hwirq: int, affinity: int | None, managed: bool) -> int:
        """Allocate a number: where no architecture says otherwise, the lowest free one from the hwirq upwards."""
        hint = hwirq % self.nr_irqs or 1
        try:
            return self.alloc_descs(from_=hint, affinity=affinity, managed=managed)
        except IrqError:
            if hint == 1:
                raise
            return self.alloc_descs(from_=1, affinity=affinity, managed=managed)

    def irq_domain_associate(self, domain: IrqDomain, irq: int, hwirq: int) -> None:
        """Map ``hwirq`` to an IRQ that is allocated already, as boot code does for fixed numbers.

        Raises:
            IrqError(EINVAL): hwirq past the domain, no such IRQ, or one that has a domain.
            IrqError: what ops.map raises.
        """
        self.check_owner()
        self._associate(domain, irq, hwirq)

    def _associate(self, domain: IrqDomain, irq: int, hwirq: int) -> None:
        if not 0 <= hwirq < domain.size:
            text = f"error: hwirq {hwirq & 0xFFFF_FFFF:#x} is too large for {domain.name}"
            self.log.warn(text)
            raise IrqError(errno.EINVAL, f"{text}; hwirqs are 0-{domain.size - 1}")
        desc = self.descs.get(irq)
        if desc is None:
            self.log.warn(f"error: virq{irq} is not allocated")
            raise IrqError(errno.EINVAL, f"irq {irq}: is not allocated and cannot be mapped")
        if desc.domain is not None:
            self.log.warn(f"error: virq{irq} is already associated")
            raise IrqError(errno.EINVAL, f"irq {irq}: is mapped by {desc.domain.name} already")
        if hwirq in domain.revmap:
            other = domain.revmap[hwirq].irq
            raise IrqError(errno.EINVAL, f"irq {irq}: hwirq {hwirq} of {domain.name} is irq {other} already")
        desc.domain = domain
        desc.c.hwirq = hwirq
        try:
            if domain.ops.map is not None:
                result = domain.ops.map(domain, irq, hwirq)
                if isinstance(result, int) and result:
                    raise IrqError(abs(result), f"irq {irq}: {domain.name} does not map hwirq {hwirq}")
            if domain.demux:
                check(lib.vi_domain_map(self.machine, hwirq, irq), f"irq {irq}: hwirq {hwirq} cannot be bound")
        except IrqError as error:
            desc.domain = None
            desc.c.hwirq = 0
            if error.errno != errno.EPERM:
                self.log.info(
                    f"irq: {domain.name} didn't like hwirq-{hwirq:#x} to VIRQ{irq} mapping (rc={-(error.errno or 0)})"
                )
            raise
        domain.revmap[hwirq] = desc
        self.modify_status(irq, clear=IRQ_NOREQUEST)

    def irq_find_mapping(self, domain: IrqDomain | None, hwirq: int) -> int:
        """Return the IRQ of ``hwirq``, 0 when it is not mapped."""
        desc = self.irq_resolve_mapping(domain, hwirq)
        return 0 if desc is None else desc.irq

    def irq_resolve_mapping(self, domain: IrqDomain | None, hwirq: int) -> IrqDesc | None:
        """Return the descriptor of ``hwirq``, None when it is not mapped."""
        domain = domain or self.default_domain
        return None if domain is None else domain.revmap.get(hwirq)

    def irq_dispose_mapping(self, irq: int) -> None:
        """Unmap an IRQ and free its descriptor; nothing happens for irq 0 and for one that does not exist.

        Raises:
            IrqError(EBUSY): it has an action; the kernel would leave that on a dying descriptor.
            IrqError(EDEADLK): called from an interrupt handler.
        """
        run(self.irq_dispose_mapping_steps(irq))

    def irq_dispose_mapping_steps(self, irq: int) -> Steps[None]:
        """Yield the steps of irq_dispose_mapping()."""
        self.may_wait(f"irq {irq}: irq_dispose_mapping")
        desc = self.descs.get(irq)
        if irq == 0 or desc is None:
            return
        domain = desc.domain
        if domain is None:
            self.log.warn(f"WARNING: irq {irq}: irq_dispose_mapping without a domain")
            return
        if desc.actions:
            names = ", ".join(str(action.name) for action in desc.actions)
            raise IrqError(errno.EBUSY, f"irq {irq}: cannot be disposed: {names} still uses it; free_irq first")
        self.modify_status(irq, set_=IRQ_NOREQUEST)
        self.set_chip_and_handler(irq, None, Flow.BAD)
        yield from self.synchronize_irq_steps(irq)
        if domain.ops.unmap is not None:
            domain.ops.unmap(domain, irq)
        hwirq = desc.hwirq
        if domain.demux:
            check(lib.vi_domain_unmap(self.machine, hwirq), f"irq {irq}: hwirq {hwirq} cannot be unbound")
        desc.domain = None
        desc.c.hwirq = 0
        del domain.revmap[hwirq]
        yield from self.free_descs_steps(irq)
