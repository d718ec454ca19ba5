"""Ports and connections of one partition: where the guest's HvPostMessage and HvSignalEvent arrive (TLFS; synic.md 7).

The receiver makes a port; a connection id leads a sender to it. The host's ports take messages and signals out of the
machine; ports of a guest's lead to a SINT of one of its VPs. Connections lie in a table in C too
(``csrc/hyperv/connection.c``), so that a channel signals without Python.
"""

from __future__ import annotations

import errno
from collections import deque
from heapq import heappop, heappush
from typing import Final, TypeAlias

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import Core
from vmbusirq.errors import IrqError, check
from vmbusirq.hyperv.hypercall import VP_ANY, HvStatus
from vmbusirq.hyperv.messages import GuestMessagePort, MessageQueues
from vmbusirq.hyperv.profiles import Profile
from vmbusirq.hyperv.synic import Synic
from vmbusirq.limits import MSG_PAYLOAD, SINT_FLAGS, SINTS

__all__ = ["ID_MAX", "MESSAGE_BUFFERS", "EventPort", "GuestEventPort", "MessagePort", "Ports"]

ID_MAX: Final[int] = lib.VI_CONNECTION_ID_MAX
"""Port and connection ids have 24 bits; connection 0 is none."""
MESSAGE_BUFFERS: Final = 16
"""Guest message buffers of a port (TLFS)."""
_TYPE_MAX: Final = (1 << 31) - 1  # types with bit 31 are the hypervisor's own


class MessagePort:
    """Messages of the guest, oldest first; ``len()`` is how many wait.

    Attributes:
        id: its port id.
        buffers: how many messages may wait.
    """

    __slots__ = ("_waiting", "buffers", "id")

    def __init__(self, port_id: int, buffers: int) -> None:
        self.id: Final = port_id
        self.buffers: Final = buffers
        self._waiting: deque[bytes] = deque()

    @property
    def first(self) -> bytes | None:
        """The oldest payload, which stays there; None if there is none."""
        return self._waiting[0] if self._waiting else None

    def receive(self) -> bytes | None:
        """Return the oldest payload, None if there is none; its buffer is free again."""
        return self._waiting.popleft() if self._waiting else None

    def __len__(self) -> int:
        return len(self._waiting)


class EventPort:
    """One event flag of the host.

    Attributes:
        id: its port id.
        signals: how often the host found it signalled; signals that came in between are one.
    """

    __slots__ = ("id", "index", "signals")

    def __init__(self, port_id: int, index: int) -> None:
        self.id: Final = port_id
        self.index: Final = index
        self.signals = 0


class GuestEventPort:
    """An event port of a guest's: some flags of one SINT of one VP (TLFS; synic.md 7.1).

    Attributes:
        id: its port id.
        vp: the target; another one from the next signal on when it is set, and a flag that is set stays where it is.
            VP_ANY: the lowest VP that takes it.
        sint: which SINT.
        base_flag, flag_count: a sender's flag f is flag ``base_flag + f``, for f below the count.
    """

    __slots__ = ("_core", "_synic", "base_flag", "flag_count", "id", "sint", "vp")

    def __init__(self, core: Core, synic: Synic, port_id: int, vp: int, sint: int, flags: range) -> None:
        self._core = core
        self._synic = synic
        self.id: Final = port_id
        self.vp = vp
        self.sint: Final = sint
        self.base_flag: Final = flags.start
        self.flag_count: Final = len(flags)

    def signal(self, flag: int) -> HvStatus:
        """Set a flag. INVALID_PARAMETER: it has no such one; INVALID_VP_INDEX, INVALID_SYNIC_STATE: nobody takes it."""
        if not 0 <= flag < self.flag_count:
            return HvStatus.INVALID_PARAMETER
        targets = range(self._core.nr_cpus) if self.vp == VP_ANY else [self.vp]
        if not all(0 <= vp < self._core.nr_cpus for vp in targets):
            return HvStatus.INVALID_VP_INDEX
        for vp in targets:
            try:
                self._synic.signal(vp, self.base_flag + flag, self.sint)
            except IrqError:
                continue  # that VP's SynIC or page is off, or its SINT masked
            return HvStatus.SUCCESS
        return HvStatus.INVALID_VP_INDEX if self.vp == VP_ANY else HvStatus.INVALID_SYNIC_STATE


Port: TypeAlias = MessagePort | EventPort | GuestMessagePort | GuestEventPort


class Ports:
    """All ports of a partition, and what is connected to them.

    Args:
        core: whose.
        queues: where messages to the guest wait.
        synic: where its event flags are.
        profile: what differs between implementations.
    """

    def __init__(self, core: Core, queues: MessageQueues, synic: Synic, profile: Profile) -> None:
        self._core = core
        self._queues = queues
        self._synic = synic
        self._profile = profile
        self._ports: dict[int, Port] = {}
        self._connections: dict[int, Port] = {}
        self._by_index: dict[int, EventPort] = {}
        self._free_indices: list[int] = []
        self._signalled: set[EventPort] = set()
        self._words = ffi.new("uint64_t[]", lib.VI_EVENT_PORT_WORDS)

    # ---- the receiver's side

    def create_message_port(self, port_id: int, buffers: int) -> MessagePort:
        """Make a port; errors as :meth:`Partition.create_message_port`."""
        what = self._check_new(port_id)
        if buffers < 1:
            raise IrqError(errno.EINVAL, f"{what} with {buffers} buffers: it needs one at least (EINVAL)")
        port = MessagePort(port_id, buffers)
        self._ports[port_id] = port
        return port

    def create_event_port(self, port_id: int) -> EventPort:
        """Make a port; errors as :meth:`Partition.create_event_port`."""
        what = self._check_new(port_id)
        if len(self._by_index) == lib.VI_EVENT_PORTS:
            raise IrqError(errno.ENOSPC, f"{what}: there are {lib.VI_EVENT_PORTS} event ports (ENOSPC); delete one")
        port = EventPort(port_id, heappop(self._free_indices) if self._free_indices else len(self._by_index))
        self._ports[port_id] = self._by_index[port.index] = port
        return port

    def create_guest_message_port(self, port_id: int, vp: int, sint: int, buffers: int | None) -> GuestMessagePort:
        """Make a port; errors as :meth:`Partition.create_guest_message_port`."""
        what = self._check_target(port_id, vp, sint)
        if buffers is not None and buffers < 1:
            raise IrqError(errno.EINVAL, f"{what} with {buffers} buffers: it needs one at least (EINVAL)")
        port = GuestMessagePort(self._queues, port_id, vp, sint, buffers)
        self._ports[port_id] = port
        return port

    def create_guest_event_port(
        self, port_id: int, vp: int, sint: int, base_flag: int, flag_count: int
    ) -> GuestEventPort:
        """Make a port; errors as :meth:`Partition.create_guest_event_port`."""
        what = self._check_target(port_id, vp, sint)
        if base_flag < 0 or flag_count < 1 or base_flag + flag_count > SINT_FLAGS:
            raise IrqError(
                errno.EINVAL, f"{what} with {flag_count} flags from {base_flag}: a SINT has {SINT_FLAGS} (EINVAL)"
            )
        flags = range(base_flag, base_flag + flag_count)
        port = GuestEventPort(self._core, self._synic, port_id, vp, sint, flags)
        self._ports[port_id] = port
        return port

    def delete_port(self, port_id: int) -> None:
        """Delete a port and what waits in it; errors as :meth:`Partition.delete_port`."""
        port = self._find(port_id, f"cannot delete port {port_id:#x}")
        for connection_id, target in self._connections.items():
            if target is port and isinstance(port, EventPort):
                lib.vi_redirect_event(self._core.handle, connection_id, lib.VI_EVENT_PORT_NONE)
        if isinstance(port, EventPort):
            check(lib.vi_close_event_port(self._core.handle, port.index), f"event port {port_id:#x} is lost")
            self._signalled.discard(port)
            del self._by_index[port.index]
            heappush(self._free_indices, port.index)
        if isinstance(port, GuestMessagePort):
            for vp in range(self._core.nr_cpus):  # its target may have been another one
                self._queues.withdraw(vp, port.sint, port.buffers)
        del self._ports[port_id]

    def connect(self, connection_id: int, port_id: int) -> None:
        """Let an id lead to a port; errors as :meth:`Partition.connect`."""
        what = f"cannot connect {connection_id:#x} to port {port_id:#x}"
        if not 0 < connection_id <= ID_MAX:
            raise IrqError(errno.EINVAL, f"partition: {what}: connection ids are 1 to {ID_MAX:#x} (EINVAL)")
        port = self._find(port_id, what)
        index = port.index if isinstance(port, EventPort) else lib.VI_EVENT_PORT_NONE
        why = "it is connected already; disconnect it first" if connection_id in self._connections else "too many are"
        check(lib.vi_connect_event(self._core.handle, connection_id, index), f"partition: {what}: {why}")
        self._connections[connection_id] = port

    def disconnect(self, connection_id: int) -> None:
        """Take a connection away; errors as :meth:`Partition.disconnect`."""
        if self._connections.pop(connection_id, None) is None:
            raise IrqError(errno.ENOENT, f"partition: cannot disconnect {connection_id:#x}: it is not (ENOENT)")
        check(lib.vi_disconnect_event(self._core.handle, connection_id), f"connection {connection_id:#x} is lost")

    def take_events(self) -> list[EventPort]:
        """Return the ports that were signalled since the last call, ascending by id."""
        self._collect()
        found = sorted(self._signalled, key=lambda port: port.id)
        self._signalled.clear()
        for port in found:
            port.signals += 1
        return found

    def _collect(self) -> None:
        if not lib.vi_take_events(self._core.handle, self._words):
            return
        for number, word in enumerate(self._words):
            while word:
                bit = word & -word
                port = self._by_index.get(number * 64 + bit.bit_length() - 1)
                if port is not None:  # who uses the table in C by himself may signal what is no port here
                    self._signalled.add(port)
                word ^= bit

    def _check_new(self, port_id: int) -> str:
        what = f"partition: cannot create port {port_id:#x}"
        if not 0 <= port_id <= ID_MAX:
            raise IrqError(errno.EINVAL, f"{what}: port ids are 0 to {ID_MAX:#x} (EINVAL)")
        if port_id in self._ports:
            raise IrqError(errno.EEXIST, f"{what}: there is one (EEXIST); delete it first")
        return what

    def _check_target(self, port_id: int, vp: int, sint: int) -> str:
        what = self._check_new(port_id)
        if not (0 <= vp < self._core.nr_cpus or vp == VP_ANY) or not 0 < sint < SINTS:
            raise IrqError(
                errno.EINVAL,
                f"{what} for sint {sint} of vp {vp}: SINTs are 1 to {SINTS - 1}, as 0 has the intercepts, and VPs "
                f"0 to {self._core.nr_cpus - 1} (EINVAL)",
            )
        return what

    def _find(self, port_id: int, what: str) -> Port:
        if port_id not in self._ports:
            raise IrqError(errno.ENOENT, f"partition: {what}: there is no such port (ENOENT)")
        return self._ports[port_id]

    # ---- the sender's side

    def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """HvPostMessage: as :meth:`Partition.hv_post_message`."""
        if not 0 < message_type <= _TYPE_MAX or len(payload) > MSG_PAYLOAD:
            return HvStatus.INVALID_PARAMETER
        port = self._connections.get(connection_id)
        if port is None:
            return HvStatus.INVALID_CONNECTION_ID
        if self._ports.get(port.id) is not port:
            return HvStatus.INVALID_PORT_ID
        if isinstance(port, GuestMessagePort):
            return self._post_to_guest(port, message_type, bytes(payload))
        if not isinstance(port, MessagePort):
            return HvStatus.INVALID_PORT_ID
        if len(port) >= port.buffers:
            return HvStatus.INSUFFICIENT_BUFFERS
        port._waiting.append(bytes(payload))
        return HvStatus.SUCCESS

    def _post_to_guest(self, port: GuestMessagePort, message_type: int, payload: bytes) -> HvStatus:
        if port.vp != VP_ANY:
            if not 0 <= port.vp < self._core.nr_cpus:
                return HvStatus.INVALID_VP_INDEX
            return port.post(message_type, payload)
        takers = [vp for vp in range(self._core.nr_cpus) if self._synic.takes_messages(vp, port.sint)]
        if not takers:
            return HvStatus.INVALID_VP_INDEX
        vp = min(takers, key=lambda vp: (self._queues.waiting(vp, port.sint), vp))
        return self._queues.post(vp, port.sint, message_type, payload, origin=port.id, buffers=port.buffers)

    def signal_event(self, connection_id: int, flag: int) -> HvStatus:
        """HvSignalEvent: as :meth:`Partition.hv_signal_event`."""
        if connection_id > ID_MAX:
            return HvStatus(self._profile.wide_connection_status)
        port = self._connections.get(connection_id)
        if port is None:
            return HvStatus(self._profile.unknown_connection_status)
        if isinstance(port, GuestEventPort) and self._ports.get(port.id) is port:
            return port.signal(flag)
        return HvStatus(lib.vi_signal_event(self._core.handle, connection_id, 1 if flag else 0))
