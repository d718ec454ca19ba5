"""The C machine as a Python object: its lifetime, its counters, its clock. Everything else hangs from one of these."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.limits import CPUS_MAX, IRQS_MAX

__all__ = ["ENGINES", "SIMD_LEVELS", "TICKS_PER_MS", "TICKS_PER_S", "TICKS_PER_US", "Core", "Lost"]

TICKS_PER_S: Final = 10_000_000  # the partition reference clock runs at 10 MHz
TICKS_PER_MS: Final = 10_000
TICKS_PER_US: Final = 10
TICKS_MAX: Final = 1 << 63
ENGINES: Final = {"fast": lib.VI_ENGINE_FAST, "linux": lib.VI_ENGINE_LINUX}
SIMD_LEVELS: Final = {
    "scalar": lib.VI_SIMD_SCALAR,
    "avx2": lib.VI_SIMD_AVX2,
    "avx512": lib.VI_SIMD_AVX512,
    "best": lib.VI_SIMD_BEST,
}
_ARCHES: Final = {"x86": lib.VI_ARCH_X86, "arm64": lib.VI_ARCH_ARM64}


@dataclass(frozen=True, slots=True)
class Lost:
    """Arrivals that were consumed without being counted on an IRQ, since the machine was made.

    Attributes:
        unmapped: flags of relids without an IRQ.
        flag_zero: flag 0, the doorbell of protocols before 2.4.
        rescinded: the channel was being taken away.
        no_callback: counted on the IRQ, but the channel was closed.
        in_progress: dropped by v6.10's simple flow while the IRQ ran elsewhere (linux engine only).
        no_action: came to a CPU that may not run the IRQ, which nobody has requested (redirection only).
    """

    unmapped: int
    flag_zero: int
    rescinded: int
    no_callback: int
    in_progress: int
    no_action: int = 0


class Core:
    """One C machine.

    Args:
        nr_cpus: possible CPUs, 1 to 2048.
        nr_irqs_max: descriptors it can ever have.
        arch: ``"x86"`` or ``"arm64"``.
        engine: ``"fast"`` or ``"linux"``.
        simd: widest vectors of the scanner: ``"best"``, ``"avx512"``, ``"avx2"``, ``"scalar"``.
        hyp_count: a value of ``enum vi_hyp_count``.
        channel_irqs: channels have Linux IRQs.
        shutdown_adds_depth: what the last free_irq does to depth (since 6.18).
        redirect: channel IRQs run on a CPU of their effective mask, whatever CPU their flag is on.
        seed: order in which the linux engine's objects lie in memory.

    Attributes:
        nr_cpus, nr_irqs_max, arch, engine, redirect: as given.
        before_end: called while the machine is still there: operations that never end undo their work in it. The
            garbage collector finalizes a generator and the machine that it works on in any order.
    Raises:
        IrqError: EINVAL for a number or name out of range, EOPNOTSUPP for vectors this CPU does not have, ENOMEM.
    """

    def __init__(
        self,
        nr_cpus: int,
        *,
        nr_irqs_max: int = 4096,
        arch: str = "x86",
        engine: str = "fast",
        simd: str = "best",
        hyp_count: int = lib.VI_HYP_MESSAGE,
        channel_irqs: bool = True,
        shutdown_adds_depth: bool = False,
        redirect: bool = False,
        seed: int = 0,
    ) -> None:
        if not isinstance(nr_cpus, int) or not 1 <= nr_cpus <= CPUS_MAX:
            raise IrqError(errno.EINVAL, f"machine: cannot have {nr_cpus!r} CPUs; 1 to {CPUS_MAX} (EINVAL)")
        if not 1 <= nr_irqs_max <= IRQS_MAX:
            raise IrqError(errno.EINVAL, f"machine: cannot have {nr_irqs_max} descriptors; 1 to {IRQS_MAX} (EINVAL)")
        if not lib.VI_HYP_ALWAYS <= hyp_count <= lib.VI_HYP_NEVER:
            raise IrqError(errno.EINVAL, f"machine: no enum vi_hyp_count {hyp_count} (EINVAL)")
        config = ffi.new(
            "struct vi_config *",
            {
                "nr_cpus": nr_cpus,
                "nr_irqs_max": nr_irqs_max,
                "engine": _choice("engine", engine, ENGINES),
                "simd": _choice("simd", simd, SIMD_LEVELS),
                "arch": _choice("arch", arch, _ARCHES),
                "hyp_count": hyp_count,
                "channel_irqs": channel_irqs,
                "shutdown_adds_depth": shutdown_adds_depth,
                "redirect": redirect,
                "seed": seed & 0xFFFF_FFFF_FFFF_FFFF,
            },
        )
        out = ffi.new("struct vi_machine **")
        check(lib.vi_machine_create(config, out), f"machine: cannot use simd {simd!r} on this CPU, or out of memory")
        self.before_end: Final[list[Callable[[], object]]] = []
        self.handle: Any = ffi.gc(out[0], _destroyer(self.before_end))
        self.nr_cpus: Final = nr_cpus
        self.nr_irqs_max: Final = nr_irqs_max
        self.arch: Final = arch
        self.engine: Final = engine
        self.redirect: Final = redirect
        self.counters: Any = ffi.new("struct vi_counters *")
        lib.vi_machine_counters(self.handle, self.counters)
        self._ticks = 0

    @property
    def now(self) -> int:
        """Virtual time in 100 ns ticks of the partition reference clock."""
        return self._ticks

    def set_time(self, ticks: int) -> None:
        """Advance virtual time to ``ticks``; it never runs backwards (EINVAL)."""
        if not isinstance(ticks, int) or not ticks < TICKS_MAX:
            raise IrqError(errno.EINVAL, f"clock: cannot be set to {ticks!r}: a whole number below 2**63 (EINVAL)")
        if ticks < self._ticks:
            raise IrqError(errno.EINVAL, f"clock: cannot go back from tick {self._ticks} to {ticks} (EINVAL)")
        lib.vi_machine_set_time(self.handle, ticks // TICKS_PER_MS)
        self._ticks = ticks

    def settle(self) -> int:
        """Run every CPU until nothing is deliverable; return how often a CPU had something to do."""
        what = "machine: cannot settle: a handler raises itself for ever, or a ring's writer is broken"
        return check(lib.vi_machine_settle(self.handle), what)

    def lost(self) -> Lost:
        """Return what was consumed without a count."""
        out = ffi.new("struct vi_lost *")
        lib.vi_machine_lost(self.handle, out)
        return Lost(out.unmapped, out.flag_zero, out.rescinded, out.no_callback, out.in_progress, out.no_action)

    def arch_row(self, cpu: int, row: int) -> int:
        """Return one architecture counter of one CPU, a value of ``enum vi_arch_row``."""
        return int(self.counters.arch[cpu * lib.VI_ARCH_STRIDE + row])

    def set_arch_row(self, cpu: int, row: int, value: int) -> None:
        """Preset one architecture counter: for rows that nothing models."""
        self.counters.arch[cpu * lib.VI_ARCH_STRIDE + row] = value


def _destroyer(before_end: list[Callable[[], object]]) -> Callable[[Any], None]:
    def destroy(machine: Any, end: Any = lib.vi_machine_destroy) -> None:
        for function in before_end:
            function()
        end(machine)

    return destroy


def _choice(what: str, name: str, choices: dict[str, int]) -> int:
    if name not in choices:
        raise IrqError(errno.EINVAL, f"{what}: no {name!r}; choose from {', '.join(choices)} (EINVAL)")
    return choices[name]
