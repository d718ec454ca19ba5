"""What a scenario says, as frozen records: data, no policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vmbusirq.generations import X86_ROWS
from vmbusirq.wire.protocol import Version

__all__ = [
    "ACTIONS",
    "HOTPLUG",
    "OFFER_ORDERS",
    "TIMER_MODES",
    "ChannelSpec",
    "CpuSpec",
    "DeviceSpec",
    "EventSpec",
    "HostSpec",
    "PlatformIrq",
    "Scenario",
    "TimerSpec",
    "bare_scenario",
    "usual_rows",
]

ROWS_SELDOM_BUILT: Final = ("PLT", "PMN")  # UV machines; CONFIG_X86_POSTED_MSI, off by default
ACTIONS: Final = ("hot-add", "rescind", "suspend", "resume", "connect", "disconnect", "affinity", "offline", "online")
"""What can happen while a scenario runs."""
HOTPLUG: Final = ("offline", "online")
"""Those of them that happen to CPUs."""
TIMER_MODES: Final = ("direct", "message", "lapic")
"""How a guest's clock ticks come."""


@dataclass(frozen=True, slots=True)
class CpuSpec:
    """The CPUs of a machine.

    Attributes:
        possible: how many the kernel reserves room for (nr_cpu_ids).
        present: how many the host really has; the others were announced and never come.
        isolated: mask of CPUs under isolcpus=managed_irq.
        nodes: mask of the possible CPUs of each NUMA node.
    """

    possible: int
    present: int
    isolated: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlatformIrq:
    """An IRQ outside VMBus: an IO-APIC line. ``counts`` are the interrupts to raise, by CPU."""

    irq: int
    name: str
    chip: str
    hwirq: int
    flow: str
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device.

    Attributes:
        name, device_class: its name here, its class in the catalogue.
        instance: its instance GUID; empty: made from class, name and seed.
        scsi_host: its SCSI host number, None: the lowest that is free.
        present: it is there at boot; else an event brings it.
        monitored: monitor id of its primary channel, None: signalled by hypercall.
    """

    name: str
    device_class: str
    instance: str
    scsi_host: int | None
    present: bool = True
    monitored: int | None = None


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """One channel, in the order in which offers are processed.

    Attributes:
        device: name of its device.
        relid: 1 to 2047.
        sub: sub-channel index, 0 for the primary.
        interrupts: how many there are in all, those of the device's own negotiation counted.
        packets: packets per interrupt of the traffic.
        payload: bytes per packet.
    """

    device: str
    relid: int
    sub: int
    interrupts: int
    packets: int
    payload: int


OFFER_ORDERS: Final = ("listed", "interface", "shuffled")
"""As the scenario lists primary channels; by interface id; another one at each boot, drawn from the seed."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """How the host behaves.

    Attributes:
        version: the newest protocol version that it speaks.
        modify_delay_us: from MODIFYCHANNEL to its effect, in microseconds.
        gpadl_quota_mb: guest memory in GPADLs, in MiB; None: what a host of that version takes.
        throttle_after: unnecessary signals within ``throttle_window_us`` that suspend the guest for ``throttle_us``;
            None: they are only counted.
        offer_order: of devices at REQUESTOFFERS, one of :data:`OFFER_ORDERS`.
        relids_change_on_resume: after hibernation the guest finds a host that numbers its channels anew.
        hv_sock_ports: where the host listens for connections of the guest.
    """

    version: Version = Version.V5_3
    modify_delay_us: int = 0
    gpadl_quota_mb: int | None = None
    throttle_after: int | None = None
    throttle_window_us: int = 1_000_000
    throttle_us: int = 100_000
    offer_order: str = "listed"
    relids_change_on_resume: bool = False
    hv_sock_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EventSpec:
    """Something that happens while the scenario runs.

    Attributes:
        at: when, in ticks of 100 ns since boot.
        action: one of :data:`ACTIONS`.
        device, sub: of ``hot-add``, ``rescind`` and ``affinity``: which device; which of its channels. A ``rescind``
            of channel 0 is one of the device.
        cpus: of ``affinity``, ``offline`` and ``online``: a CPU list.
        connection: of ``connect`` and ``disconnect``: the connection's name.
        by_host: of those: the host does it, not the guest.
        port: of ``connect``: where.
        packets, payload: of ``connect``: packets each way once it stands, and the bytes of each.
        accepted: of ``connect``: somebody listens there.
    """

    at: int
    action: str
    device: str = ""
    sub: int = 0
    cpus: str = ""
    connection: str = ""
    by_host: bool = False
    port: int = 0
    packets: int = 0
    payload: int = 0
    accepted: bool = True

    @property
    def what(self) -> str:
        """Whom it happens to, in words; empty for suspend and resume."""
        if self.action in HOTPLUG:
            return f"cpu {self.cpus}"
        if self.connection:
            return self.connection
        return f"{self.device}/{self.sub}" if self.sub or self.action == "affinity" else self.device


@dataclass(frozen=True, slots=True)
class TimerSpec:
    """The guest's clock.

    Attributes:
        mode: how its ticks come: ``direct``, stimer0 with a vector of its own (row HVS); ``message``, stimer0 through
            the message slot of SINT 2 (row HYP); ``lapic``, no stimer at all (row LOC).
        ticks: by possible CPU, how many there are until the scenario ends.
        invariant_tsc: the host scales the TSC, so that Linux prefers it as its clocksource.
        tsc_hz: frequency of the host's TSC.
    """

    mode: str = TIMER_MODES[0]
    ticks: tuple[int, ...] = ()
    invariant_tsc: bool = False
    tsc_hz: int = 2_500_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine and its traffic.

    Attributes:
        source: what errors call it: a path or a built-in name.
        arch: ``x86`` or ``arm64``.
        gsi_top: first IRQ above the IO-APICs (x86), which is where dynamic IRQs begin.
        legacy_irqs: IRQs of a PIC, 0 on a Generation 2 machine.
        rows: x86 architecture rows that this kernel configuration shows.
        impossible: of them, rows whose cause cannot occur on this machine; some kernels leave those out.
        presets: values of rows and counters that nothing models; a row has one number per possible CPU.
        host: how the host behaves.
        probe_order: names of devices in the order in which their drivers probe them; the others follow in the order of
            their offers.
        events: what happens meanwhile, in order of time.
        duration_s: virtual time that the traffic takes.
        page_kib: size of the guest's pages; arm64 has a choice.
        timers: the guest's clock; None: its ticks are nobody's business, or presets.
    """

    name: str
    description: str
    source: str
    arch: str
    cpus: CpuSpec
    gsi_top: int
    legacy_irqs: int
    rows: tuple[str, ...]
    impossible: tuple[str, ...]
    irqs: tuple[PlatformIrq, ...]
    devices: tuple[DeviceSpec, ...]
    channels: tuple[ChannelSpec, ...]
    host: HostSpec
    probe_order: tuple[str, ...]
    duration_s: int
    presets: Mapping[str, tuple[int, ...]]
    stat: Mapping[str, int]
    events: tuple[EventSpec, ...] = ()
    page_kib: int = 4
    timers: TimerSpec | None = None


def usual_rows(arch: str) -> tuple[str, ...]:
    """Return the architecture rows that a usual kernel configuration shows; arm64 has none."""
    return tuple(row.label for row in X86_ROWS if row.label not in ROWS_SELDOM_BUILT) if arch == "x86" else ()


def bare_scenario(cpus: int, arch: str) -> Scenario:
    """Return a scenario with nobody in it. Whether the numbers make sense is for the machine to say."""
    return Scenario(
        name="bare",
        description="a machine without devices",
        source="bare",
        arch=arch,
        cpus=CpuSpec(cpus, cpus, 0, ((1 << max(cpus, 0)) - 1,)),
        gsi_top=24,
        legacy_irqs=0,
        rows=usual_rows(arch),
        impossible=(),
        irqs=(),
        devices=(),
        channels=(),
        host=HostSpec(),
        probe_order=(),
        duration_s=0,
        presets={},
        stat={},
    )
