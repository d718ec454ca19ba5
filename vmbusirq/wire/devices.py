"""GUIDs of synthetic devices: classes that Linux knows, classes that it never binds, instances that all machines share.

Sources: vmbus_devs in ``drivers/hv/channel_mgmt.c`` and ``include/linux/hyperv.h``, v6.10; vmbus.md 5.1 and 5.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

__all__ = [
    "CLASS_IDS",
    "DEVICE_UNKNOWN",
    "INSTANCE_IDS",
    "SUB_CHANNEL_CLASSES",
    "UNSUPPORTED_CLASS_IDS",
    "class_name",
    "device_index",
]

CLASS_IDS: Final[Mapping[str, UUID]] = {
    "ide": UUID("32412632-86cb-44a2-9b5c-50d1417354f5"),
    "scsi": UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"),
    "fc": UUID("2f9bcc4a-0069-4af3-b76b-6fd0be528cda"),
    "netvsc": UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e"),
    "netdirect": UUID("8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501"),
    "vpci": UUID("44c4f61d-4444-4400-9d52-802e27ede19f"),
    "framebuffer": UUID("da0a7802-e377-4aac-8e77-0558eb1073f8"),
    "keyboard": UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684"),
    "mouse": UUID("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a"),
    "kvp": UUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
    "timesync": UUID("9527e630-d0ae-497b-adce-e80ab0175caf"),
    "heartbeat": UUID("57164f39-9115-4e78-ab55-382f3bd5422d"),
    "shutdown": UUID("0e0b6031-5213-4934-818b-38d90ced39db"),
    "fcopy": UUID("34d14be3-dee4-41c8-9ae7-6b174977c192"),
    "vss": UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
    "balloon": UUID("525074dc-8985-46e2-8057-a307dc18a502"),
}
"""Class GUIDs by short name, in the order of vmbus_devs."""

DEVICE_UNKNOWN: Final = len(CLASS_IDS)
"""The index of every other class, and of hv_sock connections (HV_UNKNOWN)."""

UNSUPPORTED_CLASS_IDS: Final[Mapping[str, UUID]] = {
    "avma1": UUID("f8e65716-3cb3-4a06-9a60-1889c5cccab5"),
    "avma2": UUID("3375baf4-9e15-4b30-b765-67acb10d607b"),
    "rdv": UUID("276aacf4-ac15-426c-98dd-7521ad3f01fe"),
    "imc": UUID("c376c1c3-d276-48d2-90a9-c04748072c60"),
}
"""Classes that Linux never binds; RFC patch 01 drops their offers early."""

SUB_CHANNEL_CLASSES: Final = frozenset({"netvsc", "scsi", "fc"})
"""Classes whose driver asks for sub-channels (vmbus.md 5.4)."""

INSTANCE_IDS: Final[Mapping[str, tuple[UUID, ...]]] = {
    "balloon": (UUID("1eccfd72-4b41-45ef-b73a-4a6e44c12924"),),
    "heartbeat": (UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),),
    "kvp": (UUID("242ff919-07db-4180-9c2e-b86cb68c8c55"),),
    "shutdown": (UUID("b6650ff7-33bc-4840-8048-e0676786f393"),),
    "timesync": (UUID("2dd1ce17-079e-403c-b352-a1921ee207ee"),),
    "keyboard": (UUID("d34b2567-b9b6-42b9-8778-0a4ec0b955bf"),),
    "mouse": (UUID("58f75a6d-d949-4320-99e1-a2a2576d581c"),),
    "framebuffer": (UUID("5620e0c7-8062-4dce-aeb7-520c7ef76171"),),
    "scsi": (UUID("f8b3781a-1e82-4818-a1c3-63d806ec15bb"), UUID("f8b3781b-1e82-4818-a1c3-63d806ec15bb")),
    "ide": (UUID("00000000-0000-8899-0000-000000000000"), UUID("00000000-0001-8899-0000-000000000000")),
}
"""Instance GUIDs that machines share, first device first (SCSI and IDE: as Azure has them). Others differ per VM."""

_NAMES: Final = {class_id: name for name, class_id in CLASS_IDS.items()}
_INDEX: Final = {class_id: index for index, class_id in enumerate(CLASS_IDS.values())}


def class_name(class_id: UUID) -> str | None:
    """Return the short name of a class that Linux knows, None for any other."""
    return _NAMES.get(class_id)


def device_index(class_id: UUID) -> int:
    """Return a class's place in vmbus_devs, which is what the ``device`` attribute in sysfs shows."""
    return _INDEX.get(class_id, DEVICE_UNKNOWN)
