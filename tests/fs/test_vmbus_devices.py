"""devices/<guid> and its channels, with a scripted host: each file's text, mode and errno (vmbus.md 2.5, 6.2, 6.3)."""

from __future__ import annotations

import stat
from errno import EACCES, EINVAL, EIO, ENODEV, ENOENT
from uuid import UUID

import pytest

from tests.fs.bus import BUS, ROOT, Scripted, channel_dir, errno_of, show
from tests.fs.kernel import refused
from tests.vmbus.scripted import instance, offer_of
from vmbusirq._ffi import lib
from vmbusirq.fs.sysfs.kernel_irq import PAGE_TEXT
from vmbusirq.wire.devices import CLASS_IDS, UNSUPPORTED_CLASS_IDS
from vmbusirq.wire.protocol import Version

STRANGE = UUID("12345678-9abc-def0-1234-56789abcdef0")
KEYBOARD_RING = 8 * 4096  # bytes of data in a ring of 36 KiB
UIO = f"{BUS}/drivers/uio_hv_generic"

DEVICE_RINGS = [
    f"{ring}_{name}"
    for ring in ("in", "out")
    for name in ("intr_mask", "read_index", "write_index", "read_bytes_avail", "write_bytes_avail")
]
CHANNEL_RINGS = ["in_mask", "out_mask", "read_avail", "write_avail"]
DEVICE_MONITOR = ["monitor_id"] + [
    f"{side}_monitor_{name}" for side in ("server", "client") for name in ("pending", "latency", "conn_id")
]
CHANNEL_MONITOR = ["pending", "latency", "monitor_id"]
COUNTERS = ["interrupts", "events", "intr_in_full", "intr_out_empty", "out_full_first", "out_full_total"]
WRITABLE = {"cpu", "driver_override", "uevent"}


@pytest.fixture
def guest():
    """A guest with a keyboard, relid 5."""
    guest = Scripted()
    guest.offered("keyboard", 5, "k")
    return guest


def texts(guest, directory):
    """Return the text of every file in a directory."""
    fs = guest.fs
    names = [name for name in fs.listdir(directory) if stat.S_ISREG(fs.lstat(f"{directory}/{name}").st_mode)]
    return {name: fs.read(f"{directory}/{name}") for name in names}


def lines(expected):
    """Return texts with a newline, as bytes."""
    return {name: f"{text}\n".encode() for name, text in expected.items()}


# ---- every file


def test_every_file_of_a_device(guest):
    """6.2: names and exact texts; an open channel with empty rings."""
    expected = {
        "id": "5",
        "state": "3",
        "class_id": "{f912ad6d-2b17-48ea-bd65-f927a61c7684}",
        "device_id": f"{{{instance('k')}}}",
        "modalias": "vmbus:6dad12f9172bea48bd65f927a61c7684",
        "uevent": "DRIVER=hyperv_keyboard\nMODALIAS=vmbus:6dad12f9172bea48bd65f927a61c7684",
        "vendor": "0x1414",
        "device": "0x7",
        "numa_node": "0",
        "channel_vp_mapping": "5:0",
        "driver_override": "(null)",
    }
    expected |= dict.fromkeys(DEVICE_RINGS, "0")
    expected |= dict.fromkeys(("in_write_bytes_avail", "out_write_bytes_avail"), str(KEYBOARD_RING))
    here = guest.device_dir()
    assert lines(expected) == texts(guest, here)
    assert sorted([*expected, "channels", "driver", "subsystem"]) == guest.fs.listdir(here)
    assert f"{ROOT}/{instance('k')}" == guest.fs.realpath(here)


def test_every_file_of_a_channel(guest):
    """6.3: names and exact texts; write_avail is of the out ring."""
    expected = dict.fromkeys([*CHANNEL_RINGS, *COUNTERS, "cpu", "subchannel_id"], "0")
    expected["write_avail"] = str(KEYBOARD_RING)
    assert lines(expected) == texts(guest, channel_dir(guest, 5))
    assert sorted(expected) == guest.fs.listdir(channel_dir(guest, 5))


def test_every_mode(guest):
    """0444 but for cpu, driver_override and uevent; what cannot be written cannot be opened for it."""
    for path, node in list(guest.fs.walk(ROOT)):
        if not stat.S_ISREG(node.mode):
            continue
        name = path.rsplit("/", 1)[1]
        assert (0o100644 if name in WRITABLE else 0o100444) == guest.fs.stat(path).st_mode, path
        if name not in WRITABLE:
            with refused(EACCES, name):
                guest.fs.write(path, "1\n")


def test_a_device_that_nobody_binds():
    """5.1: unknown class: index 16, no driver; all files are there from the offer on, without rings."""
    guest = Scripted()
    guest.offered("", 5, "s", if_type=STRANGE)
    assert ("0x10", "2", "5") == (guest.line("device"), guest.line("state"), guest.line("id"))
    assert "MODALIAS=vmbus:78563412bc9af0de123456789abcdef0" == guest.line("uevent")
    assert "driver" not in guest.fs.listdir(guest.device_dir())
    assert sorted([*CHANNEL_RINGS, *COUNTERS, "cpu", "subchannel_id"]) == guest.fs.listdir(channel_dir(guest, 5))


@pytest.mark.parametrize(("index", "name"), list(enumerate(CLASS_IDS)))
def test_index_and_modalias_of_every_class(index, name):
    """5.1 and 6.2: the place in vmbus_devs, and the class GUID with its first three groups turned round."""
    guest = Scripted()
    guest.offered(name, 5)
    groups = str(CLASS_IDS[name]).split("-")
    turned = [bytes.fromhex(group)[::-1].hex() for group in groups[:3]]
    assert (f"{index:#x}", f"vmbus:{''.join(turned + groups[3:])}") == (guest.line("device"), guest.line("modalias"))


@pytest.mark.parametrize("name", list(UNSUPPORTED_CLASS_IDS))
def test_classes_that_are_never_bound(name):
    """RFC patch 01 drops their offers; before, they were devices of index 16 without driver."""
    offer = {"relid": 5, "if_type": UNSUPPORTED_CLASS_IDS[name]}
    guest = Scripted("legacy")
    guest.offered("", **offer)
    assert ("0x10", "2") == (guest.line("device"), guest.line("state"))
    guest = Scripted("rfc", offers=[offer_of("", **offer)])
    assert [] == guest.fs.listdir(f"{BUS}/devices")


@pytest.mark.parametrize(("hibernation", "text"), [(False, b"0\n"), (True, b"1\n")])
def test_hibernation(hibernation, text):
    """6.1: what the hypervisor says."""
    fs = Scripted(hibernation=hibernation).fs
    assert (text, 0o100444) == (fs.read(f"{BUS}/hibernation"), fs.stat(f"{BUS}/hibernation").st_mode)


# ---- rings


@pytest.mark.parametrize("side", ["in", "out"])
def test_ring_files_show_the_control_page(guest, side):
    """1.4 and 6.2: words of the page, bytes to read and to write; a channel's files show one ring each."""
    inward, out = guest.host.rings[5]
    ring = inward if side == "in" else out
    for field, value in (("interrupt_mask", 1), ("read_index", 4096), ("write_index", 4888)):
        ring.poke_control(field, value)
    assert ["1", "4096", "4888", "792", str(KEYBOARD_RING - 792)] == [
        guest.line(f"{side}_{name}")
        for name in ("intr_mask", "read_index", "write_index", "read_bytes_avail", "write_bytes_avail")
    ]
    assert "1" == show(guest, 5, f"{side}_mask")
    in_used, out_used = (792, 0) if side == "in" else (0, 792)
    assert (str(in_used), str(KEYBOARD_RING - out_used)) == (
        show(guest, 5, "read_avail"),
        show(guest, 5, "write_avail"),
    )


def test_words_are_signed_in_one_face_and_unsigned_in_the_other(guest):
    """6.2: %d; 6.3: %u; whatever a host writes there, nothing breaks."""
    for side, ring in zip(("in", "out"), guest.host.rings[5], strict=True):
        ring.poke_control("interrupt_mask", 0xFFFF_FFFF)
        ring.poke_control("read_index", 0x8000_0000)
        assert ("-1", "4294967295") == (guest.line(f"{side}_intr_mask"), show(guest, 5, f"{side}_mask"))
        assert "-2147483648" == guest.line(f"{side}_read_index")
    for name in ("write_avail", "read_avail"):
        assert 0 <= int(show(guest, 5, name)) < 1 << 32


def test_without_rings_their_files_are_einval_and_the_rest_is_there(guest):
    """6.2, 6.3: ring attributes are EINVAL while the ring is not mapped; state 2 is offered and bound."""
    guest.fs.write(f"{BUS}/drivers/hyperv_keyboard/unbind", str(instance("k")))
    here = guest.device_dir()
    rings = [f"{here}/{name}" for name in DEVICE_RINGS]
    rings += [f"{channel_dir(guest, 5)}/{name}" for name in CHANNEL_RINGS]
    assert 14 == len(rings)
    for path in rings:
        with refused(EINVAL, "channel 5", "OPEN"):
            guest.fs.read(path)
    for directory, names in ((here, DEVICE_RINGS), (channel_dir(guest, 5), CHANNEL_RINGS)):
        for name in set(guest.fs.listdir(directory)) - {*names, "channels", "subsystem"}:
            guest.fs.read(f"{directory}/{name}")
    assert "2" == guest.line("state")


def test_counters_belong_to_the_channel_not_to_one_opening_of_it(guest):
    """6.3; 3.5."""
    channel = guest.vmbus.channels[5]
    names = ("intr_in_full", "intr_out_empty", "out_full_first", "out_full_total")
    for opening in (1, 2):
        lib.vi_channel_in(channel.c).intr_in_full += 1
        out = lib.vi_channel_out(channel.c)
        out.intr_out_empty += 2
        out.out_full_first += 3
        out.out_full_total += 4
        expected = [str(opening * count) for count in (1, 2, 3, 4)]
        assert expected == [show(guest, 5, name) for name in names]
        guest.fs.write(f"{BUS}/drivers/hyperv_keyboard/unbind", str(instance("k")))
        assert expected == [show(guest, 5, name) for name in names]
        guest.fs.write(f"{BUS}/drivers/hyperv_keyboard/bind", str(instance("k")))
    assert expected == [show(guest, 5, name) for name in names]


def test_interrupts_and_events(guest):
    """3.5: interrupts: arrivals that found a callback; events: the guest's signals to the host."""
    for count in (1, 2):
        guest.synic.signal(cpu=0, flag=5)
        guest.settle()
        lib.vi_channel_setevent(guest.vmbus.channels[5].c)
        assert (str(count), str(count)) == (show(guest, 5, "interrupts"), show(guest, 5, "events"))


# ---- the rings of uio_hv_generic


def bind_uio(guest, name="k"):
    """Give a device to uio_hv_generic."""
    guid = instance(name)
    driver = guest.vmbus.devices[guid].driver
    if driver is not None:
        guest.fs.write(f"{BUS}/drivers/{driver.name}/unbind", str(guid))
    guest.fs.write(f"{BUS}/devices/{guid}/driver_override", "uio_hv_generic")
    guest.fs.write(f"{UIO}/bind", str(guid))


def test_ring_is_there_while_uio_is_bound(guest):
    """6.3: 0600, as long as both rings; out ring first, as the host has mapped it."""
    path = f"{channel_dir(guest, 5)}/ring"
    assert not guest.fs.exists(path)
    bind_uio(guest)
    assert "ring" in guest.fs.listdir(channel_dir(guest, 5))
    assert (0o100600, 2 * (KEYBOARD_RING + 4096)) == (guest.fs.stat(path).st_mode, guest.fs.stat(path).st_size)
    inward, out = guest.host.rings[5]
    out.poke(16, b"from the guest")
    inward.poke(32, b"from the host")
    inward.poke_control("write_index", 4096)
    shown = guest.fs.read(path)
    half = KEYBOARD_RING + 4096
    assert 2 * half == len(shown)
    assert b"from the guest" == shown[4096 + 16 : 4096 + 30]
    assert b"from the host" == shown[half + 4096 + 32 : half + 4096 + 45]
    assert 4096 == int.from_bytes(shown[half : half + 4], "little")
    with guest.fs.open(path) as handle:
        handle.seek(half)
        assert shown[half : half + 8] == handle.read(8)
    with refused(EIO, "channel 5"):
        guest.fs.write(path, b"x")
    with guest.fs.open(path) as handle:
        guest.fs.write(f"{UIO}/unbind", str(instance("k")))
        with refused(ENODEV, "ring"):
            handle.read()
    assert not guest.fs.exists(path)
    with refused(ENOENT):
        guest.fs.read(path)


def test_ring_of_a_channel_that_is_not_open(guest):
    """hv_uio_ring_mmap: ENODEV unless the channel is open."""
    bind_uio(guest)
    guest.vmbus.close(guest.vmbus.channels[5])
    with refused(ENODEV, "channel 5"):
        guest.fs.read(f"{channel_dir(guest, 5)}/ring")
    assert 0 == guest.fs.stat(f"{channel_dir(guest, 5)}/ring").st_size


def test_ring_with_large_pages():
    """The mapping has whole guest pages: the gap behind each control page is in it."""
    guest = Scripted(page_bytes=65536)
    guest.offered("keyboard", 5, "k")
    bind_uio(guest)
    path = f"{channel_dir(guest, 5)}/ring"
    rings = guest.vmbus.channels[5].rings
    assert rings.size == guest.fs.stat(path).st_size == len(guest.fs.read(path))
    assert 0 == rings.size % (2 * 65536)
    guest.host.rings[5][0].poke(0, b"first")
    half = rings.size // 2
    assert b"first" == guest.fs.read(path)[half + 65536 : half + 65541]


# ---- monitors


def monitored(monitorid=0x25, **options):
    """Return a guest with a keyboard whose offer has a monitor, and what writes to a monitor page."""
    guest = Scripted(**options)
    guest.offered("keyboard", 5, "k", monitorid=monitorid, monitor_allocated=1)
    contact = guest.host.got[0]

    def poke(page, offset, value, size):
        gpa = (contact.monitor_page1, contact.monitor_page2)[page]
        guest.partition.memory.write(gpa + offset, value.to_bytes(size, "little"))

    return guest, poke


def test_monitor_files_exist_only_with_a_monitor(guest):
    """6.2, 6.3: the attribute does not exist when the offer has monitor_allocated = 0."""
    for path in [f"{guest.device_dir()}/{name}" for name in DEVICE_MONITOR]:
        with refused(ENOENT):
            guest.fs.read(path)
    for path in [f"{channel_dir(guest, 5)}/{name}" for name in CHANNEL_MONITOR]:
        with refused(ENOENT):
            guest.fs.read(path)
    other, _ = monitored()
    without = set(guest.fs.listdir(guest.device_dir()))
    assert set(DEVICE_MONITOR) == set(other.fs.listdir(other.device_dir())) - without
    without = set(guest.fs.listdir(channel_dir(guest, 5)))
    assert set(CHANNEL_MONITOR) == set(other.fs.listdir(channel_dir(other, 5))) - without
    for name in DEVICE_MONITOR:
        assert 0o100444 == other.fs.stat(f"{other.device_dir()}/{name}").st_mode
    for name in CHANNEL_MONITOR:
        assert 0o100444 == other.fs.stat(f"{channel_dir(other, 5)}/{name}").st_mode


@pytest.mark.parametrize("monitorid", [0, 0x25, 127])
def test_monitor_files_read_the_pages(monitorid):
    """2.5: group = id / 32; server is page 0, client page 1; a channel's files are of page 1."""
    guest, poke = monitored(monitorid)
    group = monitorid // 32
    for page, (pending, latency, connection) in enumerate([(0x11, 1000, 0x10005), (0x8000_0000, 65535, 0x12_3456)]):
        poke(page, 8 + 8 * group, pending, 4)
        poke(page, 0x240 + 2 * monitorid, latency, 2)
        poke(page, 0x440 + 8 * monitorid, connection, 4)
    expected = {
        "monitor_id": str(monitorid),
        "server_monitor_pending": "17",
        "server_monitor_latency": "1000",
        "server_monitor_conn_id": "65541",
        "client_monitor_pending": "-2147483648",  # the whole word, as %d
        "client_monitor_latency": "65535",
        "client_monitor_conn_id": "1193046",
    }
    assert expected == {name: guest.line(name) for name in DEVICE_MONITOR}
    assert ["-2147483648", "65535", str(monitorid)] == [show(guest, 5, name) for name in CHANNEL_MONITOR]


def test_a_monitor_id_that_no_page_has_breaks_nothing():
    """A byte goes to 255; the fields of 128 are believed to be there, and so the same page is read behind them."""
    guest, _ = monitored(255)
    assert "255" == guest.line("monitor_id")
    for name in DEVICE_MONITOR:
        int(guest.line(name))


def test_a_signal_through_the_monitor_is_seen_pending():
    """2.6: a monitored channel sets its bit of page 1; nothing counts in events (10.25)."""
    guest, _ = monitored(0x25)
    lib.vi_channel_setevent(guest.vmbus.channels[5].c)
    assert (str(1 << 5), str(1 << 5)) == (guest.line("client_monitor_pending"), show(guest, 5, "pending"))
    assert ("0", "0") == (guest.line("server_monitor_pending"), show(guest, 5, "events"))


def test_monitor_files_after_the_guest_has_left():
    """No pages are shared any more: ENODEV, and nothing breaks."""
    guest, _ = monitored()
    path = f"{guest.device_dir()}/client_monitor_pending"
    guest.vmbus.kexec()
    with refused(ENODEV, "channel 5"):
        guest.fs.read(path)


# ---- channels, and devices that come and go


def with_sub_channels():
    """Return a guest with a strange device: primary 9, sub-channels 30 and 12, offered in this order."""
    guest = Scripted(nodes=[0b0011, 0b1100])
    for sub, relid in enumerate((9, 30, 12)):
        guest.offered("", relid, "s", sub, if_type=STRANGE)
    return guest


def test_the_mapping_has_the_primary_first_then_sub_channels_in_offer_order():
    """6.2; directories are listed by name."""
    guest = with_sub_channels()
    assert "9:0\n30:0\n12:0" == guest.line("channel_vp_mapping", 9)
    assert ["12", "30", "9"] == guest.fs.listdir(f"{guest.device_dir(9)}/channels")
    assert ["0", "1", "2"] == [show(guest, relid, "subchannel_id") for relid in (9, 30, 12)]
    guest.host.rescind(30)
    guest.settle()
    assert "9:0\n12:0" == guest.line("channel_vp_mapping", 9)


def test_the_mapping_is_cut_at_a_page():
    """A show function has one page with a NUL at its end."""
    guest = Scripted(cpus=1)
    relids = [2000, *range(1, 720)]
    for sub, relid in enumerate(relids):
        guest.host.post(offer_of("", relid, "s", sub, if_type=STRANGE))
    guest.settle()
    text = "".join(f"{relid}:0\n" for relid in relids).encode()
    assert len(text) > PAGE_TEXT == 4095
    assert text[:PAGE_TEXT] == guest.fs.read(f"{guest.device_dir(2000)}/channel_vp_mapping")


def test_numa_node_follows_the_primary():
    """6.2: the node of the primary's target CPU."""
    guest = Scripted(nodes=[0b0011, 0b1100])
    guest.offered("keyboard", 5)
    assert "0" == guest.line("numa_node")
    guest.fs.write(f"{channel_dir(guest, 5)}/cpu", "3")
    assert ("1", "5:3") == (guest.line("numa_node"), guest.line("channel_vp_mapping"))


def test_names_of_directories():
    """Decimal relids and lower-case GUIDs, nothing that means the same."""
    guest = with_sub_channels()
    guid = str(instance("s"))
    for path in ("channels/09", "channels/+9", "channels/10", "channels/9/nothing", "channels/9/ring", "nothing"):
        with refused(ENOENT):
            guest.fs.read(f"{BUS}/devices/{guid}/{path}")
    for name in ("nonsense", guid.upper(), f"{{{guid}}}", guid.replace("-", "")):
        for place in (f"{BUS}/devices", ROOT):
            assert not guest.fs.exists(f"{place}/{name}")


def test_what_is_held_open_of_a_channel_that_is_gone():
    """kernfs: ENODEV, also when the relid has come back meanwhile; nothing speaks of the new channel."""
    guest = with_sub_channels()
    directory = guest.fs.lookup(channel_dir(guest, 30))
    paths = [f"{channel_dir(guest, 30)}/{name}" for name in guest.fs.listdir(channel_dir(guest, 30))]
    handles = [guest.fs.open(path, "r+" if path.endswith("cpu") else "r") for path in paths]
    guest.host.rescind(30)
    guest.settle()
    guest.offered("", 30, "s", 1, if_type=STRANGE)
    for handle in handles:
        with refused(ENODEV, "channels/30"):
            handle.read()
    with refused(ENODEV):
        next(handle for handle in handles if handle.path.endswith("cpu")).write("1")
    assert ([], None) == (directory.listdir(), directory.lookup("cpu"))
    assert guest.fs.exists(paths[0])


def test_a_device_goes_with_its_primary():
    """7.3: the device is unregistered with its primary; sub-channels that are left have no directory any more."""
    guest = with_sub_channels()
    here = f"{ROOT}/{instance('s')}"
    held = [guest.fs.lookup(here), guest.fs.lookup(f"{here}/channels"), guest.fs.lookup(f"{here}/channels/30")]
    handles = [guest.fs.open(path) for path, node in list(guest.fs.walk(here)) if stat.S_ISREG(node.mode)]
    assert 40 < len(handles)
    guest.host.rescind(9)
    guest.settle()
    for handle in handles:
        with refused(ENODEV):
            handle.read()
    assert [[]] * 3 == [node.listdir() for node in held]
    for place in (f"{BUS}/devices", ROOT):
        assert [] == guest.fs.listdir(place)


def test_after_a_resume_a_channel_has_another_id_and_its_old_directory(guest):
    """7.4 and check 18: `id` changes, the directory's name does not, target_cpu is kept; no relid is -1 meanwhile."""
    guest.fs.write(f"{channel_dir(guest, 5)}/cpu", "2")
    path = f"{BUS}/devices/{instance('k')}"
    guest.vmbus.suspend()
    assert (b"-1\n", b"4294967295:2\n") == (guest.fs.read(f"{path}/id"), guest.fs.read(f"{path}/channel_vp_mapping"))
    guest.host.offers = [offer_of("keyboard", 77, "k")]
    guest.vmbus.resume()
    assert (b"77\n", b"77:2\n") == (guest.fs.read(f"{path}/id"), guest.fs.read(f"{path}/channel_vp_mapping"))
    assert (b"3\n", ["5"]) == (guest.fs.read(f"{path}/state"), guest.fs.listdir(f"{path}/channels"))
    assert b"2\n" == guest.fs.read(f"{path}/channels/5/cpu")
    assert 2 == guest.fs.write(f"{path}/channels/5/cpu", "1\n")
    guest.settle()
    assert 1 == guest.host.targets[77]


# ---- driver_override and uevent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"uio_hv_generic\n", b"uio_hv_generic\n"),
        (b"a b", b"a b\n"),
        (b"x\0y\n", b"x\n"),
        (b"x\ny\n", b"x\n"),
        (b"\xff\n", b"\xff\n"),
        (b"z" * 4094, b"z" * 4094 + b"\n"),
        (b"\n", b"(null)\n"),
        (b"\0", b"(null)\n"),
    ],
)
def test_driver_override(guest, text, shown):
    """6.2: a line sets it, an empty line clears it; drivers/base/driver.c cuts at NUL and newline."""
    path = f"{guest.device_dir()}/driver_override"
    guest.fs.write(path, "before")
    assert len(text) == guest.fs.write(path, text)
    assert shown[:PAGE_TEXT] == guest.fs.read(path)
    assert 0 == guest.fs.write(path, b"")
    for length in (4095, 4096, 9000):
        with refused(EINVAL, str(instance("k"))):
            guest.fs.write(path, b"z" * length)
    assert shown[:PAGE_TEXT] == guest.fs.read(path)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (b"change\n", 7),
        (b"add", 3),
        (b"bind\0", 5),
        (b"change 0123abcd-0000-1111-2222-333344445555 A=1 B=two\n", 54),
        (b"", 0),
        (b"\n", -EINVAL),
        (b"chang\n", -EINVAL),
        (b"changes\n", -EINVAL),
        (b"change now\n", -EINVAL),
        (b"change 0123abcd-0000-1111-2222-333344445555 A=\n", -EINVAL),
    ],
)
def test_uevent_takes_the_kernels_words(guest, text, result):
    """lib/kobject_uevent.c: an action, then perhaps a UUID and variables."""
    assert result == errno_of(lambda: guest.fs.write(f"{guest.device_dir()}/uevent", text))


@pytest.mark.parametrize("version", [Version.V4_0, Version.V5_3])
def test_files_do_not_depend_on_the_version(version):
    """6.2, 6.3: nothing there is negotiated."""
    guest = Scripted(version=version)
    guest.offered("keyboard", 5)
    assert ("5", "3") == (guest.line("id"), guest.line("state"))
