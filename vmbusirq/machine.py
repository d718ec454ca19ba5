"""Machine: the only place that joins the rooms. Boots a scenario, drives its traffic, shows its files."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Final
from uuid import UUID

from vmbusirq._ffi import lib
from vmbusirq.core import TICKS_PER_MS, TICKS_PER_S, Core
from vmbusirq.cpumask import cpumask_all, cpus_of
from vmbusirq.designs import DEFAULT_DESIGN, DESIGNS, Design
from vmbusirq.errors import IrqError
from vmbusirq.fs import FileSystem, StatPresets, kernel_files
from vmbusirq.fs.sysfs.vmbus import add_vmbus_files
from vmbusirq.generations import DEFAULT_GENERATION, X86_ROWS, ArchRow, Generation, nr_irqs_at_boot
from vmbusirq.generations import generation as find_generation
from vmbusirq.host.bus import HostBus, Traffic
from vmbusirq.host.ic import REQUESTS
from vmbusirq.hyperv.clock import Clock
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.synic import Synic
from vmbusirq.irq import IrqCore
from vmbusirq.limits import CPUS_MAX, RELIDS
from vmbusirq.log import Log
from vmbusirq.platform import Platform, arm64_platform, x86_platform
from vmbusirq.scenario.schema import Scenario, bare_scenario, load_scenario
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.connection import Offer, VmbusConnection

__all__ = ["Machine", "Progress"]

Progress = Callable[[int, int, str], None]
BOOT_TICKS: Final = 2 * TICKS_PER_S  # when VMBus comes up
OFFER_TICKS: Final = TICKS_PER_MS
CHANNELMSG_ALLOFFERS_DELIVERED: Final = b"\x04" + bytes(7)
IRQS_BESIDE_VMBUS: Final = 64  # room for descriptors above the boot-time slots and one per relid


class Machine:
    """One emulated guest and its host.

    Args:
        cpus, arch: possible CPUs, 1 to 2048, and ``"x86"`` or ``"arm64"``, of a machine without devices.
        design: a name of :data:`vmbusirq.designs.DESIGNS`.
        generation: a name of :data:`vmbusirq.generations.GENERATIONS`.
        engine: ``"fast"``, or ``"linux"`` for v6.10's own steps.
        simd: widest vectors of the scanner.
        seed: fixes every choice that is left open, so that the same machine gives the same bytes.
        scenario: who is there instead; :meth:`load` finds one by name.
    Raises:
        IrqError: EINVAL for a name or number that is not known, EOPNOTSUPP for vectors this CPU does not have.

    Attributes:
        irq: the genirq core; ``irq.counts`` is the counter table.
        fs: the files: ``read(path)``, ``write(path, data)``, ``listdir(path)``.
        host: the host: ``send(relid=..., packets=...)``, ``post_message(...)``.
        vmbus: the guest driver: ``channels`` by relid.
        log: the guest's log.
        partition: what the guest gets from its hypervisor; ``clock`` and ``synic`` are its.
        clock: virtual time.
    """

    def __init__(
        self,
        cpus: int = 8,
        *,
        arch: str = "x86",
        design: str = DEFAULT_DESIGN,
        generation: str = DEFAULT_GENERATION.name,
        engine: str = "fast",
        simd: str = "best",
        seed: int = 0,
        scenario: Scenario | None = None,
    ) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise IrqError(errno.EINVAL, f"seed: {seed!r} is no whole number below 2**64 (EINVAL)")
        if design not in DESIGNS:
            raise IrqError(errno.EINVAL, f"design: no {design!r} (EINVAL); choose from {', '.join(DESIGNS)}")
        if scenario is None:
            if not isinstance(cpus, int) or not 1 <= cpus <= CPUS_MAX:
                raise IrqError(errno.EINVAL, f"machine: cannot have {cpus!r} CPUs; 1 to {CPUS_MAX} (EINVAL)")
            scenario = bare_scenario(cpus, arch)
        self.scenario: Final = scenario
        self.design: Final[Design] = DESIGNS[design]
        self.generation: Final[Generation] = find_generation(generation)
        self.seed: Final = seed
        self.booted = False
        nr_irqs = self._nr_irqs_at_boot()
        self.core: Final = Core(
            self.scenario.cpus.possible,
            nr_irqs_max=nr_irqs + RELIDS + IRQS_BESIDE_VMBUS,
            arch=self.scenario.arch,
            engine=engine,
            simd=simd,
            hyp_count=self.design.hyp_count,
            channel_irqs=self.design.channel_irqs,
            shutdown_adds_depth=self.generation.shutdown_adds_depth,
            seed=seed,
        )
        self.partition: Final = Partition(self.core)
        self.clock: Final[Clock] = self.partition.clock
        self.synic: Final[Synic] = self.partition.synic
        self.log: Final = Log(lambda: self.core.now)
        self.irq: Final = self._make_irq_core(nr_irqs)
        self.partition.add_pump(self.irq.run_work, guest=True)
        self.partition.add_check(self.irq.reraise)
        self.host: Final = HostBus(self.partition)
        self.platform: Final = self._make_platform()
        self.vmbus: Final = self._make_vmbus()
        self.fs: Final[FileSystem] = kernel_files(self)
        add_vmbus_files(self.fs, self.vmbus)

    @classmethod
    def load(
        cls,
        scenario: str | PathLike[str] | Scenario,
        *,
        design: str = DEFAULT_DESIGN,
        generation: str = DEFAULT_GENERATION.name,
        engine: str = "fast",
        simd: str = "best",
        seed: int = 0,
    ) -> Machine:
        """Make the machine of a scenario: a built-in name, a TOML file, or a :class:`Scenario`.

        Raises:
            ScenarioError: the scenario cannot be used; IrqError as for the class.
        """
        loaded = scenario if isinstance(scenario, Scenario) else load_scenario(fspath(scenario))
        return cls(scenario=loaded, design=design, generation=generation, engine=engine, simd=simd, seed=seed)

    def _nr_irqs_at_boot(self) -> int:
        scenario = self.scenario
        return nr_irqs_at_boot(
            scenario.arch, scenario.cpus.possible, gsi_top=scenario.gsi_top, legacy_irqs=scenario.legacy_irqs
        )

    def _make_irq_core(self, nr_irqs: int) -> IrqCore:
        x86 = self.scenario.arch == "x86"
        return IrqCore(
            self.core.handle,
            nr_cpus=self.core.nr_cpus,
            nr_irqs=nr_irqs,
            dynirq_base=self.scenario.gsi_top if x86 else 0,
            online=self.present_mask,
            log=self.log,
            generic_pending_irq=x86,
            move_pcntxt_is_default=not self.generation.move_pcntxt_flag,
            managed_starts_set=self.generation.managed_starts_set,
            cond_oneshot=self.generation.request_cond_oneshot,
            isolated=self.scenario.cpus.isolated,
        )

    def _make_platform(self) -> Platform:
        if self.scenario.arch == "x86":
            return x86_platform(self.irq, self.scenario.irqs, self.scenario.gsi_top)
        return arm64_platform(self.irq, self.generation)

    def _make_vmbus(self) -> VmbusConnection:
        cpus = self.scenario.cpus
        vmbus = VmbusConnection(
            self.core,
            self.irq,
            self.synic,
            self.host,
            self.design,
            nodes=[node & self.online_mask for node in cpus.nodes],
            isolated=cpus.isolated,
            ppi_irq=self.platform.vmbus_ppi,
            seed=self.seed,
        )
        vmbus.synic_init(cpus_of(self.online_mask))
        return vmbus

    # ---- what the files look at

    @property
    def arch(self) -> str:
        """``x86`` or ``arm64``."""
        return self.scenario.arch

    @property
    def present_mask(self) -> int:
        """CPUs that the host really has."""
        return cpumask_all(self.scenario.cpus.present)

    @property
    def online_mask(self) -> int:
        """CPUs that take interrupts now."""
        return self.irq.online

    @property
    def arch_rows(self) -> tuple[ArchRow, ...]:
        """The x86 rows that this machine shows, in the order of the file; none on arm64."""
        hidden = self.scenario.impossible if self.generation.hides_impossible_rows else ()
        rows = [row for row in X86_ROWS if row.label in self.scenario.rows and row.label not in hidden]
        if not self.design.hyp_row:
            rows = [row for row in rows if row.label != "HYP"]
        if not self.design.hyp_in_total:
            rows = [replace(row, in_total=False) if row.label == "HYP" else row for row in rows]
        return tuple(rows)

    @property
    def ipi_irqs(self) -> tuple[int, ...]:
        """IRQs behind the IPI rows of arm64."""
        return self.platform.ipis

    @property
    def now(self) -> int:
        """Time since boot in 100 ns ticks."""
        return self.core.now

    @property
    def btime(self) -> int:
        """When the machine booted, in seconds since 1970."""
        return self.scenario.stat.get("btime", 0)

    @property
    def stat_presets(self) -> StatPresets:
        """Numbers of /proc/stat that nothing models."""
        stat = self.scenario.stat
        return StatPresets(ctxt=stat.get("ctxt", 0), processes=stat.get("processes", 0))

    @property
    def preset_rows(self) -> tuple[str, ...]:
        """Labels of the rows shown whose numbers the scenario gives, because nothing models them."""
        shown = {row.label for row in self.arch_rows} | {f"IPI{i}" for i in range(len(self.ipi_irqs))}
        return tuple(label for label in self.scenario.presets if label in shown)

    # ---- devices

    def attach(
        self,
        device_class: str,
        relid: int,
        *,
        device: str = "",
        sub: int = 0,
        scsi_host: int | None = None,
        instance: UUID | None = None,
    ) -> Channel:
        """Offer a channel to the guest and let its driver open it, by a direct call.

        Raises:
            IrqError: EINVAL for an unknown class or a relid outside 1..2047, EEXIST for a relid, a device's primary or
                an instance in use.
        """
        offer = Offer(device or f"{device_class}-{relid}", device_class, relid, sub, scsi_host, instance)
        channel = self.vmbus.offer(offer)
        self.host.set_template(relid, REQUESTS.get(device_class, b""))
        try:
            self.vmbus.open(channel)
        except BaseException:
            self.vmbus.remove(channel)
            raise
        self.settle()
        return channel

    def detach(self, relid: int) -> None:
        """Take a channel away: close, free, unmap. ENOENT: there is none."""
        if relid not in self.vmbus.channels:
            raise IrqError(errno.ENOENT, f"channel {relid}: there is none (ENOENT)")
        self.vmbus.remove(self.vmbus.channels[relid])

    # ---- running

    def settle(self) -> int:
        """Deliver until nothing is deliverable; return how often a CPU had something to do.

        Raises:
            Exception: whatever a Python handler raised meanwhile.
        """
        return self.partition.settle()

    def boot(self) -> None:
        """Bring up the scenario's devices, its control messages and its presets; a second call does nothing."""
        if self.booted:
            return
        self.booted = True
        self._apply_presets()
        self.clock.advance_to(BOOT_TICKS)
        self.log.info(f"hv_vmbus: {len(self.scenario.channels)} channels, design {self.design.name}")
        devices = {device.name: device for device in self.scenario.devices}
        for spec in self.scenario.channels:
            device = devices[spec.device]
            self.clock.advance(OFFER_TICKS)
            self.attach(
                device.device_class,
                spec.relid,
                device=spec.device,
                sub=spec.sub,
                scsi_host=device.scsi_host,
                instance=UUID(device.instance) if device.instance else None,
            )
        for _ in range(self.scenario.messages):
            self.host.post_message(CHANNELMSG_ALLOFFERS_DELIVERED)
            self.settle()

    def _apply_presets(self) -> None:
        ipis = {f"IPI{number}": irq for number, irq in enumerate(self.ipi_irqs)}
        for label, counts in self.scenario.presets.items():
            if self.arch == "x86":
                for cpu, count in enumerate(counts):
                    self.core.set_arch_row(cpu, getattr(lib, f"VI_ROW_{label}"), count)
            elif label in ipis:  # older kernels have fewer IPIs
                self._preset_irq(ipis[label], counts)

    def _preset_irq(self, irq: int, counts: Sequence[int]) -> None:
        counters = self.core.counters
        for cpu, count in enumerate(counts):
            counters.irq[cpu * counters.irq_stride + irq] = count
            counters.irqs_sum[cpu * lib.VI_IRQS_SUM_STRIDE] += count

    def run(self, progress: Progress | None = None) -> None:
        """Boot, and drive the scenario's traffic through the whole path to its end.

        A second call drives the same traffic once more. ``progress`` hears of (shares done, shares, what).
        """
        self.boot()
        for line in self.scenario.irqs:
            for cpu, count in enumerate(line.counts):
                self.irq.generic_handle_irq(line.irq, cpu, count)
                self.irq.irq_move_irq(line.irq)
        traffic = [
            Traffic(spec.relid, spec.interrupts, spec.packets, spec.payload)
            for spec in self.scenario.channels
            if spec.interrupts
        ]
        shares = _shares(traffic)
        for done, share in enumerate(shares):
            if progress is not None:
                progress(done, len(shares), "traffic")
            self.host.drive(share, self.seed + done)
        self.clock.advance_to(max(self.core.now, self.scenario.duration_s * TICKS_PER_S))
        self.settle()


_SHARE_WORK: Final = 1_000_000  # packets of half a KiB, about: a fraction of a second


def _shares(traffic: Sequence[Traffic]) -> list[list[Traffic]]:
    """Cut long traffic into shares of about the same work, each with its part of every channel's."""
    work = sum(item.interrupts * item.packets * (1 + item.payload // 512) for item in traffic)
    parts = min(max(1, work // _SHARE_WORK), max((item.interrupts for item in traffic), default=1) or 1)
    cuts = (
        [
            replace(item, interrupts=item.interrupts * (part + 1) // parts - item.interrupts * part // parts)
            for item in traffic
        ]
        for part in range(parts)
    )
    return [[item for item in cut if item.interrupts] for cut in cuts]
