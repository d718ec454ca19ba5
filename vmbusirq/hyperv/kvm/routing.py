"""GSIs and the SINTs behind them (KVM_SET_GSI_ROUTING; ``arch/x86/kvm/hyperv.c``, ``virt/kvm/irqchip.c``, v6.16).

Two maps, and they may disagree. The table says where a raised GSI goes and is replaced as a whole. The record, one
GSI per VP and SINT, says whose acknowledge an EOI or EOM is. It is only ever written over: a route that is gone
leaves its GSI there, and a route to a SynIC that is not active when the table is set leaves none.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from vmbusirq.errors import IrqError
from vmbusirq.hyperv.kvm.uapi import GSI_MAX, ROUTING_HV_SINT, SintRoute
from vmbusirq.limits import SINTS

__all__ = ["NO_GSI", "GsiRouting", "SintTarget"]

NO_GSI: Final = -1
"""The record of a SINT that no table has named yet."""
_U32_END: Final = 1 << 32


class SintTarget(Protocol):
    """One vCPU as the routing knows it."""

    @property
    def synic_active(self) -> bool:
        """KVM_ENABLE_CAP was called."""

    @property
    def sint_to_gsi(self) -> list[int]:
        """The record, by SINT."""

    def raise_sint(self, sint: int) -> int:
        """Request the SINT's vector; how many APICs took it, or a negative errno."""


class GsiRouting:
    """The routing table of one VM.

    Args:
        vcpus: by VP index.
    """

    def __init__(self, vcpus: Sequence[SintTarget]) -> None:
        self._vcpus = vcpus
        self._routes: dict[int, SintRoute] = {}

    @property
    def routes(self) -> Mapping[int, SintRoute]:
        """The table, by GSI."""
        return self._routes

    def replace(self, routes: Iterable[SintRoute], flags: int = 0) -> None:
        """Set a new table and write the record; the old table stays if the new one is refused.

        VPs and SINTs are not looked at: raising the GSI of one that does not exist fails.

        Raises:
            IrqError: EINVAL for flags, more than :data:`GSI_MAX` entries, a GSI from there on, a GSI named twice, an
                entry of another type or with flags, or a number that is no u32.
        """
        entries = list(routes)
        if flags or len(entries) > GSI_MAX:
            raise IrqError(
                errno.EINVAL,
                f"kvm: cannot set {len(entries)} routes with flags {flags:#x}: at most {GSI_MAX}, no flags (EINVAL)",
            )
        table: dict[int, SintRoute] = {}
        for route in entries:
            _check(route, table)
            table[route.gsi] = route
        self._routes = table
        for gsi in sorted(table):  # the kernel walks the GSIs upwards: of two for one SINT the higher one remains
            self._record(table[gsi])

    def set_irq(self, gsi: int, level: int) -> int:
        """Raise (level 1) or lower (level 0) a GSI.

        Returns:
            How many APICs took the vector; a negative errno: -EINVAL, no such VP, SynIC not active or no such SINT;
            -ENOENT, the SINT is masked; -1, level 0, which means nothing to a SINT, or a GSI without a route.
        """
        route = self._routes.get(gsi)
        if route is None or not level:
            return -1
        target = self._target(route)
        return -errno.EINVAL if target is None else target.raise_sint(route.sint)

    def _record(self, route: SintRoute) -> None:
        target = self._target(route)
        if target is not None and route.sint < SINTS:
            target.sint_to_gsi[route.sint] = route.gsi

    def _target(self, route: SintRoute) -> SintTarget | None:
        target = self._vcpus[route.vcpu] if route.vcpu < len(self._vcpus) else None
        return target if target is not None and target.synic_active else None


def _check(route: SintRoute, table: Mapping[int, SintRoute]) -> None:
    what = f"kvm: cannot route gsi {route.gsi} to sint {route.sint} of vp {route.vcpu}"
    if not 0 <= route.gsi < GSI_MAX:
        raise IrqError(errno.EINVAL, f"{what}: GSIs are 0 to {GSI_MAX - 1} (EINVAL)")
    if route.gsi in table:
        raise IrqError(errno.EINVAL, f"{what}: the table has that gsi already (EINVAL); a SINT needs one of its own")
    if route.type != ROUTING_HV_SINT or route.flags:
        raise IrqError(
            errno.EINVAL, f"{what}: type {route.type}, flags {route.flags:#x}; only type {ROUTING_HV_SINT}, 0 (EINVAL)"
        )
    if not (0 <= route.vcpu < _U32_END and 0 <= route.sint < _U32_END):
        raise IrqError(errno.EINVAL, f"{what}: both are 32 bits without sign (EINVAL)")
