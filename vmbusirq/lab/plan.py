"""Offline rehearsal: what keeps CPUs from going offline, the fewest moves that free them, the shell lines for that.

A plan looks at a settled machine and changes nothing; :mod:`vmbusirq.lab.rehearse` carries it out. A channel refuses
for as long as it interrupts a CPU that goes (hv_synic_cleanup in drivers/hv/hv.c, v6.10), and one move is enough for
it: as many moves as channels refuse are needed, and suffice if none of them leads to a CPU that goes, too. Under the
other offline policies channels leave by themselves, but for those that cannot (:mod:`vmbusirq.lab.holding`).
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from typing import Any, Final

from vmbusirq._ffi import lib
from vmbusirq.cpumask import bitmap_parselist, cpumask_first, cpumask_of, cpus_of, format_pbl
from vmbusirq.errors import IrqError
from vmbusirq.irq import IrqDesc
from vmbusirq.lab.holding import MOVES, channels_on, holding_channels
from vmbusirq.lab.migration import Migration, find_migrations
from vmbusirq.lab.placement import Seat, place
from vmbusirq.machine import Machine
from vmbusirq.vmbus.affinity import CONNECT_CPU
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.wire.protocol import INVALID_RELID, Unlock

__all__ = [
    "INTERFACES",
    "PAUSE",
    "Blocker",
    "Holder",
    "Plan",
    "Write",
    "parse_cpus",
    "plan_offline",
]

INTERFACES: Final = ("irq", "sysfs", "both")
PAUSE: Final = "sleep 1"
"""A line that gives the host time for moves that it does not confirm."""


@dataclass(frozen=True, slots=True)
class Write:
    """A value for a file; as text, the shell line that writes it.

    Attributes:
        otherwise: the line that does the same by the other interface, None where it is not asked for.
    """

    path: str
    value: str
    otherwise: Write | None = None

    def __str__(self) -> str:
        return f"echo {self.value} > {self.path}"


@dataclass(frozen=True, slots=True)
class Holder:
    """A channel that interrupts a CPU that shall go, which is EBUSY until it is moved, or which leaves by itself.

    Attributes:
        relid, name, irq: the channel; relid None: a resume has not brought it back; IRQ 0: it has none.
        device, device_class: instance GUID, and short name of the class, empty if it is unknown.
        cpu: the CPU that it interrupts.
        state: OPENED, or why it cannot be moved.
        perf: its class is one that init_vp_index spreads.
        interrupts: arrivals so far.
        to: where the plan moves it, None: it cannot be moved, or need not be.
        why: errno and reason if it cannot be moved by any file.
    """

    relid: int | None
    name: str
    irq: int
    device: str
    device_class: str
    cpu: int
    state: str
    perf: bool
    interrupts: int
    to: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """Something that no move of a channel ends: what refuses, and what can be done about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How CPUs go offline.

    Attributes:
        scenario, design, version: of the machine; version None: the guest is not connected, and no channel refuses.
        interface: by which files channels are moved, one of :data:`INTERFACES`.
        cpus: list of the CPUs that shall be offline; ``going``: those of them that are online now, in order.
        targets: list of the CPUs that channels can be moved to.
        holders: channels that refuse, by CPU and relid.
        moving: channels that leave by themselves, in the same order.
        migrations: interrupts that move by themselves.
        blockers: what makes it impossible; then there are no lines.
        notes: what else there is to know.
        free: lines that free the CPUs and take them offline: writes, and perhaps :data:`PAUSE`.
        restore: lines that bring everything back.
    """

    scenario: str
    design: str
    version: str | None
    interface: str
    cpus: str
    going: tuple[int, ...]
    targets: str
    holders: tuple[Holder, ...]
    moving: tuple[Holder, ...]
    migrations: tuple[Migration, ...]
    blockers: tuple[Blocker, ...]
    notes: tuple[str, ...]
    free: tuple[Write | str, ...]
    restore: tuple[Write | str, ...]

    @property
    def moves(self) -> int:
        """How many channels are moved."""
        return sum(holder.to is not None for holder in self.holders)

    @property
    def offline_lines(self) -> tuple[Write, ...]:
        """The lines that take the CPUs offline and move nothing: what happens to who has no plan."""
        return tuple(_online_file(cpu, "0") for cpu in self.going)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        lines = {name: [str(line) for line in getattr(self, name)] for name in ("free", "restore")}
        return asdict(self) | lines | {"moves": self.moves, "possible": not self.blockers}


# ---- which CPUs


def parse_cpus(machine: Machine, text: str) -> int:
    """Return the mask of a CPU list as the kernel reads it: ``7``, ``4-7``, ``1,3``.

    Raises:
        IrqError: EINVAL, EOVERFLOW or ERANGE for the text; EINVAL it is empty, or one of its CPUs is not present.
    """
    present = machine.present_mask
    try:
        mask = bitmap_parselist(text.encode(errors="surrogateescape"), machine.core.nr_cpus)
    except IrqError as error:
        if error.errno != errno.ERANGE:
            raise
        raise _absent(f"cpu list {text[:40]!r}", present) from error  # past the last that is possible
    if not mask:
        raise IrqError(errno.EINVAL, f"cpu list {text[:40]!r}: names no CPU (EINVAL); present: {format_pbl(present)}")
    if mask & ~present:
        raise _absent(f"cpu list {text[:40]!r}", present)
    return mask


def _check(machine: Machine, mask: int) -> None:
    """Refuse what no plan can do.

    Raises:
        IrqError: EINVAL a CPU that is not present; EBUSY none would stay online, or control messages come to one of
            them; EPERM one cannot go offline at all.
    """
    online, present = machine.online_mask, machine.present_mask
    if mask <= 0 or mask & ~present:
        raise _absent(f"cpu mask {mask:#x}", present)
    if not online & ~mask:
        raise IrqError(
            errno.EBUSY, f"{_cpus(mask)}: cannot go offline: one CPU must stay (EBUSY); online: {format_pbl(online)}"
        )
    fixed = mask & ~machine.hotpluggable_mask
    if fixed:
        raise IrqError(
            errno.EPERM,
            f"{_cpus(fixed)}: cannot go offline on {machine.arch}: it has no online file (EPERM); "
            f"others: {format_pbl(machine.hotpluggable_mask)}",
        )
    if (mask & online) >> CONNECT_CPU & 1 and machine.vmbus.version is not None:
        raise IrqError(
            errno.EBUSY,
            f"cpu {CONNECT_CPU}: cannot go offline: control messages come to it while the guest is connected (EBUSY); "
            "unload hv_vmbus",
        )


def _absent(what: str, present: int) -> IrqError:
    return IrqError(errno.EINVAL, f"{what}: not all of its CPUs are present (EINVAL); present: {format_pbl(present)}")


def _cpus(mask: int) -> str:
    return f"cpu{'s' if mask.bit_count() > 1 else ''} {format_pbl(mask)}"


# ---- the plan


def plan_offline(machine: Machine, cpus: int, interface: str | None = None) -> Plan:
    """Plan how CPUs of a settled machine go offline, with the fewest moves of channels.

    Args:
        machine: looked at as it is; nothing is changed.
        cpus: mask of the CPUs; those that are offline already stay so.
        interface: ``irq`` moves channels by /proc/irq, ``sysfs`` by their cpu files, ``both`` names both; None: ``irq``
            where channels have IRQs.
    Raises:
        IrqError: EINVAL a CPU that is not present, no such interface, or IRQs in a design where channels have none;
            EBUSY no CPU would stay online, or control messages come to one; EPERM one cannot go offline at all.
    """
    _check(machine, cpus)
    return _Planner(machine, cpus, _interface(machine, interface)).plan()


def _interface(machine: Machine, interface: str | None) -> str:
    channel_irqs = machine.design.channel_irqs
    if interface is None:
        return "irq" if channel_irqs else "sysfs"
    if interface not in INTERFACES:
        raise IrqError(errno.EINVAL, f"interface: no {interface!r} (EINVAL); choose from {', '.join(INTERFACES)}")
    if interface == "irq" and not channel_irqs:
        raise IrqError(
            errno.EINVAL, f"interface irq: design {machine.design.name} has no channel IRQs (EINVAL); choose sysfs"
        )
    return interface


class _Planner:
    """Looks at one machine."""

    def __init__(self, machine: Machine, cpus: int, interface: str) -> None:
        self._machine = machine
        self._vmbus = machine.vmbus
        self._cpus = cpus
        self._leaving = cpus & machine.online_mask
        self._interface = interface
        self._stay = machine.online_mask & ~cpus
        self._targets = self._stay & ~self._vmbus.isolated & self._vmbus.retarget.synic_online
        self._holding = holding_channels(machine, self._leaving)
        self._moving = [channel for channel in channels_on(machine, self._leaving) if channel not in self._holding]
        self._others = channels_on(machine, ~self._leaving)

    def plan(self) -> Plan:
        """Return the plan."""
        fixed = [self._why_fixed(channel) for channel in self._holding]
        targets = self._place([channel for channel, why in zip(self._holding, fixed, strict=True) if why is None])
        blockers = self._blockers(fixed)
        settled = {channel.irq for channel in (*self._holding, *self._moving) if channel.irq}
        migrating = find_migrations(self._machine, self._leaving, settled)
        holders = tuple(
            self._holder(channel, targets.get(channel), "" if why is None else why.what)
            for channel, why in zip(self._holding, fixed, strict=True)
        )
        possible = not blockers
        version = self._vmbus.version
        return Plan(
            scenario=self._machine.scenario.name,
            design=self._machine.design.name,
            version=None if version is None else str(version),
            interface=self._interface,
            cpus=format_pbl(self._cpus),
            going=tuple(cpus_of(self._leaving)),
            targets=format_pbl(self._targets),
            holders=holders,
            moving=tuple(self._holder(channel, None, "") for channel in self._moving),
            migrations=tuple(migration for _, migration in migrating),
            blockers=blockers,
            notes=(*self._notes(), *self._lost(migrating)),
            free=self._free(targets) if possible else (),
            restore=self._restore([desc for desc, migration in migrating if migration.to]) if possible else (),
        )

    def _place(self, movable: list[Channel]) -> dict[Channel, int]:
        if not self._targets:
            return {}
        movers, others = ([_seat(channel) for channel in channels] for channels in (movable, self._others))
        return dict(zip(movable, place(movers, others, self._targets, self._machine.scenario.cpus.nodes), strict=True))

    def _cpu_of(self, channel: Channel) -> int:
        """Return the CPU that a channel would leave: its own, or that which only the host interrupts for it."""
        cpu = channel.target_cpu
        return cpu if self._leaving >> cpu & 1 else channel.moves.host_cpu

    def _holder(self, channel: Channel, to: int | None, why: str) -> Holder:
        assert channel.device is not None
        return Holder(
            relid=None if channel.relid == INVALID_RELID else channel.relid,
            name=channel.irq_name,
            irq=channel.irq,
            device=channel.device.guid,
            device_class=channel.device_class.name,
            cpu=self._cpu_of(channel),
            state="RESCINDED" if channel.rescinded else channel.state.name,
            perf=channel.device_class.perf,
            interrupts=channel.stats.interrupts,
            to=to,
            why=why,
        )

    # ---- what prevents it

    def _why_fixed(self, channel: Channel) -> Blocker | None:
        """Say why no file moves a channel, in the order in which a write would find out; None: one does."""
        version, device = self._vmbus.version, channel.device
        assert version is not None
        assert device is not None
        if not version.has(Unlock.MODIFYCHANNEL):
            return Blocker(
                f"EIO: protocol version {version} has no MODIFYCHANNEL, 4.1 has",
                "unload hv_vmbus, or let the host remove the device",
            )
        if channel.rescinded:
            return Blocker("ENODEV: the host has rescinded it", "it goes as soon as its driver lets it go; plan again")
        if channel.state is not ChannelState.OPENED:
            return Blocker(f"EIO: it is not open ({channel.state.name})", self._how_to_open(channel))
        if self._irq_of(channel) is None and not _has_directory(channel):
            return Blocker("ENOENT: it has no directory in sysfs", "unbind its device's driver, and bind it again")
        return None

    def _is_movable(self, channel: Channel) -> bool:
        return self._why_fixed(channel) is None

    def _irq_of(self, channel: Channel) -> IrqDesc | None:
        """Return the descriptor whose file moves a channel, None where its cpu file does."""
        desc = self._machine.irq.descs.get(channel.irq) if channel.irq and self._interface != "sysfs" else None
        return desc if desc is not None and self._can_set(desc) else None

    def _how_to_open(self, channel: Channel) -> str:
        device, devices = channel.device, self._vmbus.devices
        assert device is not None
        if channel.relid == INVALID_RELID:
            return "the host has not offered it since the resume: it goes with an offer, or with hv_vmbus"
        driver = next((one for one in devices.drivers.values() if devices.matches(one, device)), None)
        if device.driver is not None:
            return f"unbind and bind {device.driver.name}, or let the host remove the device"
        if driver is None:
            return "no driver of this guest serves it: let the host remove the device"
        return f"bind its driver: {Write(f'/sys/bus/vmbus/drivers/{driver.name}/bind', device.guid)}"

    def _blockers(self, fixed: list[Blocker | None]) -> tuple[Blocker, ...]:
        found = [
            Blocker(f"cpu {self._cpu_of(channel)}: {_who(channel)}: {why.what}", why.remedy)
            for channel, why in zip(self._holding, fixed, strict=True)
            if why is not None
        ]
        if None in fixed and not self._targets:
            found.append(
                Blocker(
                    f"EINVAL: no CPU is left for channels: {_cpus(self._stay)} stay online, isolated: "
                    f"{format_pbl(self._vmbus.isolated) or 'none'}",
                    "leave a CPU online that is not isolated",
                )
            )
        return (*found, *self._stuck_flags())

    def _flags(self, cpu: int) -> tuple[int, ...]:
        """Event flags that a CPU has to serve before it goes; flag 0 is nobody's."""
        version = self._vmbus.version
        if version is None or not version.has(Unlock.MODIFYCHANNEL):
            return ()
        return tuple(flag for flag in self._machine.synic.flags_set(cpu) if flag)

    def _is_awake(self, cpu: int) -> bool:
        return bool(lib.vi_vcpu_pending(self._machine.core.handle, cpu))

    def _stuck_flags(self) -> list[Blocker]:
        return [
            Blocker(
                f"cpu {cpu}: EBUSY: event flags {format_pbl(cpumask_of(*flags))} are set, no interrupt is on its way",
                "the next interrupt of that CPU serves them; plan again after it",
            )
            for cpu in cpus_of(self._leaving)
            if (flags := self._flags(cpu)) and not self._is_awake(cpu)
        ]

    def _notes(self) -> list[str]:
        notes = []
        if self._moving:
            notes.append(f"channels leave by themselves: {MOVES[self._machine.design.offline_policy]}")
        gone = self._cpus & ~self._leaving
        if gone:
            notes.append(f"{_cpus(gone)}: offline already")
        if self._vmbus.version is None:
            notes.append("the guest is not connected: no channel refuses")
        notes += [
            f"cpu {cpu}: event flags {format_pbl(cpumask_of(*flags))} are about to be served"
            for cpu in cpus_of(self._leaving)
            if (flags := self._flags(cpu)) and self._is_awake(cpu)
        ]
        if self._must_pause and self._holding:
            notes.append(f"nobody waits until the host has moved a channel, and a signal could be lost: {PAUSE}")
        if self._machine.strict_rfc and self._machine.design.channel_irqs and self._interface == "sysfs":
            notes.append(
                "the RFC's cpu file takes 0 of the bytes written: echo repeats or complains; use interface irq"
            )
        if self._leaving and self._stay.bit_count() == 1:
            notes.append(f"{_cpus(self._stay)}: the last one that is online")
        return notes

    def _lost(self, migrating: list[tuple[IrqDesc, Migration]]) -> list[str]:
        """Say which channels and interrupts move and cannot be brought back."""
        return [
            f"{_who(channel)}: stays where it has moved to; {why.what}"
            for channel in self._moving
            if (why := self._why_fixed(channel)) is not None
        ] + [
            f"irq {one.irq}: stays where it has moved to; its affinity cannot be set from user space"
            for desc, one in migrating
            if one.to and not self._can_set(desc)
        ]

    @property
    def _must_pause(self) -> bool:
        """Moves are not confirmed, and the CPU that goes does not wait for them by itself (vmbus.md 4.6, race A)."""
        version, design = self._vmbus.version, self._machine.design
        answered = version is not None and version.has(Unlock.MODIFYCHANNEL_RESPONSE)
        return not design.wait_modifychannel and (design.channel_irqs or not answered)  # IRQs do not wait for answers

    # ---- the lines

    def _free(self, targets: dict[Channel, int]) -> tuple[Write | str, ...]:
        moves = [self._move(channel, cpu) for channel, cpu in targets.items()]
        pause = [PAUSE] if moves and self._must_pause else []
        return (*moves, *pause, *(_online_file(cpu, "0") for cpu in cpus_of(self._leaving)))

    def _restore(self, migrated: list[IrqDesc]) -> tuple[Write | str, ...]:
        lines = [_online_file(cpu, "1") for cpu in cpus_of(self._leaving)]
        for channel in (*self._holding, *filter(self._is_movable, self._moving)):
            lines.append(self._move(channel, channel.target_cpu))
            desc = self._machine.irq.descs.get(channel.irq)
            if desc is not None and desc.shown_affinity != 1 << channel.target_cpu:
                lines.append(_affinity(desc, desc.shown_affinity))
        for desc in filter(self._can_set, migrated):
            on = 1 << cpumask_first(desc.effective_affinity or desc.affinity)
            lines += [_affinity(desc, mask) for mask in dict.fromkeys((on, desc.shown_affinity))]
        return tuple(lines)

    def _can_set(self, desc: IrqDesc) -> bool:
        return desc.proc_dir and self._machine.irq.can_set_affinity_usr(desc)

    def _move(self, channel: Channel, cpu: int) -> Write:
        """Return the line that moves a channel, by the interface that was asked for where it has it."""
        assert channel.device is not None
        by_sysfs = Write(f"/sys/bus/vmbus/devices/{channel.device.guid}/channels/{channel.dir_name}/cpu", str(cpu))
        desc = self._irq_of(channel)
        if desc is None:
            return by_sysfs
        both = self._interface == "both" and _has_directory(channel)
        return Write(_irq_path(desc), str(cpu), by_sysfs if both else None)


def _has_directory(channel: Channel) -> bool:
    """Whether user space finds a channel: of two with one name the directory shows the first."""
    device = channel.device
    assert device is not None
    return device.registered and channel is next(c for c in device.channels if c.dir_name == channel.dir_name)


def _who(channel: Channel) -> str:
    relid = "without relid" if channel.relid == INVALID_RELID else str(channel.relid)
    return f"channel {relid} ({channel.irq_name or 'of an unknown class'})"


def _seat(channel: Channel) -> Seat:
    assert channel.device is not None
    return Seat(channel.device.guid, channel.target_cpu, channel.device_class.perf)


def _online_file(cpu: int, value: str) -> Write:
    return Write(f"/sys/devices/system/cpu/cpu{cpu}/online", value)


def _irq_path(desc: IrqDesc) -> str:
    return f"/proc/irq/{desc.irq}/smp_affinity_list"


def _affinity(desc: IrqDesc, mask: int) -> Write:
    return Write(_irq_path(desc), format_pbl(mask))
