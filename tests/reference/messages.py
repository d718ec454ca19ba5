"""Control messages a second time: layouts as text, written from vmbus.md 2.7 and 2.8, and an encoder that reads them.

One block per type: number, name, direction (G guest to host, H host to guest), first version ("any": also before there
is one), the bytes that Linux wants at least ("-": no handler, so it drops the message silently). Then one line per
form: size, what the form wants, fields as "offset name kind". Nothing is taken from the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

TEXT = """
0 INVALID - 0.13 -
  8
1 OFFERCHANNEL H 0.13 196
  196 : 8 if_type guid, 24 if_instance guid, 56 chn_flags u16, 58 mmio_megabytes u16, 60 user_def 120,\
 180 sub_channel_index u16, 182 mmio_megabytes_optional u16, 184 child_relid u32, 188 monitorid u8,\
 189 monitor_allocated u8, 190 is_dedicated_interrupt u16, 192 connection_id u32
2 RESCIND_CHANNELOFFER H 0.13 12
  12 : 8 child_relid u32
3 REQUESTOFFERS G 0.13 -
  8
4 ALLOFFERS_DELIVERED H 0.13 0
  8
5 OPENCHANNEL G 0.13 -
  148 : 8 child_relid u32, 12 openid u32, 16 ringbuffer_gpadlhandle u32, 20 target_vp u32,\
 24 downstream_ringbuffer_pageoffset u32, 28 userdata 120
  156 6.0 features 0x3 : 148 connection_id u32, 152 event_flag u16, 154 flags u16
6 OPENCHANNEL_RESULT H 0.13 20
  20 : 8 child_relid u32, 12 openid u32, 16 status u32
7 CLOSECHANNEL G 0.13 -
  12 : 8 child_relid u32
8 GPADL_HEADER G 0.13 -
  20 words : 8 child_relid u32, 12 gpadl u32, 16 range_buflen u16, 18 rangecount u16
9 GPADL_BODY G 0.13 -
  16 words : 8 msgnumber u32, 12 gpadl u32
10 GPADL_CREATED H 0.13 20
  20 : 8 child_relid u32, 12 gpadl u32, 16 creation_status u32
11 GPADL_TEARDOWN G 0.13 -
  16 : 8 child_relid u32, 12 gpadl u32
12 GPADL_TORNDOWN H 0.13 12
  12 : 8 gpadl u32
13 RELID_RELEASED G 0.13 -
  12 : 8 child_relid u32
14 INITIATE_CONTACT G any -
  40 : 8 version u32, 12 target_vcpu u32, 16 interrupt_page u64, 24 monitor_page1 u64, 32 monitor_page2 u64
  56 own features 0x8 : 40 client_id guid
15 VERSION_RESPONSE H any 16
  16 : 8 version_supported u8, 9 connection_state u8, 12 msg_conn_id u32
  20 6.0 : 16 features u32
  40 6.0 own features 0x40 : 24 monitor_page1 u64, 32 monitor_page2 u64
16 UNLOAD G 0.13 -
  8
17 UNLOAD_RESPONSE H 1.1 0
  8
18 OPEN_RESERVED_CHANNEL G 4.0 -
  28 : 8 child_relid u32, 12 target_vp u32, 16 target_sint u32, 20 ringbuffer_gpadlhandle u32,\
 24 downstream_ringbuffer_pageoffset u32
19 CLOSE_RESERVED_CHANNEL G any -
  20 : 8 child_relid u32, 12 target_vp u32, 16 target_sint u32
20 CLOSE_RESERVED_RESPONSE H 4.0 -
  12 : 8 child_relid u32
21 TL_CONNECT_REQUEST G 4.0 -
  40 : 8 guest_endpoint_id guid, 24 host_service_id guid
  56 5.2 : 40 silo_id guid
22 MODIFYCHANNEL G 4.1 -
  16 : 8 child_relid u32, 12 target_vp u32
23 TL_CONNECT_RESULT H 4.1 -
  44 : 8 guest_endpoint_id guid, 24 host_service_id guid, 40 status u32
24 MODIFYCHANNEL_RESPONSE H 5.3 16
  16 : 8 child_relid u32, 12 status u32
25 MODIFY_CONNECTION G 6.0/0x4 -
  24 : 8 monitor_page1 u64, 16 monitor_page2 u64
26 MODIFY_CONNECTION_RESPONSE H 6.0/0x4 -
  9 : 8 connection_state u8
27 PAUSE G 6.0/0x20 -
  8
28 PAUSE_RESPONSE H 6.0/0x20 -
  8
29 RESUME G 6.0/0x20 -
  8
"""

VERSIONS = {
    "0.13": 13,
    "1.1": 65537,
    "2.4": 131076,
    "3.0": 196608,
    "4.0": 262144,
    "4.1": 262145,
    "5.0": 327680,
    "5.1": 327681,
    "5.2": 327682,
    "5.3": 327683,
    "6.0": 393216,
}
"""Version numbers as vmbus.md 2.9 has them, in decimal."""

SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "guid": 16, "120": 120}


@dataclass(frozen=True)
class Place:
    """A field: offset, name, kind."""

    offset: int
    name: str
    kind: str


@dataclass(frozen=True)
class Form:
    """One length that a type can have; later forms add fields to the earlier ones."""

    size: int
    wants: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Kind:
    """One message type."""

    number: int
    name: str
    direction: str
    since: int | None
    features: int
    linux_min: int | None
    forms: tuple[Form, ...]


def read_form(line: str) -> Form:
    """Return one form of the table."""
    head, _, fields = line.partition(":")
    size, _, wants = head.strip().partition(" ")
    places = (field.split() for field in fields.split(",") if field.strip())
    return Form(int(size), wants.strip(), tuple(Place(int(offset), name, kind) for offset, name, kind in places))


def read_table() -> tuple[Kind, ...]:
    """Return the table's types in the order of their numbers."""
    kinds: list[Kind] = []
    for line in TEXT.strip("\n").splitlines():
        if line.startswith(" "):
            last = kinds.pop()
            kinds.append(Kind(**{**vars(last), "forms": (*last.forms, read_form(line))}))
            continue
        number, name, direction, since, least = line.split()
        version, _, features = since.partition("/")
        kinds.append(
            Kind(
                number=int(number),
                name=name,
                direction=direction,
                since=None if version == "any" else VERSIONS[version],
                features=int(features or "0", 16),
                linux_min=None if least == "-" else int(least),
                forms=(),
            )
        )
    return tuple(kinds)


KINDS = read_table()


def guid_bytes(value: UUID) -> bytes:
    """Return a GUID as Windows stores it, from its text."""
    first, second, third, fourth, fifth = str(value).split("-")
    swapped = b"".join(bytes.fromhex(group)[::-1] for group in (first, second, third))
    return swapped + bytes.fromhex(fourth + fifth)


def encode(kind: Kind, message: Any) -> bytes:
    """Return the bytes of a message in the longest form whose fields it has; missing bytes are zero."""
    given = [form for form in kind.forms if all(getattr(message, place.name) is not None for place in form.places)]
    out = bytearray(given[-1].size)
    out[0] = kind.number
    for form in given:
        for place in form.places:
            value = getattr(message, place.name)
            if place.kind == "guid":
                piece = guid_bytes(value)
            elif place.kind == "120":
                piece = value
            else:
                piece = int(value).to_bytes(SIZES[place.kind], "little")
            assert len(piece) == SIZES[place.kind]
            out[place.offset : place.offset + len(piece)] = piece
    for word in message.words if kind.forms[0].wants == "words" else ():
        out += word.to_bytes(8, "little")
    return bytes(out)
