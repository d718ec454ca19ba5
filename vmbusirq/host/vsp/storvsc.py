"""The host's end of storage controllers: initialization and sub-channels are real, commands are opaque (vmbus.md 5.4).

Every packet that wants a completion gets one under its own transaction id; what cannot be served gets an error status.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from vmbusirq.host.vsp.base import Vsp
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.packet import COMPLETION, COMPLETION_REQUESTED, Packet
from vmbusirq.wire.record import PayloadError
from vmbusirq.wire.vstor import (
    LINUX_VERSIONS,
    STATUS_INVALID_DEVICE_STATE,
    STATUS_INVALID_PARAMETER,
    STATUS_REVISION_MISMATCH,
    ChannelProperties,
    Operation,
    ProtocolVersion,
    StorFlags,
    SubChannelCount,
    VstorPacket,
)

if TYPE_CHECKING:
    from vmbusirq.host.channel import HostChannel

__all__ = ["InitState", "StorvscVsp"]

MAX_TRANSFER_BYTES: Final = 0x40000


class InitState(IntEnum):
    """How far the guest has come."""

    IDLE = 0
    BEGUN = 1
    VERSION = 2
    PROPERTIES = 3
    READY = 4


class StorvscVsp(Vsp):
    """A controller.

    Args:
        class_name: ``ide``, ``scsi`` or ``fc``.
        max_sub_channels: offered at most; IDE has none.
        versions: of the protocol that it speaks, major number in the high byte.
        execute: makes the answer to a command out of its 52 opaque bytes; the command itself goes back without it.

    Attributes:
        state: how far the primary has been initialized.
        version: that was agreed on, 0 before.
        sub_relids: sub-channels that were offered.
        commands: completed.
        refused: packets completed with an error status.
        dropped: packets that meant nothing, or wanted no completion.
    """

    def __init__(
        self,
        class_name: str = "scsi",
        max_sub_channels: int = 0,
        *,
        versions: tuple[int, ...] = LINUX_VERSIONS,
        execute: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self.class_name = class_name
        self.if_type = CLASS_IDS[class_name]
        self.max_sub_channels = 0 if class_name == "ide" else max_sub_channels
        self._versions = versions
        self._execute = execute
        self.commands = self.refused = self.dropped = 0
        self.released()

    def released(self) -> None:
        """Forget the initialization."""
        self.state = InitState.IDLE
        self.version = 0
        self.sub_relids: list[int] = []

    def opened(self, channel: HostChannel) -> None:
        """The primary is to be initialized."""
        if channel.sub_channel_index == 0:
            self.released()

    def closed(self, channel: HostChannel) -> None:
        """Without its primary the controller is not initialized."""
        if channel.sub_channel_index == 0:
            self.released()

    def packet(self, channel: HostChannel, packet: Packet) -> None:
        """Serve a packet."""
        try:
            request = VstorPacket.from_bytes(packet.payload)
        except PayloadError:
            self.dropped += 1
            return
        answer = self._serve(channel, request)
        self.refused += answer.status != 0
        if packet.flags & COMPLETION_REQUESTED:
            channel.write(Packet(answer.to_bytes(), COMPLETION, trans_id=packet.trans_id))
        else:
            self.dropped += 1

    def _serve(self, channel: HostChannel, request: VstorPacket) -> VstorPacket:
        if request.operation == Operation.EXECUTE_SRB:
            return self._command(request)
        steps = {
            Operation.BEGIN_INITIALIZATION: (InitState.IDLE, InitState.BEGUN, self._accept),
            Operation.QUERY_PROTOCOL_VERSION: (InitState.BEGUN, InitState.VERSION, self._choose),
            Operation.QUERY_PROPERTIES: (InitState.VERSION, InitState.PROPERTIES, self._describe),
            Operation.FCHBA_DATA: (InitState.PROPERTIES, InitState.PROPERTIES, self._accept),
            Operation.END_INITIALIZATION: (InitState.PROPERTIES, InitState.READY, self._accept),
        }
        try:
            operation = Operation(request.operation)
        except ValueError:
            return request.completion(STATUS_INVALID_PARAMETER)
        if channel.sub_channel_index:
            return request.completion(STATUS_INVALID_DEVICE_STATE)
        if operation is Operation.CREATE_SUB_CHANNELS:
            return self._create_sub_channels(channel, request)
        if operation not in steps:
            return request.completion(STATUS_INVALID_PARAMETER)
        before, after, serve = steps[operation]
        if self.state is not before:
            return request.completion(STATUS_INVALID_DEVICE_STATE)
        answer = serve(channel, request)
        if not answer.status:
            self.state = after
        return answer

    def _accept(self, _channel: HostChannel, request: VstorPacket) -> VstorPacket:
        return request.completion()

    def _choose(self, _channel: HostChannel, request: VstorPacket) -> VstorPacket:
        version = ProtocolVersion.from_bytes(request.body).major_minor
        if version not in self._versions:
            return request.completion(STATUS_REVISION_MISMATCH)
        self.version = version
        return request.completion()

    def _describe(self, channel: HostChannel, request: VstorPacket) -> VstorPacket:
        most = 0 if self.class_name == "ide" else channel.device.max_sub_channels
        flags = StorFlags.SUPPORTS_MULTI_CHANNEL if most else StorFlags.NONE
        return request.completion(body=ChannelProperties(most, int(flags), MAX_TRANSFER_BYTES).to_bytes())

    def _create_sub_channels(self, channel: HostChannel, request: VstorPacket) -> VstorPacket:
        """Offer what is asked for, as far as the controller has it; before or after the end of the initialization."""
        if self.state < InitState.PROPERTIES:
            return request.completion(STATUS_INVALID_DEVICE_STATE)
        if self.class_name == "ide":
            return request.completion(STATUS_INVALID_PARAMETER)
        wanted = SubChannelCount.from_bytes(request.body).sub_channel_count
        self.sub_relids += channel.device.offer_sub_channels(wanted)
        return request.completion()

    def _command(self, request: VstorPacket) -> VstorPacket:
        if self.state is not InitState.READY:
            return request.completion(STATUS_INVALID_DEVICE_STATE)
        self.commands += 1
        return request.completion(body=None if self._execute is None else self._execute(request.body))

    def enumerate_bus(self, channel: HostChannel) -> None:
        """Ask the guest to look for devices anew: unsolicited, id 0. ENOTCONN: the channel is closed."""
        channel.write(Packet(VstorPacket(int(Operation.ENUMERATE_BUS), flags=0).to_bytes()))
