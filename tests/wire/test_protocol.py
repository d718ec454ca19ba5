"""Control messages: layouts, both directions, every version, everything that can be wrong (vmbus.md 2.7 to 2.9)."""

from __future__ import annotations

import dataclasses
import errno
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import messages as reference
from tests.reference.messages import KINDS, Form, Kind, Place
from vmbusirq.errors import IrqError
from vmbusirq.wire import protocol
from vmbusirq.wire.protocol import (
    MESSAGES,
    Direction,
    FeatureFlags,
    InitiateContact,
    Message,
    MessageType,
    OfferChannel,
    OpenChannel,
    ProtocolError,
    Refusal,
    TlConnectRequest,
    Version,
    VersionResponse,
    decode,
    encode,
)

NONE, ALL = FeatureFlags.NONE, FeatureFlags(0xFF)
TO_GUEST, TO_HOST = Direction.TO_GUEST, Direction.TO_HOST
DIRECTIONS = {"G": TO_HOST, "H": TO_GUEST, "-": None}
A, B, C = (UUID(int=int(digit * 32, 16)) for digit in "abc")

by_name = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
sent = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.direction != "-"], ids=lambda kind: kind.name)


def allowed(form: Form, values: dict[str, Any], version: int, features: int) -> bool:
    """Return whether a longer form may be used, read from the table's own words."""
    words = form.wants.split()
    if words and words[0] in reference.VERSIONS and version < reference.VERSIONS[words[0]]:
        return False
    if "features" not in words:
        return True
    wanted = int(words[-1], 16)
    if "own" not in words:
        return bool(features & wanted)
    if "interrupt_page" in values:
        return values["version"] >= reference.VERSIONS["6.0"] and bool(values["interrupt_page"] >> 32 & wanted)
    return bool((values.get("features") or 0) & wanted)


def is_mandatory(form: Form) -> bool:
    """Return whether a form must be used once its features are negotiated: the shorter one is too short then."""
    return "features" in form.wants and "own" not in form.wants


def values_of(place: Place) -> st.SearchStrategy[Any]:
    if place.kind == "guid":
        return st.uuids()
    if place.kind == "120":
        return st.binary(min_size=120, max_size=120)
    if place.name == "version":
        return st.sampled_from(sorted(reference.VERSIONS.values())) | st.integers(0, 0xFFFF_FFFF)
    return st.integers(0, 256 ** reference.SIZES[place.kind] - 1)


@st.composite
def messages(draw: st.DrawFn, kind: Kind, version: int, features: int) -> Message:
    """Any message of a type that a connection of this version and these features may carry."""
    values = {place.name: draw(values_of(place)) for place in kind.forms[0].places}
    for form in kind.forms[1:]:
        if not allowed(form, values, version, features) or not (is_mandatory(form) or draw(st.booleans())):
            break
        values |= {place.name: draw(values_of(place)) for place in form.places}
    if kind.forms[0].wants == "words":
        room = (240 - kind.forms[0].size) // 8
        values["words"] = tuple(draw(st.lists(st.integers(0, 2**64 - 1), max_size=room)))
    return MESSAGES[MessageType(kind.number)](**values)


def plain(kind: Kind, form: int = 0) -> Message:
    """Return one message of a type, in its shortest form or a longer one, no two fields alike."""
    values: dict[str, Any] = {}
    for number, place in enumerate((p for f in kind.forms[: form + 1] for p in f.places), 1):
        values[place.name] = {"guid": UUID(int=number * 0x0102030405060708), "120": bytes(range(120))}.get(
            place.kind, number
        )
    if "own" in kind.forms[form].wants and kind.number == 14:
        values |= {"version": reference.VERSIONS["6.0"], "interrupt_page": 8 << 32}
    if "own" in kind.forms[form].wants and kind.number == 15:
        values["features"] = 0x40
    return MESSAGES[MessageType(kind.number)](**values)


def known(kind: Kind, version: int, features: int) -> bool:
    return kind.since is None or (version >= kind.since and (not kind.features or bool(kind.features & features)))


def refusal(payload: bytes, version: Version | None, direction: Direction, *args: Any, **kwargs: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(payload, version, direction, *args, **kwargs)
    return caught.value


def refused(message: Message, version: Version | None, features: FeatureFlags = NONE) -> IrqError:
    with pytest.raises(IrqError) as caught:
        encode(message, version, features)
    return caught.value


def header(msgtype: int, size: int) -> bytes:
    return (msgtype.to_bytes(4, "little") + bytes(size))[:size]


# ---- layouts


def test_every_message_type_has_its_number_and_class() -> None:
    """vmbus.md 2.7: 0 to 29, no gap."""
    assert list(range(30)) == [kind.number for kind in KINDS]
    assert {kind.number: kind.name for kind in KINDS} == {int(item): item.name for item in MessageType}
    assert list(MessageType) == list(MESSAGES)


@by_name
def test_layout_is_the_references(kind: Kind) -> None:
    """vmbus.md 2.7 and 2.8: size, offsets, widths, first version, features, direction and Linux's minimum."""
    wire = MESSAGES[MessageType(kind.number)].wire
    sections = [wire.base, *(tail.section for tail in wire.tails)]
    assert [form.size for form in kind.forms] == [section.end for section in sections]
    for form, section in zip(kind.forms, sections, strict=True):
        expected = [(p.offset, p.name, reference.SIZES[p.kind], p.kind == "guid") for p in form.places]
        assert expected == [(f.offset, f.name, f.size, f.is_guid) for f in section.fields]
    assert (DIRECTIONS[kind.direction], kind.since, kind.features) == (wire.direction, wire.since, wire.features)
    assert (kind.forms[0].wants == "words") == (wire.words_max > 0)
    assert (kind.linux_min is not None) == (wire.linux is not protocol.Handling.NONE)
    assert (kind.linux_min or 0) == wire.linux_min


@by_name
def test_messages_are_frozen_and_slotted(kind: Kind) -> None:
    """House rule: values are frozen, slotted dataclasses, equal when their fields are."""
    message = plain(kind)
    assert plain(kind) == message
    assert not hasattr(message, "__dict__")
    for field in dataclasses.fields(message):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, field.name, 0)


@by_name
def test_bytes_are_the_references(kind: Kind) -> None:
    """Every form of every type, byte for byte as the second encoder writes it."""
    for form in range(len(kind.forms)):
        message = plain(kind, form)
        features = ALL if form or not is_mandatory(kind.forms[-1]) else ALL & ~FeatureFlags(0x3)
        payload = encode(message, Version.V6_0, features)
        assert reference.encode(kind, message) == payload
        assert kind.forms[form].size == len(payload)


def test_known_messages_have_known_bytes() -> None:
    """Written out by hand: a 5.3 contact on SINT 2, and the close of relid 14."""
    contact = InitiateContact(0x50003, 0, InitiateContact.target(), 0x1122334455667788, 0x99)
    expected = "0e000000 00000000 03000500 00000000 02000000 00000000 88776655 44332211 99000000 00000000"
    assert bytes.fromhex(expected) == encode(contact, None)
    assert bytes.fromhex("07000000 00000000 0e000000") == encode(protocol.CloseChannel(14), Version.V5_3)


def test_guids_have_three_little_endian_groups() -> None:
    """The netvsc class f8615163-df3e-46c5-913f-f2d2f965ed0e as Windows stores it."""
    offer = OfferChannel(UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e"), A, 13, 0x200D)
    assert bytes.fromhex("635161f83edfc546913ff2d2f965ed0e") == encode(offer, Version.V5_3)[8:24]


@by_name
@settings(max_examples=8)
@given(data=st.data())
def test_round_trip_at_every_version(kind: Kind, data: st.DataObject) -> None:
    """Encode then decode gives the message back; a version without the type refuses both."""
    for version in Version:
        features = ALL if version is Version.V6_0 else NONE
        message = data.draw(messages(kind, version, features))
        if not known(kind, version, features):
            assert errno.EINVAL == refused(message, version, features).errno
            continue
        payload = encode(message, version, features)
        assert reference.encode(kind, message) == payload
        assert len(payload) <= 240
        if kind.direction != "-":
            direction = DIRECTIONS[kind.direction]
            assert direction is not None
            assert message == decode(payload, version, direction, features)


@sent
def test_only_contact_and_its_kin_work_before_there_is_a_version(kind: Kind) -> None:
    """vmbus.md 2.7, first version "any"; a guest takes every type that it has a handler for."""
    message, payload = plain(kind), encode(plain(kind), Version.V6_0, ALL & ~FeatureFlags(0x3))
    if kind.since is None:
        assert payload == encode(message, None)
    else:
        assert "not at version none (EINVAL)" in str(refused(message, None))
    if kind.direction == "H" and kind.number < 25:
        assert message == decode(payload, None, TO_GUEST)
    elif kind.direction == "G" and kind.since is None:
        assert message == decode(payload, None, TO_HOST)
    elif kind.direction == "G":
        assert f"unsupported msgtype={kind.number} at version none" == str(refusal(payload, None, TO_HOST))


@sent
def test_a_type_begins_exactly_with_its_version(kind: Kind) -> None:
    """Both sides of each border of vmbus.md 2.7."""
    for version in Version:
        lacking = kind.since is not None and version < kind.since
        if lacking:
            refused(plain(kind), version, ALL)
        if lacking and kind.direction == "G":
            error = refusal(reference.encode(kind, plain(kind)), version, TO_HOST, ALL)
            assert f"unsupported msgtype={kind.number} at version {version.major}.{version.minor}" == str(error)
        if not lacking and not is_mandatory(kind.forms[-1]):
            assert reference.encode(kind, plain(kind)) == encode(plain(kind), version, ALL)


# ---- what is wrong with a message


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        pytest.param(kind, version, id=f"{kind.name}-{version}")
        for kind in KINDS
        for version in (Version.V2_4, Version.V5_3, Version.V6_0)
        if kind.direction == "H" and (kind.number < 25 or version is Version.V6_0)
    ],
)
def test_a_guest_refuses_what_linux_finds_too_short(kind: Kind, version: Version) -> None:
    """vmbus.md 2.7 "min", at every length; a type without a handler is dropped in silence instead."""
    payload = reference.encode(kind, plain(kind))
    least = kind.linux_min if kind.linux_min is not None else kind.forms[0].size
    for size in range(len(payload) + 1):
        if size >= least:
            assert plain(kind) == decode(payload, version, TO_GUEST, ALL, size=size)
            continue
        error = refusal(payload, version, TO_GUEST, ALL, size=size)
        if kind.linux_min is None and kind.number < 25:
            assert (Refusal.UNHANDLED, True) == (error.refusal, error.is_silent)
        else:
            assert f"message too short: msgtype={kind.number} len={size}" == str(error)
            assert (kind.number, size, False) == (error.msgtype, error.size, error.is_silent)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.direction == "G"], ids=lambda kind: kind.name)
def test_a_host_refuses_what_is_shorter_than_the_layout(kind: Kind) -> None:
    """At every length from 0 to the longest form; between two optional forms it is the shorter one."""
    payload = reference.encode(kind, plain(kind, len(kind.forms) - 1))
    for size in range(len(payload) + 1):
        fitting = [
            form for form in kind.forms if form.size <= size and (size == len(payload) or not is_mandatory(form))
        ]
        if not fitting or (is_mandatory(kind.forms[-1]) and size < kind.forms[-1].size):
            error = refusal(payload[:size], Version.V6_0, TO_HOST, ALL)
            assert Refusal.TOO_SHORT is error.refusal
            assert not error.is_silent
        else:
            message = decode(payload[:size], Version.V6_0, TO_HOST, ALL)
            assert payload[: fitting[-1].size] == encode(message, Version.V6_0, ALL)


@pytest.mark.parametrize(
    ("msgtype", "text"),
    [(25, "25"), (26, "26"), (29, "29"), (30, "30"), (255, "255"), (0x7FFF_FFFF, "2147483647"), (0xFFFF_FFFF, "-1")],
)
@pytest.mark.parametrize("size", [8, 240, 255])
def test_a_guest_warns_of_types_that_linux_does_not_know(msgtype: int, text: str, size: int) -> None:
    """vmbus.md 2.7: 25 and up; the type is looked at before the size."""
    error = refusal(header(msgtype, 240), Version.V5_3, TO_GUEST, ALL, size=size)
    assert f"unknown msgtype={text}" == str(error)
    assert (Refusal.UNKNOWN, msgtype, size, False) == (error.refusal, error.msgtype, error.size, error.is_silent)


@pytest.mark.parametrize("msgtype", [26, 28])
def test_a_guest_of_version_6_knows_what_it_negotiated(msgtype: int) -> None:
    """vmbus.md 2.7, rows 26 and 28."""
    assert msgtype == decode(header(msgtype, 9), Version.V6_0, TO_GUEST, ALL).msgtype
    assert f"unknown msgtype={msgtype}" == str(refusal(header(msgtype, 9), Version.V6_0, TO_GUEST))


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.direction != "H" and kind.number < 25], ids=lambda k: k.name
)
def test_a_guest_drops_what_only_hosts_receive_in_silence(kind: Kind) -> None:
    """vmbus.md 3.6 step 4: no handler, then EOM; whatever the size, up to 240."""
    for size in (0, 4, 8, 240):
        assert refusal(header(kind.number, 240), Version.V5_3, TO_GUEST, size=size).is_silent
    assert "payload size is too large (241)" == str(refusal(header(kind.number, 240), Version.V5_3, TO_GUEST, size=241))


@pytest.mark.parametrize("msgtype", [0, 30, 0xFFFF_FFFF])
def test_a_host_refuses_unknown_types(msgtype: int) -> None:
    """An undefined type is unknown; type 0 is defined and never supported."""
    expected = Refusal.UNKNOWN if msgtype else Refusal.UNSUPPORTED
    for version in (None, *Version):
        assert expected is refusal(header(msgtype, 240), version, TO_HOST, ALL).refusal
    assert Refusal.TOO_SHORT is refusal(header(msgtype, 7), Version.V5_3, TO_HOST).refusal


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.direction == "H"], ids=lambda kind: kind.name)
def test_a_host_refuses_what_only_hosts_send(kind: Kind) -> None:
    """A guest that answers itself."""
    error = refusal(reference.encode(kind, plain(kind)), Version.V6_0, TO_HOST, ALL)
    assert f"unsupported msgtype={kind.number} at version 6.0" == str(error)


def test_240_bytes_are_the_most() -> None:
    """vmbus.md 2.7: payload_size > 240 is dropped; bytes behind the layout are not looked at."""
    payload = encode(protocol.RescindChannelOffer(14), Version.V5_3).ljust(255, b"\xff")
    assert protocol.RescindChannelOffer(14) == decode(payload, Version.V5_3, TO_GUEST, size=240)
    assert "payload size is too large (241)" == str(refusal(payload, Version.V5_3, TO_GUEST, size=241))
    payload = encode(protocol.CloseChannel(14), Version.V5_3).ljust(255, b"\xff")
    assert protocol.CloseChannel(14) == decode(payload[:240], Version.V5_3, TO_HOST)
    assert Refusal.TOO_LARGE is refusal(payload[:241], Version.V5_3, TO_HOST).refusal


@given(
    payload=st.binary(max_size=60)
    | st.builds(lambda n, rest: bytes([n, 0, 0, 0]) + rest, st.integers(0, 31), st.binary(min_size=4, max_size=236)),
    version=st.sampled_from([None, *Version]),
    features=st.integers(0, 0xFF).map(FeatureFlags),
    size=st.none() | st.integers(0, 255),
)
@settings(max_examples=400)
def test_any_bytes_give_a_message_or_a_refusal(
    payload: bytes, version: Version | None, features: FeatureFlags, size: int | None
) -> None:
    """No other exception, whoever lies; what a host accepted can be said again and means the same."""
    for direction in Direction:
        try:
            message = decode(payload, version, direction, features, size=size)
        except ProtocolError:
            continue
        assert direction is message.wire.direction
        if direction is TO_HOST:
            assert message == decode(encode(message, version, features), version, direction, features)


# ---- what cannot be sent


@by_name
def test_values_that_do_not_fit_are_refused_with_the_fields_name(kind: Kind) -> None:
    """Both sides of each field's width."""
    message = plain(kind)
    features = ALL & ~FeatureFlags(0x3)
    for place in kind.forms[0].places:
        if place.kind == "guid":
            with pytest.raises(TypeError, match=place.name):
                encode(dataclasses.replace(message, **{place.name: "text"}), Version.V6_0, features)
        elif place.kind == "120":
            long = dataclasses.replace(message, **{place.name: bytes(121)})
            assert f"{place.name} has 120 bytes, not 121" in str(refused(long, Version.V6_0, features))
        else:
            end = 256 ** reference.SIZES[place.kind]
            encode(dataclasses.replace(message, **{place.name: end - 1}), Version.V6_0, features)
            for value in (-1, end):
                error = refused(dataclasses.replace(message, **{place.name: value}), Version.V6_0, features)
                assert errno.EINVAL == error.errno
                assert f"{kind.name}: {place.name} {value} does not fit into" in str(error)


@pytest.mark.parametrize(("cls", "room"), [(protocol.GpadlHeader, 27), (protocol.GpadlBody, 28)])
def test_words_end_with_the_message(cls: type[Any], room: int) -> None:
    """vmbus.md 2.8: 26 page numbers behind the range in a header, 28 in a body; a cut word is ignored."""
    blank = cls(*[1] * (4 if room == 27 else 1))
    full = dataclasses.replace(blank, words=tuple(range(room)))
    payload = encode(full, Version.V5_3)
    assert cls.wire.size + 8 * room == len(payload) <= 240
    assert full == decode(payload.ljust(240, b"\xff"), Version.V5_3, TO_HOST)
    for cut in range(1, 9):
        shorter = dataclasses.replace(full, words=tuple(range(room - 1)))
        assert shorter == decode(payload[:-cut], Version.V5_3, TO_HOST)
    assert errno.EMSGSIZE == refused(dataclasses.replace(full, words=(0,) * (room + 1)), Version.V5_3).errno
    for word in (-1, 1 << 64):
        assert errno.EINVAL == refused(dataclasses.replace(full, words=(word,)), Version.V5_3).errno


@pytest.mark.parametrize("field", ["user_def", "userdata"])
def test_user_data_is_filled_up(field: str) -> None:
    """120 bytes on the wire; equal whether the zeroes were given or not."""
    base = OfferChannel(A, B, 14, 0x200E) if field == "user_def" else OpenChannel(14, 14, 0xE1E10, 0, 4)
    filled = dataclasses.replace(base, **{field: b"abc"})
    assert b"abc" + bytes(117) == getattr(filled, field)
    assert bytes(120) == getattr(base, field)
    assert dataclasses.replace(base, **{field: b"abc".ljust(120, b"\0")}) == filled


# ---- forms


def test_open_v2_goes_with_its_features() -> None:
    """vmbus.md 2.8: 148 bytes, or 156 once signal parameters or redirection are negotiated: then 148 are too few."""
    old = OpenChannel(14, 14, 0xE1E10, 3, 32)
    new = dataclasses.replace(old, connection_id=0x200E, event_flag=14, flags=1)
    for features in (FeatureFlags(0x1), FeatureFlags(0x2), ALL):
        assert new == decode(encode(new, Version.V6_0, features), Version.V6_0, TO_HOST, features)
        assert "wants all of connection_id, event_flag, flags" in str(refused(old, Version.V6_0, features))
        error = refusal(encode(old, Version.V6_0), Version.V6_0, TO_HOST, features)
        assert "message too short: msgtype=5 len=148" == str(error)
        assert old == decode(encode(old, Version.V5_3, features), Version.V5_3, TO_HOST, features)
    for version, features in ((Version.V6_0, ALL & ~FeatureFlags(0x3)), (Version.V5_3, ALL)):
        assert "cannot carry connection_id, event_flag, flags" in str(refused(new, version, features))
        assert 148 == len(encode(old, version, features))
    half = dataclasses.replace(new, flags=None)
    assert "wants all of" in str(refused(half, Version.V6_0, ALL))
    assert "cannot carry" in str(refused(half, Version.V5_3))


def test_a_silo_id_goes_from_5_2_on() -> None:
    """vmbus.md 2.7 row 21; a short request stays good, since some clients send it."""
    plain_request, with_silo = TlConnectRequest(A, B), TlConnectRequest(A, B, C)
    payload = encode(with_silo, Version.V5_2)
    assert 56 == len(payload)
    assert with_silo == decode(payload, Version.V5_2, TO_HOST)
    assert plain_request == decode(payload, Version.V5_1, TO_HOST)
    for size in range(40, 56):
        assert plain_request == decode(payload[:size], Version.V6_0, TO_HOST)
    assert "cannot carry silo_id at version 5.1" in str(refused(with_silo, Version.V5_1))


def test_a_client_id_goes_with_the_contacts_own_feature() -> None:
    """vmbus.md 2.8: 6.0 and feature 0x8, both read from the message itself; the connection has no version yet."""
    target = InitiateContact.target(features=FeatureFlags.CLIENT_ID)
    contact = InitiateContact(Version.V6_0, 0, target, 1, 2, client_id=C)
    payload = encode(contact, None)
    assert contact == decode(payload, None, TO_HOST)
    assert contact == decode(payload, Version.V2_4, TO_HOST)
    assert dataclasses.replace(contact, client_id=None) == decode(payload[:55], None, TO_HOST)
    for other in (
        dataclasses.replace(contact, version=Version.V5_3),
        dataclasses.replace(contact, interrupt_page=InitiateContact.target(features=ALL & ~FeatureFlags.CLIENT_ID)),
    ):
        assert "cannot carry client_id" in str(refused(other, None))
        blank = dataclasses.replace(other, client_id=None)
        assert blank == decode(encode(blank, None) + C.bytes_le, None, TO_HOST)


def test_a_version_response_grows_with_6_0() -> None:
    """vmbus.md 2.8: 16 bytes, 20 with features, 40 with the host's own monitor pages."""
    short = VersionResponse(1, 0, 0x2024)
    featured = dataclasses.replace(short, features=0x40)
    paged = dataclasses.replace(featured, monitor_page1=0x1000, monitor_page2=0x2000)
    assert [16, 20, 40] == [len(encode(message, Version.V6_0)) for message in (short, featured, paged)]
    payload = encode(paged, Version.V6_0)
    assert short == decode(payload, Version.V5_3, TO_GUEST)
    for size in range(16, 41):
        expected = short if size < 20 else featured if size < 40 else paged
        assert expected == decode(payload, Version.V6_0, TO_GUEST, size=size)
    assert "cannot carry features at version 5.3" in str(refused(featured, Version.V5_3))
    assert "cannot carry monitor_page1, monitor_page2" in str(
        refused(dataclasses.replace(paged, features=0x3F), Version.V6_0)
    )
    assert "cannot carry monitor_page1, monitor_page2" in str(
        refused(dataclasses.replace(paged, features=None), Version.V6_0)
    )
    assert "wants all of" in str(refused(dataclasses.replace(paged, monitor_page2=None), Version.V6_0))


@pytest.mark.parametrize(
    ("version", "sint", "vtl", "features"),
    [
        (0x20004, 2, 0, 0),
        (0x40001, 2, 0, 0),
        (0x50000, 7, 0, 0),
        (0x50001, 7, 1, 0),
        (0x50003, 7, 1, 0),
        (0x60000, 7, 1, 0x108),
    ],
)
def test_the_target_of_messages_replaces_the_interrupt_page(version: int, sint: int, vtl: int, features: int) -> None:
    """vmbus.md 2.8 and 2.9: SINT from 5.0, VTL from 5.1, features from 6.0; before, SINT 2 and VTL 0."""
    contact = InitiateContact(version, 0, InitiateContact.target(7, 1, FeatureFlags(0x108)), 0, 0)
    assert 0x0000_0108_0000_0107 == contact.interrupt_page
    assert (sint, vtl, features) == (contact.msg_sint, contact.msg_vtl, contact.feature_flags)
    payload = encode(contact, None)
    assert (7, 1, 0x108) == (payload[16], payload[17], int.from_bytes(payload[20:24], "little"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (False, True, False, False, 0)),
        ({"monitor_allocated": 1, "is_dedicated_interrupt": 0}, (True, False, False, False, 0)),
        ({"monitor_allocated": 0xFE, "is_dedicated_interrupt": 0xFFFE}, (False, False, False, False, 0)),
        ({"chn_flags": 0x10, "user_def": b"\4"}, (False, True, False, True, 4)),
        ({"chn_flags": 0x2000}, (False, True, True, False, 0)),
        ({"chn_flags": 0xDFEF}, (False, True, False, False, 0)),
    ],
)
def test_an_offer_says_what_its_flags_mean(changes: dict[str, Any], expected: tuple[object, ...]) -> None:
    """vmbus.md 2.8: bit 0 of the two interrupt fields, chn_flags 0x10 and 0x2000, the pipe mode."""
    offer = OfferChannel(A, B, 14, 0x200E, **changes)
    assert expected == (offer.is_monitored, offer.is_dedicated, offer.is_hv_sock, offer.is_pipe, offer.pipe_mode)


@pytest.mark.parametrize("host_initiated", [False, True])
def test_an_hv_sock_offer_says_who_began(host_initiated: bool) -> None:
    """vmbus.md 7.6: pipe mode 0, then user_def[0]; OpenVMM's flags are 0x2011."""
    flags = protocol.OfferFlags(0x2011)
    assert protocol.OfferFlags.TLNPI_PROVIDER in flags
    offer = OfferChannel(
        A, B, 25, 0x2019, chn_flags=flags, user_def=protocol.hv_sock_user_def(host_initiated=host_initiated)
    )
    payload = encode(offer, Version.V5_3)
    assert (bytes(4), int(host_initiated)) == (payload[60:64], payload[64])
    assert (True, True, protocol.PipeMode.BYTE) == (offer.is_hv_sock, offer.is_pipe, offer.pipe_mode)
    assert host_initiated is offer.is_host_initiated
    assert bytes([host_initiated]).ljust(116, b"\0") == offer.pipe_user_def


def test_a_pipes_user_def_has_116_bytes() -> None:
    """vmbus.md 2.8: 120 with the mode."""
    assert b"\4\0\0\0" + bytes(range(116)) == protocol.pipe_user_def(protocol.PipeMode.MESSAGE, bytes(range(116)))
    with pytest.raises(IrqError, match="116"):
        protocol.pipe_user_def(protocol.PipeMode.BYTE, bytes(117))
