"""drivers/<name> of /sys/bus/vmbus: bind, unbind, new_id, remove_id, overrides (vmbus.md 6.1; drivers/base/bus.c)."""

from __future__ import annotations

from errno import EACCES, EAGAIN, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ETIMEDOUT
from uuid import UUID

import pytest

from tests.fs.bus import BUS, ROOT, Scripted, errno_of
from tests.fs.kernel import refused
from vmbusirq.wire.devices import CLASS_IDS
from vmbusirq.wire.protocol import OpenChannel

DRIVERS = [
    "hid_hyperv",
    "hv_balloon",
    "hv_netvsc",
    "hv_pci",
    "hv_sock",
    "hv_storvsc",
    "hv_utils",
    "hyperv_fb",
    "hyperv_keyboard",
    "uio_hv_generic",
]
FILES = ["bind", "new_id", "remove_id", "uevent", "unbind"]
KEYBOARD = f"{BUS}/drivers/hyperv_keyboard"
MOUSE = f"{BUS}/drivers/hid_hyperv"
UIO = f"{BUS}/drivers/uio_hv_generic"
STRANGE = UUID("12345678-9abc-def0-1234-56789abcdef0")


@pytest.fixture
def guest():
    """A guest with one keyboard, bound."""
    guest = Scripted()
    guest.offered("keyboard", 5)
    return guest


@pytest.fixture
def guid(guest):
    """The name of the keyboard's directory."""
    return guest.vmbus.channels[5].device.guid


def strange(guest, relid=6, name="s", if_type=STRANGE):
    """Offer a channel of a class that nobody knows; return its device."""
    return guest.offered("", relid, name, if_type=if_type).device


# ---- what there is


def test_every_driver_has_its_files():
    """6.1: the drivers' names; files that root can only write, and the module."""
    fs = Scripted().fs
    assert DRIVERS == fs.listdir(f"{BUS}/drivers")
    for name in DRIVERS:
        here = f"{BUS}/drivers/{name}"
        assert sorted([*FILES, "module"]) == fs.listdir(here)
        for file in FILES:
            assert (0o100200, 4096) == (fs.stat(f"{here}/{file}").st_mode, fs.stat(f"{here}/{file}").st_size)
            with refused(EACCES, file):
                fs.read(f"{here}/{file}")
            assert 0 == fs.write(f"{here}/{file}", b"")  # fs/sysfs/file.c: nothing is not a value
        module = "pci_hyperv" if name == "hv_pci" else name
        assert f"../../../../module/{module}" == fs.readlink(f"{here}/module")
        assert here == fs.realpath(f"{here}/module/drivers/vmbus:{name}")
    for path in ("drivers/hv_nothing", "drivers/hv_utils/nothing"):
        with refused(ENOENT):
            fs.read(f"{BUS}/{path}")


def test_a_driver_shows_what_is_bound_to_it_and_nothing_else(guest, guid):
    """A link in either direction while bound; DRIVER= in uevent."""
    here = guest.device_dir()
    assert f"../../../..{ROOT[4:]}/{guid}" == guest.fs.readlink(f"{KEYBOARD}/{guid}")
    assert KEYBOARD == guest.fs.realpath(f"{here}/driver")
    modalias = "vmbus:6dad12f9172bea48bd65f927a61c7684"
    assert f"DRIVER=hyperv_keyboard\nMODALIAS={modalias}" == guest.line("uevent")
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    assert sorted([*FILES, "module"]) == guest.fs.listdir(KEYBOARD)
    assert "driver" not in guest.fs.listdir(here)
    for path in (f"{here}/driver", f"{KEYBOARD}/{guid}"):
        with refused(ENOENT):
            guest.fs.readlink(path)
    assert f"MODALIAS={modalias}" == guest.line("uevent")
    assert [guid] == guest.fs.listdir(f"{BUS}/devices")


@pytest.mark.parametrize(("text", "result"), [("change\n", 7), ("add", 3), ("", 0), ("begin\n", -EINVAL)])
def test_uevent_of_a_driver(guest, text, result):
    """uevent_store in drivers/base/bus.c."""
    assert result == errno_of(lambda: guest.fs.write(f"{KEYBOARD}/uevent", text))


# ---- bind and unbind


@pytest.mark.parametrize("end", ["", "\n", "\0", "\n\0junk"])
def test_unbind_closes_and_bind_opens(guest, guid, end):
    """The whole write is taken; a newline at the end is none of the name (sysfs_streq); state 2, then 3."""
    irq = guest.vmbus.channels[5].irq
    assert len(guid + end) == guest.fs.write(f"{KEYBOARD}/unbind", guid + end)
    assert ("2", []) == (guest.line("state"), guest.irq.irq_to_desc(irq).actions)
    assert len(guid + end) == guest.fs.write(f"{KEYBOARD}/bind", guid + end)
    assert ("3", irq) == (guest.line("state"), guest.vmbus.channels[5].irq)
    assert 2 == len(guest.host.of_type(OpenChannel))


@pytest.mark.parametrize("text", ["nonsense", "{%s}", "%s\n\n", " %s", "%s ", "\n", "\0", "\xff"])
def test_no_such_device(guest, guid, text):
    """bus_find_device_by_name(): ENODEV for whatever is not exactly a device's name, its case included."""
    text = text.replace("%s", guid)
    for name in (text, guid.upper(), str(UUID(int=7))):
        for file in ("bind", "unbind"):
            with refused(ENODEV, "hyperv_keyboard"):
                guest.fs.write(f"{KEYBOARD}/{file}", name)
    assert "3" == guest.line("state")


def test_bind_takes_what_matches_and_is_free(guest, guid):
    """bind_store: ENODEV no match, asked first; EBUSY bound, be it to the same driver."""
    with refused(EBUSY, guid, "hyperv_keyboard"):
        guest.fs.write(f"{KEYBOARD}/bind", guid)
    with refused(ENODEV, guid, "hid_hyperv"):
        guest.fs.write(f"{MOUSE}/bind", guid)
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    with refused(ENODEV, guid, "hid_hyperv"):
        guest.fs.write(f"{MOUSE}/bind", guid)
    assert "2" == guest.line("state")


def test_unbind_is_for_the_driver_that_is_bound(guest, guid):
    """unbind_store: ENODEV from another driver, and when nobody is bound."""
    with refused(ENODEV, guid, "hyperv_keyboard"):
        guest.fs.write(f"{MOUSE}/unbind", guid)
    assert "3" == guest.line("state")
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    with refused(ENODEV, guid):
        guest.fs.write(f"{KEYBOARD}/unbind", guid)


def test_bind_gives_the_errno_of_the_probe(guest, guid):
    """device_driver_attach() returns what the probe fails with; the device stays unbound and can be tried again."""
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    guest.host.status[OpenChannel] = 1
    with refused(EAGAIN):
        guest.fs.write(f"{KEYBOARD}/bind", guid)
    assert ("2", False) == (guest.line("state"), guest.fs.exists(f"{KEYBOARD}/{guid}"))
    guest.host.status.clear()
    guest.fs.write(f"{KEYBOARD}/bind", guid)
    assert "3" == guest.line("state")


def test_a_probe_that_fails_leaves_a_device_without_driver():
    """vmbus_device_register: device_register() does not fail with the probe; directory and files are there."""
    guest = Scripted()
    guest.host.status[OpenChannel] = 1
    guest.offered("keyboard", 5)
    assert ("2", "(null)") == (guest.line("state"), guest.line("driver_override"))
    assert "driver" not in guest.fs.listdir(guest.device_dir())
    assert ["5"] == guest.fs.listdir(f"{guest.device_dir()}/channels")


# ---- classes that are added


def test_new_id_binds_what_waits_for_it(guest):
    """new_id_store: the class is added, then what matches and is free is probed; the next device finds it, too."""
    first = strange(guest)
    assert ("0x10", "2") == (guest.line("device", 6), guest.line("state", 6))
    assert None is first.driver
    assert 37 == guest.fs.write(f"{UIO}/new_id", f"{STRANGE}\n")
    assert UIO == guest.fs.realpath(f"{guest.device_dir(6)}/driver")
    assert "3" == guest.line("state", 6)
    second = strange(guest, 7, "t")
    assert sorted([*FILES, "module", first.guid, second.guid]) == guest.fs.listdir(UIO)


def test_new_id_leaves_what_is_bound_and_goes_on_after_a_probe_that_fails(guest, guid):
    """driver_attach() passes over both; the write succeeds."""
    assert 36 == guest.fs.write(f"{UIO}/new_id", str(CLASS_IDS["keyboard"]))
    assert KEYBOARD == guest.fs.realpath(f"{guest.device_dir()}/driver")
    strange(guest)
    guest.host.status[OpenChannel] = 1
    assert 36 == guest.fs.write(f"{UIO}/new_id", str(STRANGE))
    assert "2" == guest.line("state", 6)
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    guest.host.status.clear()
    guest.fs.write(f"{UIO}/bind", guid)
    assert UIO == guest.fs.realpath(f"{guest.device_dir()}/driver")


def test_an_id_can_be_added_once_and_removed_once(guest):
    """EEXIST, ENODEV; a driver's own classes do not count; devices stay bound when their class goes."""
    strange(guest)
    with refused(ENODEV, str(STRANGE)):
        guest.fs.write(f"{UIO}/remove_id", str(STRANGE))
    guest.fs.write(f"{UIO}/new_id", str(STRANGE))
    with refused(EEXIST, str(STRANGE)):
        guest.fs.write(f"{UIO}/new_id", str(STRANGE).upper())
    assert 36 == guest.fs.write(f"{KEYBOARD}/new_id", str(CLASS_IDS["keyboard"]))
    assert 36 == guest.fs.write(f"{UIO}/remove_id", str(STRANGE))
    assert UIO == guest.fs.realpath(f"{guest.device_dir(6)}/driver")
    guest.fs.write(f"{UIO}/unbind", guest.vmbus.channels[6].device.guid)
    with refused(ENODEV):
        guest.fs.write(f"{UIO}/bind", guest.vmbus.channels[6].device.guid)
    with refused(ENODEV):
        guest.fs.write(f"{UIO}/remove_id", str(STRANGE))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("%s", 36),
        ("%s\n", 37),
        ("%s junk", 41),  # 36 characters are looked at
        ("%s00", 38),
        ("{%s}", -EINVAL),
        (" %s", -EINVAL),
        ("123456789abcdef0123456789abcdef0", -EINVAL),
        ("12345678-9abc-def0-1234-56789abcdef", -EINVAL),
        ("12345678-9abc-def0-1234-56789abcdeg0", -EINVAL),
        ("12345678-9abc-def01-234-56789abcdef0", -EINVAL),
        ("12345678-9abc-def0-1234-56789abc\0ef0", -EINVAL),
        ("\n", -EINVAL),
        ("\xff" * 36, -EINVAL),
    ],
)
def test_what_is_a_guid(guest, text, result):
    """guid_parse() in lib/uuid.c: 36 characters, no braces."""
    text = text.replace("%s", str(STRANGE)).encode("latin-1")
    assert result == errno_of(lambda: guest.fs.write(f"{UIO}/new_id", text))
    assert result == errno_of(lambda: guest.fs.write(f"{UIO}/remove_id", text))


# ---- driver_override


def test_an_override_says_who_may_bind(guest, guid):
    """hv_vmbus_get_id: with an override only that driver matches, and it matches any class; nothing is bound anew."""
    path = f"{guest.device_dir()}/driver_override"
    guest.fs.write(path, "uio_hv_generic\n")
    assert KEYBOARD == guest.fs.realpath(f"{guest.device_dir()}/driver")
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    with refused(ENODEV, guid):
        guest.fs.write(f"{KEYBOARD}/bind", guid)
    guest.fs.write(f"{UIO}/bind", guid)
    assert UIO == guest.fs.realpath(f"{guest.device_dir()}/driver")
    guest.fs.write(f"{UIO}/unbind", guid)
    guest.fs.write(path, "\n")
    with refused(ENODEV, guid):
        guest.fs.write(f"{UIO}/bind", guid)
    guest.fs.write(f"{KEYBOARD}/bind", guid)
    assert "3" == guest.line("state")


def test_an_override_outweighs_an_added_class(guest):
    """hv_vmbus_get_id asks for the override first."""
    strange(guest)
    guest.fs.write(f"{guest.device_dir(6)}/driver_override", "hid_hyperv")
    guest.fs.write(f"{UIO}/new_id", str(STRANGE))
    assert "2" == guest.line("state", 6)


def test_sockets_are_for_hv_sock_whatever_else_is_said():
    """vmbus_match: a channel of a socket matches the driver that says hvsock, and no other (5.1)."""
    guest = Scripted()
    service = UUID("00000400-facb-11e6-bd58-64006a7986d3")
    channel = guest.offered("", 5, if_type=service, chn_flags=0x2000)
    assert ("0x10", f"{{{service}}}") == (guest.line("device"), guest.line("class_id"))
    assert "hv_sock" == channel.device.driver.name
    guest.fs.write(f"{BUS}/drivers/hv_sock/unbind", channel.device.guid)
    guest.fs.write(f"{guest.device_dir()}/driver_override", "uio_hv_generic")
    guest.fs.write(f"{UIO}/new_id", str(service))
    with refused(ENODEV):
        guest.fs.write(f"{UIO}/bind", channel.device.guid)
    guest.fs.write(f"{BUS}/drivers/hv_sock/bind", channel.device.guid)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_that_is_forced_on_a_strange_device(guest, guid, driver):
    """Whatever the probe makes of it, the write ends with success or an errno, and the device can be used again."""
    guest.fs.write(f"{KEYBOARD}/unbind", guid)
    guest.fs.write(f"{guest.device_dir()}/driver_override", driver)
    result = errno_of(lambda: guest.fs.write(f"{BUS}/drivers/{driver}/bind", guid))
    if result == -ETIMEDOUT and driver in ("hv_netvsc", "hv_pci"):
        return  # they wait for the host without limit, and this one says nothing
    if result > 0:
        guest.fs.write(f"{BUS}/drivers/{driver}/unbind", guid)
    guest.fs.write(f"{guest.device_dir()}/driver_override", "\n")
    guest.fs.write(f"{KEYBOARD}/bind", guid)
    assert "3" == guest.line("state")
