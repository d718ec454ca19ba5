"""The host's side of VMBus: a server that behaves like Hyper-V's, usable without any guest of this project.

It meets its guest in the ports, pages and memory of a :class:`Partition` only. Whatever a guest does wrong is logged
and dropped, or answered as the tables of vmbus.md 2.10 say; nothing of it raises.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final
from uuid import UUID

from vmbusirq.errors import IrqError, MachineBug
from vmbusirq.host import traffic as bulk
from vmbusirq.host.channel import HostChannel
from vmbusirq.host.connection import HostConnection
from vmbusirq.host.device import HostDevice
from vmbusirq.host.gpadl import GpadlQuota
from vmbusirq.host.hv_sock import HvSock
from vmbusirq.host.monitor import MONITORS
from vmbusirq.host.options import HostOptions
from vmbusirq.host.router import Router
from vmbusirq.host.stats import Traffic
from vmbusirq.host.throttle import Throttle
from vmbusirq.limits import RELID_MAX, RELID_MIN, SINT_VMBUS, SINTS
from vmbusirq.steps import Steps, each, run
from vmbusirq.wire.protocol import InitiateContact, Version, VersionResponse, encode, signal_connection_id

if TYPE_CHECKING:
    from vmbusirq.host.vsp.base import Vsp
    from vmbusirq.hyperv.partition import Partition
    from vmbusirq.hyperv.ports import EventPort

__all__ = ["OLDEST", "HostBus"]

REFUSALS_MAX: Final = 256
"""Messages that may wait when another refusal is added (ours): those to a SINT that nobody reads wait for ever."""
OLDEST: Final = Version.V2_4
"""Older clients want the shared interrupt page, which this host does not serve."""


class HostBus:
    """The devices of one host, and its clients.

    Args:
        partition: where the guest is; :meth:`pump` is added to it.
        version: the newest protocol version spoken; all from 2.4 up to it are.
        options: see :class:`HostOptions`.

    Attributes:
        partition, version: as given.
        options: as given; others may take their place at any time, ``replace(bus.options, modify_delay_ticks=3_000)``,
            but for the two GPADL limits, which count from the beginning.
        default: the client at SINT 2 and VTL 0, which every guest is; see :meth:`add_client` for others.
        quota: guest memory in GPADLs.
        throttle: unnecessary signals.
        hv_sock: services and connections.
        complaints: log lines about the guest.
        messages_posted: to the guest.
        execute: runs operations that are written as steps, by default at once and to their end.
    """

    def __init__(
        self, partition: Partition, *, version: Version = Version.V5_3, options: HostOptions | None = None
    ) -> None:
        self.partition: Final = partition
        self.version: Final = version
        self.options = HostOptions() if options is None else options
        self.quota: Final = GpadlQuota(self.options.quota(version))
        self.throttle: Final = Throttle(self)
        self.hv_sock: Final = HvSock(self)
        self.complaints = 0
        self.messages_posted = 0
        self.execute: Callable[[Steps[None]], object] = run
        self._devices: list[HostDevice] = []
        self._fixed: dict[HostConnection, Counter[int]] = {}
        self._due: list[tuple[int, int, Callable[[], object]]] = []
        self._due_made = 0
        self._pumping = False
        self._port_channels: dict[int, tuple[HostChannel, int]] = {}
        self._signalled: dict[EventPort, None] = {}
        self._unfinished: dict[HostChannel, None] = {}
        self._router: Final = Router(self)
        self.default: Final = self.add_client(SINT_VMBUS, 0)
        partition.add_pump(self.pump)

    # ---- clients

    def add_client(self, sint: int, vtl: int = 0) -> HostConnection:
        """Serve another client, told apart by its SINT and VTL; devices are added to it by name.

        Raises:
            IrqError(EINVAL): no such SINT, or a VTL beyond 15.
            IrqError(EEXIST): it is served already.
        """
        if not (0 < sint < SINTS and 0 <= vtl < 16):
            raise IrqError(errno.EINVAL, f"host: no client can be at sint {sint}, vtl {vtl} (EINVAL)")
        connection = HostConnection(self, sint, vtl)
        self._router.add(connection)
        self._fixed[connection] = Counter()
        return connection

    @property
    def connections(self) -> tuple[HostConnection, ...]:
        """All clients, connected or not, the default one first."""
        return self._router.connections

    def speaks(self, version: Version) -> bool:
        """Return whether the host knows a version."""
        return OLDEST <= version <= self.version

    def refuse(self, message: InitiateContact, vp: int) -> None:
        """Answer that a version, or a SINT, is not supported: at the SINT that was named, if there can be one."""
        if self.partition.messages_waiting >= REFUSALS_MAX:
            self.complain("refusal lost: nobody reads those that wait")
        else:
            self.post(encode(VersionResponse(0), None), vp, message.msg_sint)

    def client_gone(self, connection: HostConnection) -> None:
        """UNLOAD, or a new contact: devices forget what was agreed on, and hv_sock connections end."""
        for device in tuple(self._devices):
            if device.connection is connection:
                self.run_vsp(device.primary, device.vsp.released)
                if device.vsp.closes_for_good:
                    self._drop_device(device)

    # ---- devices

    @property
    def devices(self) -> tuple[HostDevice, ...]:
        """All devices, in the order in which they were added."""
        return tuple(self._devices)

    @property
    def channels(self) -> Mapping[int, HostChannel]:
        """The default client's open channels by relid."""
        return {relid: channel for relid, channel in self.default.relids.items() if channel.is_open}

    def add_device(
        self,
        vsp: Vsp,
        instance: UUID,
        *,
        name: str,
        relid: int | None = None,
        sub_relids: Sequence[int] = (),
        monitor: int | None = None,
        connection: HostConnection | None = None,
    ) -> HostDevice:
        """Add a device, and offer it if the client has asked for offers (hot add).

        Args:
            vsp: its host end, of this device only.
            instance: the instance GUID.
            name: for people.
            relid: kept for the primary; None: the lowest that is free when it is offered.
            sub_relids: the same for its sub-channels.
            monitor: monitor id of the primary; it takes effect if the client has monitor pages.
            connection: whose device, if not the default client's.
        Raises:
            IrqError(EINVAL): no such relid or monitor id.
            IrqError(EEXIST): the relid is kept for another channel, or the client has a device with that instance.
        """
        client = self.default if connection is None else connection
        self._check_new(client, instance, [*([] if relid is None else [relid]), *sub_relids], monitor)
        device = HostDevice(self, client, vsp, instance, name=name, relid=relid, sub_relids=sub_relids, monitor=monitor)
        vsp.device = device
        self._devices.append(device)
        self._fixed[client].update(device.fixed_relids)
        if not client.reoffer(device.primary):
            client.offer(device.primary)
        return device

    def _check_relids(self, client: HostConnection, relids: list[int]) -> None:
        for number in relids:
            if not isinstance(number, int) or not RELID_MIN <= number <= RELID_MAX:
                raise IrqError(errno.EINVAL, f"host: relid {number}: relids are {RELID_MIN} to {RELID_MAX} (EINVAL)")
            if self._fixed[client][number] or relids.count(number) > 1:
                raise IrqError(errno.EEXIST, f"host: relid {number} is kept for {self._owner(client, number)} (EEXIST)")

    def _check_new(self, client: HostConnection, instance: UUID, relids: list[int], monitor: int | None) -> None:
        self._check_relids(client, relids)
        if monitor is not None and not 0 <= monitor < MONITORS:
            raise IrqError(errno.EINVAL, f"host: monitor id {monitor}: they are 0 to {MONITORS - 1} (EINVAL)")
        if self.find_instance(client, instance) is not None:
            raise IrqError(errno.EEXIST, f"host: instance {instance} is a device already (EEXIST); remove it first")

    def _owner(self, client: HostConnection, relid: int) -> str:
        """Return the name of the device that a relid is kept for."""
        own = (device for device in self._devices if device.connection is client and relid in device.fixed_relids)
        device = next(own, None)
        return "another channel" if device is None else f"{device.vsp.class_name} {device.name}"

    def keep_relid(self, connection: HostConnection, relid: int | None) -> None:
        """Keep a relid for one more channel of a device; errors as :meth:`add_device`. None: nothing to keep."""
        if relid is not None:
            self._check_relids(connection, [relid])
            self._fixed[connection][relid] += 1

    def find_instance(self, connection: HostConnection, instance: UUID) -> HostDevice | None:
        """Return a client's device by its instance GUID."""
        found = (item for item in self._devices if item.instance == instance and item.connection is connection)
        return next(found, None)

    def remove_device(self, device: HostDevice) -> None:
        """Take a device away: all its channels are rescinded. One that is gone already stays so."""
        if device not in self._devices:
            return
        self._drop_device(device)
        for channel in (*device.sub_channels, device.primary):
            device.connection.revoke(channel)
        self.run_vsp(device.primary, device.vsp.released)

    def _drop_device(self, device: HostDevice) -> None:
        self._devices.remove(device)
        self._fixed[device.connection].subtract(device.fixed_relids)

    def rescind(self, relid: int, connection: HostConnection | None = None) -> None:
        """Rescind a channel: of a primary the whole device, of a sub-channel this one alone. ENOENT: not offered."""
        client = self.default if connection is None else connection
        channel = client.channel(relid)
        if channel is None or not channel.is_offered:
            raise IrqError(errno.ENOENT, f"host: no channel {relid} is offered (ENOENT)")
        if channel.sub_channel_index:
            client.revoke(channel)
        else:
            self.remove_device(channel.device)

    def fixed_relids(self, connection: HostConnection) -> Counter[int]:
        """Return the relids that are kept for devices."""
        return +self._fixed[connection]

    def devices_in_offer_order(self, connection: HostConnection) -> list[HostDevice]:
        """Return a client's devices as REQUESTOFFERS offers them."""
        own = [device for device in self._devices if device.connection is connection]
        return own if self.options.offer_order is None else sorted(own, key=self.options.offer_order)

    # ---- traffic

    def send(self, relid: int, packets: int = 1, payload: int = 64) -> int:
        """Write patterned packets into a channel's in ring and signal by the ring's rule.

        Returns:
            Packets written: fewer than asked for when the ring is full, none when the channel's worker has failed.
        Raises:
            IrqError: ENOENT no such open channel, EINVAL a negative number, EMSGSIZE a payload no packet can hold.
        """
        self.pump()  # a host does what it was told before it does anything new
        return bulk.send(self._open_channel(relid), packets, payload)

    def signal(self, relid: int) -> bool:
        """Signal a channel without writing to it; return True if its flag was newly set.

        ENXIO: the target's SynIC is off.
        """
        self.pump()
        return bulk.signal(self._open_channel(relid))

    def drive(self, traffic: Sequence[Traffic], seed: int) -> int:
        """Deliver bulk traffic in C, in an order drawn from ``seed``; return the vectors taken.

        Raises:
            IrqError: ENOENT no such channel, EINVAL bad numbers, EAGAIN nobody reads a full ring, ENXIO a target is
                off, EIO a guest's ring is broken.
        """
        self.pump()
        lines = [(item, self._open_channel(item.relid)) for item in traffic]
        if any(channel.unanswered for _, channel in lines):  # let the guest answer: C does not tell answers apart
            self.partition.settle()
        return bulk.drive(self.partition.core, lines, seed)

    def _open_channel(self, relid: int) -> HostChannel:
        channel = self.default.channel(relid)
        if channel is None or not channel.is_open:
            known = ", ".join(map(str, sorted(self.channels))) or "none"
            borders = "" if RELID_MIN <= relid <= RELID_MAX else f" (relids are {RELID_MIN} to {RELID_MAX})"
            raise IrqError(errno.ENOENT, f"host: no open channel {relid}{borders} (ENOENT); open: {known}")
        return channel

    # ---- messages out

    def post_message(self, payload: bytes, vp: int = 0) -> None:
        """Post any control message to SINT 2 of ``vp``; errors as :meth:`Partition.post_to_guest`."""
        self.partition.post_to_guest(vp, payload)
        self.messages_posted += 1

    def post(self, payload: bytes, vp: int, sint: int) -> None:
        """Post a message to where the guest wants it; a place that does not exist loses it."""
        try:
            self.partition.post_to_guest(vp, payload, sint=sint)
        except IrqError as error:
            self.complain(f"message lost: {error}")
        else:
            self.messages_posted += 1

    @property
    def messages_waiting(self) -> int:
        """Messages that no slot had room for yet."""
        return self.partition.messages_waiting

    # ---- running

    def pump(self) -> bool:
        """Do what is due, take the guest's messages in order, serve signalled channels; True if there was anything."""
        if self._pumping:
            return False  # a VSP's own call came back here
        self._pumping = True
        try:
            moved = self._run_due()  # it was due before what lies in the port was posted, or at the same time
            moved |= self._router.receive()
            return self._serve() or moved
        finally:
            self._pumping = False

    def message_steps(self) -> Steps[None]:
        """Yield the steps of taking one message of the guest and doing at once what it asks for."""
        begun: list[Steps[None]] = []
        self.take_message(begun.append)
        yield from each(*begun)

    def take_message(self, execute: Callable[[Steps[None]], object]) -> None:
        """Take one message of the guest; what it asks for is handed to ``execute``, to be done when that likes."""
        ordinary, self.execute = self.execute, execute
        try:
            self._router.receive_one()
        finally:
            self.execute = ordinary

    @property
    def next_message_type(self) -> int | None:
        """The type of the message that is taken next, None if there is none."""
        return self._router.next_type

    @property
    def unread_messages(self) -> int:
        """Messages of the guest that were not taken yet."""
        return self._router.waiting

    def later(self, ticks: int, work: Callable[[], object]) -> None:
        """Do something in :meth:`pump` when so many ticks have passed, at once for 0; what is due together in order."""
        if ticks == 0:
            work()
            return
        when = self.partition.clock.now + ticks
        heappush(self._due, (when, self._due_made, work))
        self._due_made += 1
        self.partition.clock.call_at(when, lambda: None)  # so that an idle machine goes there

    def _run_due(self) -> bool:
        moved = False
        while self._due and self._due[0][0] <= self.partition.clock.now:
            heappop(self._due)[2]()
            moved = True
        return moved

    def _serve(self) -> bool:
        """Serve the channels that were signalled, and those that had too much to do."""
        self._collect_events()
        moved = bool(self._signalled)
        channels, self._unfinished = self._unfinished, {}
        signalled, self._signalled = self._signalled, {}
        for port in signalled:
            channel = self._port_channels.get(port.id, (None, 0))[0]
            if channel is not None and channel.rings is not None:
                self._note_signal(channel)
                channels[channel] = None
        for channel in channels:
            rings = channel.rings
            if rings is not None and not channel.failure:
                moved |= rings.poll()
                if rings.unfinished and channel.rings is rings:
                    self._unfinished[channel] = None
        return moved

    def _note_signal(self, channel: HostChannel) -> None:
        """Count a signal that tells nothing. The hypervisor's own, of monitored channels, are not the guest's fault."""
        if channel.monitor is not None or channel.rings is None or channel.rings.has_reason_to_signal():
            return
        channel.unnecessary_signals += 1
        if self.throttle.note():
            self.complain("too many unnecessary signals: the guest is suspended")

    def _collect_events(self) -> None:
        for port in self.partition.take_events():
            self._signalled[port] = None

    # ---- for the rooms below

    def open_port(self, channel: HostChannel, signal_id: int) -> None:
        """Let the guest signal a channel. EEXIST, EINVAL: a connection id that the guest has chosen cannot be used."""
        client = channel.device.connection
        port_id = signal_connection_id(channel.relid, client.sint, client.vtl)
        self.partition.create_event_port(port_id)
        try:
            self.partition.connect(signal_id, port_id)
        except IrqError:
            self.partition.delete_port(port_id)
            raise
        self._port_channels[port_id] = (channel, signal_id)
        self._unfinished[channel] = None

    def close_port(self, channel: HostChannel) -> None:
        """Take a channel's port away, if it has one."""
        client = channel.device.connection
        port_id = signal_connection_id(channel.relid, client.sint, client.vtl)
        owner, signal_id = self._port_channels.get(port_id, (None, 0))
        if owner is not channel:
            return
        self._collect_events()  # deleting a port may forget what others were signalled for
        del self._port_channels[port_id]
        self.partition.disconnect(signal_id)
        self.partition.delete_port(port_id)

    def open_message_port(self, connection: HostConnection, connection_id: int) -> None:
        """Give a client of 5.0 or later a connection of its own to post to."""
        self._router.open_port(connection, connection_id)

    def close_message_port(self, connection: HostConnection) -> None:
        """Take it away; one that is not there stays so."""
        self._router.close_port(connection)

    def run_vsp(self, channel: HostChannel, work: Callable[[], None]) -> None:
        """Call a VSP. What it raises ends the channel's worker, not the host."""
        try:
            work()
        except MachineBug:
            raise
        except Exception as error:
            channel.fail(f"{channel.device.vsp.class_name}: {type(error).__name__}: {error}")

    def complain(self, text: str) -> None:
        """Log what the guest did."""
        self.complaints += 1
        self.options.log(text)
