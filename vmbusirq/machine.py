"""Machine: the only place that joins the rooms. Boots a scenario, drives its traffic, shows its files."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, Final
from uuid import NAMESPACE_OID, UUID, uuid5

from vmbusirq._ffi import lib
from vmbusirq.core import TICKS_PER_US, Core
from vmbusirq.cpumask import cpumask_all, cpus_of
from vmbusirq.designs import DEFAULT_DESIGN, DESIGNS, Design
from vmbusirq.errors import IrqError
from vmbusirq.fs import FileSystem, StatPresets, kernel_files
from vmbusirq.fs.sysfs.clocks import add_clock_files
from vmbusirq.fs.sysfs.vmbus import add_vmbus_files
from vmbusirq.generations import DEFAULT_GENERATION, X86_ROWS, ArchRow, Generation, nr_irqs_at_boot
from vmbusirq.generations import generation as find_generation
from vmbusirq.host.channel import HostChannel
from vmbusirq.host.device import HostDevice
from vmbusirq.host.options import HostOptions, by_interface
from vmbusirq.host.server import HostBus
from vmbusirq.host.vsp import make_vsp
from vmbusirq.hotplug import CpuSwitch
from vmbusirq.hyperv.clock import Clock
from vmbusirq.hyperv.cpuid import Feature, Features
from vmbusirq.hyperv.partition import Partition
from vmbusirq.hyperv.profiles import Profile
from vmbusirq.hyperv.synic import Synic
from vmbusirq.hyperv.vcpu import Vcpu
from vmbusirq.irq import IrqCore
from vmbusirq.limits import CPUS_MAX, RELID_MAX, RELIDS
from vmbusirq.log import Log
from vmbusirq.platform import Platform, arm64_platform, x86_platform
from vmbusirq.scenario.schema import DeviceSpec, Scenario, TimerSpec, bare_scenario, load_scenario
from vmbusirq.scenario.timeline import BOOT_TICKS
from vmbusirq.scenario.timers import with_timers
from vmbusirq.script import Progress, Script
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.clockevent import ClockEvents
from vmbusirq.vmbus.clocksource import Clocksources
from vmbusirq.vmbus.connection import VmbusConnection
from vmbusirq.vmbus.context import GuestOptions
from vmbusirq.wire.devices import SUB_CHANNEL_CLASSES, UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.protocol import INVALID_RELID

__all__ = ["Machine", "Progress"]

SCSI_HOST_MAX: Final = 65535
IRQS_BESIDE_VMBUS: Final = 64  # room for descriptors above the boot-time slots and one per relid


class Machine:
    """One emulated guest and its host.

    Args:
        cpus, arch: possible CPUs, 1 to 2048, and ``"x86"`` or ``"arm64"``, of a machine without devices.
        design: a name of :data:`vmbusirq.designs.DESIGNS`, or a record of one's own.
        generation: a name of :data:`vmbusirq.generations.GENERATIONS`.
        engine: ``"fast"``, or ``"linux"`` for v6.10's own steps.
        simd: widest vectors of the scanner.
        seed: fixes every choice that is left open, so that the same machine gives the same bytes.
        strict_rfc: keep the defects of the RFC as posted, which are mended otherwise (vmbus.md 10).
        scenario: who is there instead; :meth:`load` finds one by name.
        profile: how the hypervisor behaves where implementations differ: a name of
            :data:`vmbusirq.hyperv.profiles.PROFILES`.
        timers: how the guest's clock ticks come, instead of what the scenario says: ``direct``, ``message``, ``lapic``.
    Raises:
        IrqError: EINVAL for a name or number that is not known, EOPNOTSUPP for vectors this CPU does not have.

    Attributes:
        irq: the genirq core; ``irq.counts`` is the counter table.
        fs: the files: ``read(path)``, ``write(path, data)``, ``listdir(path)``.
        host: the host: ``send(relid=..., packets=...)``, ``post_message(...)``.
        vmbus: the guest driver: ``channels`` by relid.
        hotplug: CPUs that go offline and come back, as steps: ``hotplug.down(cpu)``, ``hotplug.up(cpu)``.
        log: the guest's log; ``host_log``: what the host has to say about its guest.
        partition: what the guest gets from its hypervisor; ``clock``, ``synic`` and ``vcpus`` are its.
        vcpus: virtual processors: ``vcpus[0].rdmsr(0x40000083)``, ``wrmsr``.
        clock: virtual time.
        clocksources, clockevents: what the guest keeps time by, and its ticks.
        script: the run of the scenario: ``script.happened`` tells what became of its events.
    """

    def __init__(
        self,
        cpus: int = 8,
        *,
        arch: str = "x86",
        design: str | Design = DEFAULT_DESIGN,
        generation: str = DEFAULT_GENERATION.name,
        engine: str = "fast",
        simd: str = "best",
        seed: int = 0,
        strict_rfc: bool = False,
        scenario: Scenario | None = None,
        profile: str | Profile = "tlfs",
        timers: str | None = None,
    ) -> None:
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise IrqError(errno.EINVAL, f"seed: {seed!r} is no whole number below 2**64 (EINVAL)")
        if not isinstance(design, Design) and design not in DESIGNS:
            raise IrqError(errno.EINVAL, f"design: no {design!r} (EINVAL); choose from {', '.join(DESIGNS)}")
        if scenario is None:
            if not isinstance(cpus, int) or not 1 <= cpus <= CPUS_MAX:
                raise IrqError(errno.EINVAL, f"machine: cannot have {cpus!r} CPUs; 1 to {CPUS_MAX} (EINVAL)")
            scenario = bare_scenario(cpus, arch)
        self.scenario: Final = scenario if timers is None else with_timers(scenario, timers)
        self.design: Final[Design] = design if isinstance(design, Design) else DESIGNS[design]
        self.generation: Final[Generation] = find_generation(generation)
        self.seed: Final = seed
        self.strict_rfc: Final = strict_rfc
        self.booted = False
        nr_irqs = self._nr_irqs_at_boot()
        self.core: Final = self._make_core(nr_irqs, engine, simd)
        self.partition: Final = self._make_partition(profile)
        self.clock: Final[Clock] = self.partition.clock
        self.synic: Final[Synic] = self.partition.synic
        self.vcpus: Final[Sequence[Vcpu]] = self.partition.vcpus
        for vcpu in self.vcpus:
            vcpu.activate_synic()  # what a VMM has to ask KVM for
        self.log: Final = Log(lambda: self.core.now)
        self.host_log: Final = Log(lambda: self.core.now)
        self.irq: Final = self._make_irq_core(nr_irqs)
        self.partition.add_pump(self.irq.run_work, guest=True)
        self.partition.add_check(self.irq.reraise)
        self.host: Final = self._make_host()
        self.platform: Final = self._make_platform()
        self.vmbus: Final = self._make_vmbus()
        self.clocksources: Final = Clocksources(self.partition)
        self.clockevents: Final = ClockEvents(self.core, self.partition, self.clocksources)
        self.hotplug: Final = self._make_hotplug()
        self.fs: Final[FileSystem] = kernel_files(self)
        add_vmbus_files(self.fs, self.vmbus)
        add_clock_files(self.fs, self, self.clocksources, self.clockevents)
        self.script: Final = Script(self)

    @classmethod
    def load(
        cls,
        scenario: str | PathLike[str] | Scenario,
        *,
        design: str | Design = DEFAULT_DESIGN,
        generation: str = DEFAULT_GENERATION.name,
        engine: str = "fast",
        simd: str = "best",
        seed: int = 0,
        strict_rfc: bool = False,
        profile: str | Profile = "tlfs",
        timers: str | None = None,
    ) -> Machine:
        """Make the machine of a scenario: a built-in name, a TOML file, or a :class:`Scenario`.

        Raises:
            ScenarioError: the scenario cannot be used; IrqError as for the class.
        """
        loaded = scenario if isinstance(scenario, Scenario) else load_scenario(fspath(scenario))
        return cls(
            scenario=loaded,
            design=design,
            generation=generation,
            engine=engine,
            simd=simd,
            seed=seed,
            strict_rfc=strict_rfc,
            profile=profile,
            timers=timers,
        )

    @property
    def _timers(self) -> TimerSpec:
        return self.scenario.timers or TimerSpec()

    def _make_core(self, nr_irqs: int, engine: str, simd: str) -> Core:
        return Core(
            self.scenario.cpus.possible,
            nr_irqs_max=nr_irqs + RELIDS + IRQS_BESIDE_VMBUS,
            arch=self.scenario.arch,
            engine=engine,
            simd=simd,
            hyp_count=self.design.hyp_count,
            channel_irqs=self.design.channel_irqs,
            redirect=self.design.redirects,
            shutdown_adds_depth=self.generation.shutdown_adds_depth,
            seed=self.seed,
        )

    def _make_hotplug(self) -> CpuSwitch:
        hotpluggable = self.present_mask & ~1 if self.arch == "x86" else self.present_mask
        self.vmbus.cpuhp.stimer_init = self.clockevents.legacy_init
        self.vmbus.cpuhp.stimer_cleanup = self.clockevents.legacy_cleanup
        return CpuSwitch(
            self.irq,
            self.partition,
            self.vmbus,
            self.clockevents,
            present=self.present_mask,
            hotpluggable=hotpluggable,
        )

    def _make_partition(self, profile: str | Profile) -> Partition:
        """Make the partition; of timers and TSC it offers what the scenario says."""
        features = Features(arch=self.scenario.arch)
        if self._timers.mode != "direct":
            features = features.minus(Feature.STIMER_DIRECT)
        if self._timers.mode == "lapic":
            features = features.minus(Feature.STIMER)
        if self._timers.invariant_tsc:
            features = features.plus(Feature.TSC_INVARIANT)
        return Partition(self.core, profile=profile, features=features, tsc_hz=self._timers.tsc_hz)

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
        scenario = self.scenario
        instances = {device.name: str(self._instance_of(device)) for device in scenario.devices}
        vmbus = VmbusConnection(
            self.core,
            self.irq,
            self.partition,
            self.design,
            nodes=cpus.nodes,
            options=GuestOptions(
                strict_rfc=self.strict_rfc,
                isolated=cpus.isolated,
                scsi_hosts={
                    instances[device.name]: device.scsi_host
                    for device in scenario.devices
                    if device.scsi_host is not None
                },
                probe_order=tuple(instances[name] for name in scenario.probe_order),
                page_bytes=scenario.page_kib << 10,
                seed=self.seed,
            ),
            ppi_irq=self.platform.vmbus_ppi,
        )
        vmbus.synic_init(cpus_of(self.online_mask))
        return vmbus

    def _make_host(self) -> HostBus:
        spec = self.scenario.host
        options = HostOptions(
            modify_delay_ticks=spec.modify_delay_us * TICKS_PER_US,
            gpadl_quota_bytes=None if spec.gpadl_quota_mb is None else spec.gpadl_quota_mb << 20,
            throttle_after=spec.throttle_after,
            throttle_window_ticks=spec.throttle_window_us * TICKS_PER_US,
            throttle_ticks=spec.throttle_us * TICKS_PER_US,
            offer_order=self._offer_order(),
            log=lambda text: self.host_log.info(text),
        )
        return HostBus(self.partition, version=spec.version, options=options)

    def _offer_order(self) -> Callable[[HostDevice], Any] | None:
        """Return the key by which the host sorts its offers; shuffled ones fall out otherwise at each contact."""
        draw = random.Random(self.seed)
        return {"listed": None, "interface": by_interface, "shuffled": lambda device: draw.random()}[
            self.scenario.host.offer_order
        ]

    def _instance_of(self, device: DeviceSpec) -> UUID:
        return UUID(device.instance) if device.instance else self.make_instance(device.device_class, device.name)

    def make_instance(self, device_class: str, name: str) -> UUID:
        """Return the instance GUID of a device that nobody gave one; it depends on class, name and seed alone."""
        return uuid5(NAMESPACE_OID, f"vmbusirq/{self.seed}/{device_class}/{name}")

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
    def hotpluggable_mask(self) -> int:
        """CPUs that can go offline: on x86 all that are present but CPU 0."""
        return self.hotplug.hotpluggable

    def set_cpu_online(self, cpu: int, online: bool) -> None:
        """Take a CPU offline or bring it back: :meth:`offline_cpu`, :meth:`online_cpu`."""
        self.hotplug.set_online(cpu, online)

    def online_ticks(self, cpu: int) -> int:
        """Return how long a CPU has been online since boot, in ticks of 100 ns."""
        return self.hotplug.online_ticks(cpu)

    @property
    def online_mask(self) -> int:
        """CPUs that take interrupts now."""
        return self.irq.online

    @property
    def arch_rows(self) -> tuple[ArchRow, ...]:
        """The x86 rows that this machine shows, in the order of the file; none on arm64."""
        hidden = self.scenario.impossible if self.generation.hides_impossible_rows else ()
        shown = {*self.scenario.rows, *(("IWI",) if self.design.redirects and self.arch == "x86" else ())}
        rows = [row for row in X86_ROWS if row.label in shown and row.label not in hidden]
        claimed = {"HVS": Feature.STIMER_DIRECT, "HRE": Feature.REENLIGHTENMENT}  # vectors that only those need
        rows = [row for row in rows if row.label not in claimed or self.partition.features.has(claimed[row.label])]
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
        relid: int | None = None,
        *,
        device: str = "",
        sub: int = 0,
        scsi_host: int | None = None,
        instance: UUID | None = None,
    ) -> Channel:
        """Let the host offer a channel (hot add), and the guest take it up.

        Args:
            device_class: short name of its class.
            relid: the relid it gets; None: the lowest that is free.
            device: name of its device, made from class and number if none is given; a sub-channel joins the one of
                that name.
            sub: 0 for a primary channel; else the next sub-channel of a device that is there.
            scsi_host: number of the SCSI host that the guest makes of it; None: the lowest that is free.
            instance: the device's instance GUID, made from class and name if none is given.
        Raises:
            IrqError: EINVAL for an unknown class, a bad name or number, a relid outside 1..2047, a sub-channel of a
                class that has none; EEXIST for a relid, a device or an instance in use; ENOENT for a sub-channel of
                nobody; ENOSPC if every relid is taken, EIO if the guest did not take the offer up: it is taken back;
                as :meth:`connect`.
        """
        self.connect()
        name = device or self._free_name(device_class, relid)
        _check_device(name, sub, scsi_host)
        if sub:
            if device_class not in SUB_CHANNEL_CLASSES:
                raise IrqError(errno.EINVAL, f"device {name}: class {device_class} has one channel (EINVAL)")
            channel = self._find_device(device_class, name).add_sub_channel(relid, sub)
        else:
            guid = instance or self.make_instance(device_class, name)
            if scsi_host is not None:
                self.vmbus.options.scsi_hosts[str(guid)] = scsi_host
            channel = self._add_device(device_class, name, relid, (), instance).primary
        self.settle()
        if channel.relid not in self.vmbus.channels:
            raise self._take_offer_back(channel)
        return self.vmbus.channels[channel.relid]

    def _free_name(self, device_class: str, relid: int | None) -> str:
        taken = {device.name for device in self.host.devices if device.vsp.class_name == device_class}
        numbers = itertools.count(1) if relid is None else [relid]
        return next((name for n in numbers if (name := f"{device_class}-{n}") not in taken), f"{device_class}-{relid}")

    def _take_offer_back(self, channel: HostChannel) -> IrqError:
        """Undo an offer that came to nothing; return why."""
        name, relid = channel.name, channel.relid
        if channel.sub_channel_index == 0:
            self.host.remove_device(channel.device)
        elif channel.is_offered:
            self.host.rescind(relid)
        self.settle()
        if relid == INVALID_RELID:
            return IrqError(errno.ENOSPC, f"device {name}: no relid is left (ENOSPC); detach another channel first")
        known = channel.device.vsp.class_name not in UNSUPPORTED_CLASS_IDS
        why = "see the log" if known else f"it binds no device of class {channel.device.vsp.class_name}"
        return IrqError(errno.EIO, f"channel {relid} ({name}): the guest did not take up the offer (EIO); {why}")

    def detach(self, relid: int) -> None:
        """Let the host rescind a channel, with a primary its device, and the guest see to it. ENOENT: there is none."""
        self.host.rescind(relid)
        self.settle()

    def connect(self) -> None:
        """Connect guest and host; nothing happens if they are connected. EBUSY: the guest is suspended, or has left."""
        if not self.vmbus.control.connected:
            self.vmbus.connect()
            self.settle()

    def plug(self, device: DeviceSpec, relids: Sequence[int]) -> HostDevice:
        """Give the host a device of the scenario, with the relids of its primary and its sub-channels.

        The guest hears of it when the machine runs. EEXIST: there is one of that class and name, or the relid is used.
        """
        guid = self._instance_of(device)
        return self._add_device(device.device_class, device.name, relids[0], relids[1:], guid, device.monitored)

    def _add_device(
        self,
        device_class: str,
        name: str,
        relid: int | None,
        sub_relids: Sequence[int],
        instance: UUID | None,
        monitor: int | None = None,
    ) -> HostDevice:
        if any((other.vsp.class_name, other.name) == (device_class, name) for other in self.host.devices):
            raise IrqError(errno.EEXIST, f"host: there is a {device_class} {name} already (EEXIST); remove it first")
        guid = instance or self.make_instance(device_class, name)
        vsp = make_vsp(device_class, max_sub_channels=len(sub_relids))
        return self.host.add_device(vsp, guid, name=name, relid=relid, sub_relids=sub_relids, monitor=monitor)

    def _find_device(self, device_class: str, name: str) -> HostDevice:
        for device in self.host.devices:
            if (device.vsp.class_name, device.name) == (device_class, name):
                return device
        raise IrqError(errno.ENOENT, f"host: there is no {device_class} {name} (ENOENT); attach its primary first")

    # ---- running

    def offline_cpu(self, cpu: int) -> None:
        """Take a CPU offline, as a 0 in its ``online`` file does; nothing happens to one that is offline.

        Raises:
            IrqError: EINVAL no such CPU is present; EPERM it cannot go offline at all, as CPU 0 of x86; EBUSY it is the
                last one, control messages come to it, a channel interrupts it, or its event flags are not served: the
                machine is as it was.
        """
        self.hotplug.set_online(cpu, False)

    def online_cpu(self, cpu: int) -> None:
        """Bring a CPU back; nothing happens to one that is online. EINVAL: no such CPU is present."""
        self.hotplug.set_online(cpu, True)

    def settle(self) -> int:
        """Deliver until nothing is deliverable; return how often a CPU had something to do.

        Raises:
            Exception: whatever a Python handler raised meanwhile.
        """
        return self.partition.settle()

    def boot(self) -> None:
        """Bring up the scenario's presets, connect, and take up what the host offers; a second call does nothing."""
        if self.booted:
            return
        self.booted = True
        self._apply_presets()
        self.clock.advance_to(BOOT_TICKS)
        self.log.info(f"hv_vmbus: {len(self.scenario.channels)} channels, design {self.design.name}")
        for cpu in cpus_of(self.online_mask):
            if self.vcpus[cpu].synic_active:
                self.clockevents.start(cpu)
        self.script.populate()
        self.connect()

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
        """Boot, and play the scenario to its end: its traffic through the whole path, its events at their times.

        A second call drives the same traffic once more. ``progress`` hears of (interrupts raised, of how many, what),
        and before that once of the boot.
        """
        if progress is not None and not self.booted:
            progress(0, len(self.scenario.channels), "boot")
        self.boot()
        for line in self.scenario.irqs:
            for cpu, count in enumerate(line.counts):
                self.irq.generic_handle_irq(line.irq, cpu, count)
                self.irq.irq_move_irq(line.irq)
        self.script.play(progress)


def _check_device(name: str, sub: int, scsi_host: int | None) -> None:
    if not name.isprintable() or not 0 <= sub <= RELID_MAX:
        raise IrqError(
            errno.EINVAL,
            f"device {name!r}, sub-channel {sub}: a name is printable, an index 0 to {RELID_MAX} (EINVAL)",
        )
    if scsi_host is not None and not 0 <= scsi_host <= SCSI_HOST_MAX:
        raise IrqError(errno.EINVAL, f"device {name}: scsi host {scsi_host!r}; hosts are 0 to {SCSI_HOST_MAX} (EINVAL)")
