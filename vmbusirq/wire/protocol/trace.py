"""What the kernel's tracepoints say about a control message (``drivers/hv/hv_trace.h``, v6.10; vmbus.md 8.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vmbusirq.wire.protocol.ids import signed32
from vmbusirq.wire.protocol.layout import MessageType
from vmbusirq.wire.protocol.message import Message

__all__ = ["TraceEvent", "message_trace", "relid_trace", "trace_event"]


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event of system ``hyperv``: its name, and the text that follows ``name: ``."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def _offer(m: Any) -> str:
    return (
        f"child_relid {m.child_relid:#x}, monitorid {m.monitorid:#x}, is_dedicated {m.is_dedicated_interrupt:d}, "
        f"connection_id {m.connection_id:#x}, if_type {m.if_type}, if_instance {m.if_instance}, "
        f"chn_flags {m.chn_flags:#x}, mmio_megabytes {m.mmio_megabytes:d}, sub_channel_index {m.sub_channel_index:d}"
    )


_RECEIVED: Final[Mapping[MessageType, tuple[str, Callable[[Any], str]]]] = {
    MessageType.OFFERCHANNEL: ("vmbus_onoffer", _offer),
    MessageType.RESCIND_CHANNELOFFER: ("vmbus_onoffer_rescind", lambda m: f"child_relid {m.child_relid:#x}"),
    MessageType.OPENCHANNEL_RESULT: (
        "vmbus_onopen_result",
        lambda m: f"child_relid {m.child_relid:#x}, openid {signed32(m.openid):d}, status {signed32(m.status):d}",
    ),
    MessageType.GPADL_CREATED: (
        "vmbus_ongpadl_created",
        lambda m: (
            f"child_relid {m.child_relid:#x}, gpadl {m.gpadl:#x}, creation_status {signed32(m.creation_status):d}"
        ),
    ),
    MessageType.GPADL_TORNDOWN: ("vmbus_ongpadl_torndown", lambda m: f"gpadl {m.gpadl:#x}"),
    MessageType.MODIFYCHANNEL_RESPONSE: (
        "vmbus_onmodifychannel_response",
        lambda m: f"child_relid {m.child_relid:#x}, status {signed32(m.status):d}",
    ),
    MessageType.VERSION_RESPONSE: (
        "vmbus_onversion_response",
        lambda m: f"version_supported {m.version_supported:d}",
    ),
}

# The text up to ", ret %d", which every event of a sent message ends with; vmbus_request_offers has nothing before it.
_SENT: Final[Mapping[MessageType, tuple[str, Callable[[Any], str]]]] = {
    MessageType.REQUESTOFFERS: ("vmbus_request_offers", lambda _: "sending"),
    MessageType.OPENCHANNEL: (
        "vmbus_open",
        lambda m: (
            f"sending child_relid {m.child_relid:#x}, openid {signed32(m.openid):d}, "
            f"gpadlhandle {m.ringbuffer_gpadlhandle:#x}, target_vp {m.target_vp:#x}, "
            f"offset {m.downstream_ringbuffer_pageoffset:#x},"
        ),
    ),
    MessageType.CLOSECHANNEL: ("vmbus_close_internal", lambda m: f"sending child_relid {m.child_relid:#x},"),
    MessageType.GPADL_HEADER: (
        "vmbus_establish_gpadl_header",
        lambda m: (
            f"sending child_relid {m.child_relid:#x}, gpadl {m.gpadl:#x}, "
            f"range_buflen {m.range_buflen:d} rangecount {m.rangecount:d},"
        ),
    ),
    MessageType.GPADL_BODY: (
        "vmbus_establish_gpadl_body",
        lambda m: f"sending msgnumber {signed32(m.msgnumber):d}, gpadl {m.gpadl:#x},",
    ),
    MessageType.GPADL_TEARDOWN: (
        "vmbus_teardown_gpadl",
        lambda m: f"sending child_relid {m.child_relid:#x}, gpadl {m.gpadl:#x},",
    ),
    MessageType.INITIATE_CONTACT: (
        "vmbus_negotiate_version",
        lambda m: (
            f"sending vmbus_version_requested {signed32(m.version):d}, target_vcpu {m.target_vcpu:#x}, "
            f"pages {m.interrupt_page:x}:{m.monitor_page1:x}:{m.monitor_page2:x},"
        ),
    ),
    MessageType.RELID_RELEASED: ("vmbus_release_relid", lambda m: f"sending child_relid {m.child_relid:#x},"),
    MessageType.TL_CONNECT_REQUEST: (
        "vmbus_send_tl_connect_request",
        lambda m: f"sending guest_endpoint_id {m.guest_endpoint_id}, host_service_id {m.host_service_id},",
    ),
    MessageType.MODIFYCHANNEL: (
        "vmbus_send_modifychannel",
        lambda m: f"binding child_relid {m.child_relid:#x} to target_vp {m.target_vp:#x},",
    ),
}


def trace_event(message: Message, ret: int = 0) -> TraceEvent | None:
    """Return the event that a Linux guest emits when it handles or has sent a message; None if it has none.

    Args:
        message: handled or sent.
        ret: what sending returned, 0 or -errno; not part of events of received messages.
    """
    if message.msgtype in _RECEIVED:
        name, text = _RECEIVED[message.msgtype]
        return TraceEvent(name, text(message))
    if message.msgtype in _SENT:
        name, text = _SENT[message.msgtype]
        return TraceEvent(name, f"{text(message)} ret {ret}")
    return None


def message_trace(name: str, msgtype: int) -> TraceEvent:
    """Return vmbus_on_msg_dpc (in the tasklet, any type) or vmbus_on_message (in the work item)."""
    return TraceEvent(name, f"msgtype={msgtype:d}")


def relid_trace(name: str, relid: int) -> TraceEvent:
    """Return vmbus_chan_sched, vmbus_setevent or vmbus_on_event."""
    return TraceEvent(name, f"relid {relid:#x}")
