"""/sys/bus/vmbus of whole machines, guest and host (vmbus.md 4.2, 5.1 to 5.3, 6; real-clients.md 5.6)."""

from __future__ import annotations

import stat
from errno import EACCES, EEXIST, EINVAL, ENODEV, ENOENT
from uuid import UUID

import pytest

from tests.fs.bus import BUS, ROOT, default, show, store
from tests.fs.kernel import Kernel, refused
from tests.fs.lsvmbus import lsvmbus
from vmbusirq import Machine

NIC = "7ce5d3f0-9a1b-4b57-8d3c-0d3ac16f22e1"

# class GUID, class index, modalias, driver, lsvmbus text: vmbus.md 5.1 and 6.2, modalias worked out by hand
CLASSES = {
    "heartbeat": (
        "57164f39-9115-4e78-ab55-382f3bd5422d",
        "0xb",
        "394f16571591784eab55382f3bd5422d",
        "hv_utils",
        "[Heartbeat]",
    ),
    "shutdown": (
        "0e0b6031-5213-4934-818b-38d90ced39db",
        "0xc",
        "31600b0e13523449818b38d90ced39db",
        "hv_utils",
        "[Operating system shutdown]",
    ),
    "timesync": (
        "9527e630-d0ae-497b-adce-e80ab0175caf",
        "0xa",
        "30e62795aed07b49adcee80ab0175caf",
        "hv_utils",
        "[Time Synchronization]",
    ),
    "vss": (
        "35fa2e29-ea23-4236-96ae-3a6ebacba440",
        "0xe",
        "292efa3523ea364296ae3a6ebacba440",
        "hv_utils",
        "[Backup (volume checkpoint)]",
    ),
    "scsi": (
        "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f",
        "0x1",
        "d96361baa104294db60572e2ffb1dc7f",
        "hv_storvsc",
        "Synthetic SCSI Controller",
    ),
    "balloon": (
        "525074dc-8985-46e2-8057-a307dc18a502",
        "0xf",
        "dc7450528589e2468057a307dc18a502",
        "hv_balloon",
        "[Dynamic Memory]",
    ),
    "mouse": (
        "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a",
        "0x8",
        "9eb6a8cf4a5bc04cb98b8ba1a1f3f95a",
        "hid_hyperv",
        "Synthetic mouse",
    ),
    "keyboard": (
        "f912ad6d-2b17-48ea-bd65-f927a61c7684",
        "0x7",
        "6dad12f9172bea48bd65f927a61c7684",
        "hyperv_keyboard",
        "Synthetic keyboard",
    ),
    "framebuffer": (
        "da0a7802-e377-4aac-8e77-0558eb1073f8",
        "0x6",
        "02780ada77e3ac4a8e770558eb1073f8",
        "hyperv_fb",
        "Synthetic framebuffer adapter",
    ),
    "netvsc": (
        "f8615163-df3e-46c5-913f-f2d2f965ed0e",
        "0x3",
        "635161f83edfc546913ff2d2f965ed0e",
        "hv_netvsc",
        "Synthetic network adapter",
    ),
    "kvp": (
        "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6",
        "0x9",
        "e7f4a0a9455a964db8278a841e8c03e6",
        "hv_utils",
        "[Data Exchange]",
    ),
}
# instance, class, ring size in pages, relid:cpu of its channels (vmbus.md 5.3 and 5.5; the drivers' ring sizes)
DEVICES = [
    ("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0", "heartbeat", 4, [(7, 0)]),
    ("b6650ff7-33bc-4840-8048-e0676786f393", "shutdown", 4, [(9, 0)]),
    ("2dd1ce17-079e-403c-b352-a1921ee207ee", "timesync", 4, [(10, 0)]),
    ("2450ee40-33bf-4fbd-892e-9fb06e9214cf", "vss", 4, [(11, 0)]),
    ("f8b3781b-1e82-4818-a1c3-63d806ec15bb", "scsi", 32, [(14, 0), (23, 2)]),
    ("f8b3781a-1e82-4818-a1c3-63d806ec15bb", "scsi", 32, [(15, 1), (24, 3)]),
    ("1eccfd72-4b41-45ef-b73a-4a6e44c12924", "balloon", 5, [(1, 0)]),
    ("58f75a6d-d949-4320-99e1-a2a2576d581c", "mouse", 9, [(3, 0)]),
    ("d34b2567-b9b6-42b9-8778-0a4ec0b955bf", "keyboard", 9, [(4, 0)]),
    ("5620e0c7-8062-4dce-aeb7-520c7ef76171", "framebuffer", 64, [(5, 0)]),
    (NIC, "netvsc", 128, [(13, 2), (16, 3), (17, 4), (18, 5), (19, 6), (20, 7), (21, 0), (22, 1)]),
    ("242ff919-07db-4180-9c2e-b86cb68c8c55", "kvp", 4, [(8, 0)]),
]
RELIDS = sorted(relid for _, _, _, channels in DEVICES for relid, _ in channels)


# ---- the tree


def test_what_is_on_the_bus():
    """6.1: hibernation, devices, drivers; devices and drivers hold links to the one directory of a device."""
    fs = default().fs
    assert ["devices", "drivers", "hibernation"] == fs.listdir(BUS)
    assert (b"0\n", 0o100444) == (fs.read(f"{BUS}/hibernation"), fs.stat(f"{BUS}/hibernation").st_mode)
    guids = sorted(guid for guid, *_ in DEVICES)
    assert guids == fs.listdir(f"{BUS}/devices") == fs.listdir(ROOT)
    others = {"hv_pci", "hv_sock", "uio_hv_generic"}
    assert sorted({row[3] for row in CLASSES.values()} | others) == fs.listdir(f"{BUS}/drivers")
    for guid, device_class, _, _ in DEVICES:
        driver = f"{BUS}/drivers/{CLASSES[device_class][3]}"
        assert f"../../..{ROOT[4:]}/{guid}" == fs.readlink(f"{BUS}/devices/{guid}")
        assert f"../../../..{ROOT[4:]}/{guid}" == fs.readlink(f"{driver}/{guid}")
        assert f"{ROOT}/{guid}" == fs.realpath(f"{BUS}/devices/{guid}") == fs.realpath(f"{driver}/{guid}")
        assert driver == fs.realpath(f"{BUS}/devices/{guid}/driver")
        assert BUS == fs.realpath(f"{BUS}/devices/{guid}/subsystem")
    assert "../../../../../../bus/vmbus/drivers/hv_netvsc" == fs.readlink(f"{ROOT}/{NIC}/driver")
    assert "../../../../../../bus/vmbus" == fs.readlink(f"{ROOT}/{NIC}/subsystem")
    bound = {name: [g for g in fs.listdir(f"{BUS}/drivers/{name}") if "-" in g] for name in ("hv_pci", "hv_utils")}
    assert (0, 5) == (len(bound["hv_pci"]), len(bound["hv_utils"]))


def test_every_file_of_every_device_of_the_default_scenario():
    """6.2 and 6.3: the text of each file after boot: rings are open and empty; drivers have greeted the host."""
    machine = default()
    fs = machine.fs
    for guid, device_class, pages, channels in DEVICES:
        class_id, index, modalias, driver, _ = CLASSES[device_class]
        relid, cpu = channels[0]
        free = (pages - 1) * 4096
        expected = {
            "id": str(relid),
            "state": "3",
            "class_id": f"{{{class_id}}}",
            "device_id": f"{{{guid}}}",
            "modalias": f"vmbus:{modalias}",
            "uevent": f"DRIVER={driver}\nMODALIAS=vmbus:{modalias}",
            "vendor": "0x1414",
            "device": index,
            "numa_node": "0",
            "channel_vp_mapping": "\n".join(f"{relid}:{cpu}" for relid, cpu in channels),
            "driver_override": "(null)",
        }
        here = f"{BUS}/devices/{guid}"
        for ring in ("in", "out"):
            index = fs.read(f"{here}/{ring}_write_index").decode().strip()
            assert int(index) % 8 == 0
            expected |= {f"{ring}_read_index": index, f"{ring}_write_index": index, f"{ring}_intr_mask": "0"}
            expected |= {f"{ring}_read_bytes_avail": "0", f"{ring}_write_bytes_avail": str(free)}
        shown = {name for name in fs.listdir(here) if stat.S_ISREG(fs.stat(f"{here}/{name}").st_mode)}
        assert {f"{name}": f"{text}\n".encode() for name, text in expected.items()} == {
            name: fs.read(f"{here}/{name}") for name in shown
        }
        assert sorted([*expected, "channels", "driver", "subsystem"]) == fs.listdir(here)
        assert sorted(str(relid) for relid, _ in channels) == fs.listdir(f"{here}/channels")
        for sub, (relid, cpu) in enumerate(channels):
            stats = machine.vmbus.channels[relid].stats
            expected = dict.fromkeys(["out_mask", "in_mask", "read_avail"], "0")
            expected |= dict.fromkeys(["intr_in_full", "out_full_first", "out_full_total"], "0")
            expected |= {"interrupts": stats.interrupts, "events": stats.sig_events}
            expected |= {
                "intr_out_empty": stats.intr_out_empty,
                "write_avail": str(free),
                "cpu": str(cpu),
                "subchannel_id": str(sub),
            }
            there = f"{here}/channels/{relid}"
            assert {name: f"{text}\n".encode() for name, text in expected.items()} == {
                name: fs.read(f"{there}/{name}") for name in fs.listdir(there)
            }


def test_modes_and_refusals_at_open():
    """0444 but for cpu, driver_override and uevent; a read-only file of sysfs cannot even be opened for writing."""
    fs = default().fs
    writable = {"cpu", "driver_override", "uevent"}
    seen = set()
    for path, node in fs.walk(f"{ROOT}/{NIC}"):
        if stat.S_ISREG(node.mode):
            seen.add(node.name)
            assert (0o100644 if node.name in writable else 0o100444) == fs.stat(path).st_mode, path
            assert 4096 == fs.stat(path).st_size
            if node.name not in writable:
                with refused(EACCES):
                    fs.write(path, "0\n")
    assert writable < seen
    assert 0o40755 == fs.stat(f"{ROOT}/{NIC}/channels/13").st_mode
    for path in ("channels/13/pending", "channels/13/ring", "monitor_id", "channels/013", "channels/14"):
        with refused(ENOENT):
            fs.read(f"{ROOT}/{NIC}/{path}")
    for name in ("nonsense", NIC.upper(), f"{{{NIC}}}"):
        with refused(ENOENT):
            fs.read(f"{BUS}/devices/{name}/id")


def test_a_kernel_without_vmbus_has_no_such_bus():
    """5.2: lsvmbus then says that the path does not exist."""
    fs = Kernel(2).fs
    assert not fs.exists(BUS)
    assert ("/sys/bus/vmbus/devices doesn't exist: exiting...\n", 255) == lsvmbus(fs)


def test_a_bus_without_devices_is_there():
    """Drivers are registered, devices may come."""
    fs = Machine(2).fs
    assert [] == fs.listdir(f"{BUS}/devices")
    assert ["bind", "module", "new_id", "remove_id", "uevent", "unbind"] == fs.listdir(f"{BUS}/drivers/hv_netvsc")


# ---- lsvmbus and the field's health check


def test_lsvmbus_names_all_devices_of_the_rfc_table():
    """real-clients.md 5.6: the 12 devices print with the right names; class_id is looked up with braces."""
    text, status = lsvmbus(default().fs, 2)
    assert (12, 0) == (text.count("VMBUS ID"), status)
    assert "Unknown" not in text
    assert text.startswith(
        "VMBUS ID  1: Class_ID = {525074dc-8985-46e2-8057-a307dc18a502} - [Dynamic Memory]\n"
        "\tDevice_ID = {1eccfd72-4b41-45ef-b73a-4a6e44c12924}\n"
        "\tSysfs path: /sys/bus/vmbus/devices/1eccfd72-4b41-45ef-b73a-4a6e44c12924\n"
        "\tRel_ID=1, target_cpu=0\n"
        "\n"
        "VMBUS ID  3: Class_ID = {cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a} - Synthetic mouse\n"
    )
    nic = text[text.index("VMBUS ID 13") :].split("\n\n")[0].splitlines()[3:]
    channels = dict(DEVICES[10][3])
    assert [f"\tRel_ID={relid}, target_cpu={cpu}" for relid, cpu in sorted(channels.items())] == nic


def test_lsvmbus_plain_and_verbose():
    """5.2: one line per device by id; with -v its channels by relid, and an empty line."""
    fs = default().fs
    ids = {channels[0][0]: name for _, name, _, channels in DEVICES}
    plain = "".join(f"VMBUS ID {relid:>2}: {CLASSES[name][4]}\n" for relid, name in sorted(ids.items()))
    assert (plain, 0) == lsvmbus(fs)
    verbose, status = lsvmbus(fs, 1)
    assert 0 == status
    assert verbose.endswith(
        "VMBUS ID 15: Class_ID = {ba6163d9-04a1-4d29-b605-72e2ffb1dc7f} - Synthetic SCSI Controller\n"
        "\tRel_ID=15, target_cpu=1\n"
        "\tRel_ID=24, target_cpu=3\n"
        "\n"
    )


@pytest.mark.parametrize("design", ["rfc", "legacy", "mgmt-irq-hidden"])
def test_the_field_check_every_channel_takes_every_cpu(design):
    """6.5: write a CPU to each channel's cpu, read it back through lsvmbus; then move everything to CPU 0."""
    machine = default(design)
    for cpu in [*range(8), 0]:
        for relid in RELIDS:
            assert 2 == store(machine, relid, f"{cpu}\n")
        text, _ = lsvmbus(machine.fs, 1)
        shown = set(text.splitlines())
        assert {f"\tRel_ID={relid}, target_cpu={cpu}" for relid in RELIDS} <= shown
        machine.settle()
        assert {cpu} == {machine.host.channels[relid].target_vp for relid in RELIDS}


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_heartbeat_counters_grow(engine):
    """6.5: interrupts and events of the heartbeat channel both grow: each request is answered, into an empty ring."""
    machine = Machine.load("rfc-gen2-8vcpu", engine=engine)
    machine.boot()
    before = [int(show(machine, 7, name)) for name in ("interrupts", "events")]
    for beat in range(1, 4):
        machine.host.channels[7].device.vsp.beat()
        machine.settle()
        now = [int(show(machine, 7, name)) for name in ("interrupts", "events")]
        assert [count + beat for count in before] == now


# ---- live state


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_after_a_run_counters_and_rings_agree_with_the_traffic(design):
    """Heartbeat: a negotiation, 80 bytes in and 72 out, then 16840 packets of 16 + 72 + 8 bytes and as many answers."""
    machine = Machine.load("rfc-gen2-8vcpu", design=design)
    machine.run()
    here = f"{BUS}/devices/{DEVICES[0][0]}"
    assert "16841" == show(machine, 7, "interrupts")
    for ring, first in (("in", 80), ("out", 72)):
        index = b"%d\n" % ((first + 16840 * 96) % 12288)
        assert [index] * 2 == [machine.fs.read(f"{here}/{ring}_{name}_index") for name in ("read", "write")]
    assert sum(c.stats.interrupts for c in machine.vmbus.channels.values()) == sum(
        int(show(machine, relid, "interrupts")) for relid in RELIDS
    )


def test_packets_that_wait_are_bytes_to_read():
    """1.4: read_avail is of the in ring, write_avail of the out ring; the host's packets wait until they are read."""
    machine = default()
    here = f"{BUS}/devices/{NIC}"
    names = ("read_index", "write_index", "read_bytes_avail", "write_bytes_avail")

    def shown():
        return [int(machine.fs.read(f"{here}/{ring}_{name}")) for ring in ("in", "out") for name in names]

    before = shown()
    machine.host.send(relid=13, packets=2, payload=120)
    used = 2 * (16 + 120 + 8)
    assert (str(used), str(127 * 4096)) == (show(machine, 13, "read_avail"), show(machine, 13, "write_avail"))
    assert [0, used, used, -used, 0, 0, 0, 0] == [now - then for then, now in zip(before, shown(), strict=True)]
    machine.settle()
    assert "0" == show(machine, 13, "read_avail")


def test_closed_channels_have_no_rings_and_keep_the_rest():
    """6.2, 6.3: ring attributes are EINVAL while the ring is not mapped; the NIC's sub-channels close with it."""
    machine = default()
    driver = f"{BUS}/drivers/hv_netvsc"
    machine.fs.write(f"{driver}/unbind", NIC)
    here = f"{BUS}/devices/{NIC}"
    rings = {name for name in machine.fs.listdir(here) if name.startswith(("in_", "out_"))}
    masks = ("out_mask", "in_mask", "read_avail", "write_avail")
    rings |= {f"channels/{relid}/{name}" for relid in machine.fs.listdir(f"{here}/channels") for name in masks}
    assert {"channels/13/in_mask", "in_intr_mask"} < rings
    for path, node in list(machine.fs.walk(f"{ROOT}/{NIC}")):
        name = path.removeprefix(f"{ROOT}/{NIC}/")
        if not stat.S_ISREG(node.mode):
            continue
        if name in rings:
            with refused(EINVAL, "OPEN"):
                machine.fs.read(path)
        else:
            machine.fs.read(path)
    assert b"2\n" == machine.fs.read(f"{here}/state")
    machine.fs.write(f"{driver}/bind", NIC)
    assert b"3\n" == machine.fs.read(f"{here}/state")
    assert "0" == show(machine, 13, "read_avail")


def test_hv_sock_is_a_device_of_no_class_that_linux_lists():
    """5.1: index 16 with driver hv_sock; 7.6: the class is the service, whose first group is the port."""
    machine = Machine(1)
    machine.attach("hv_sock", 5)
    guid = machine.fs.listdir(f"{BUS}/drivers/hv_sock")[0]
    here = f"{BUS}/devices/{guid}"
    assert b"0x10\n" == machine.fs.read(f"{here}/device")
    assert b"{00000000-facb-11e6-bd58-64006a7986d3}\n" == machine.fs.read(f"{here}/class_id")
    assert b"vmbus:00000000cbfae611bd5864006a7986d3\n" == machine.fs.read(f"{here}/modalias")


# ---- devices come and go


def test_a_hot_attach_appears_everywhere_and_a_detach_disappears():
    """Devices, driver, root and channels show what is there now; a sub-channel in use ends with its primary (7.3)."""
    machine = default()
    guid = UUID("11112222-3333-4444-5555-666677778888")
    machine.attach("netvsc", 40, device="vf", instance=guid)
    machine.attach("netvsc", 41, device="vf", sub=1)
    places = [f"{BUS}/devices", f"{BUS}/drivers/hv_netvsc", ROOT]
    assert all(str(guid) in machine.fs.listdir(place) for place in places)
    assert ["40", "41"] == machine.fs.listdir(f"{BUS}/devices/{guid}/channels")
    cpus = [machine.vmbus.channels[relid].target_cpu for relid in (40, 41)]
    mapping = "40:{}\n41:{}\n".format(*cpus).encode()
    machine.detach(41)
    assert mapping == machine.fs.read(f"{BUS}/devices/{guid}/channel_vp_mapping")
    machine.detach(40)
    assert not any(str(guid) in machine.fs.listdir(place) for place in places)
    with refused(ENOENT):
        machine.fs.read(f"{BUS}/devices/{guid}/id")


def test_a_device_goes_with_its_primary():
    """7.3: the device is unregistered with its primary; what is held open speaks of nothing that comes later."""
    machine = default()
    device = machine.fs.lookup(f"{ROOT}/{NIC}")
    channels = machine.fs.lookup(f"{ROOT}/{NIC}/channels")
    cpu, ident = f"{ROOT}/{NIC}/channels/16/cpu", f"{ROOT}/{NIC}/id"
    with machine.fs.open(cpu, "r+") as handle, machine.fs.open(ident) as other:
        assert (b"3\n", b"13\n") == (handle.read(), other.read())
        machine.detach(13)
        assert not machine.fs.exists(f"{BUS}/devices/{NIC}")
        machine.attach("netvsc", 13, device="nic", instance=UUID(NIC))
        for call in (lambda: handle.pread(9, 0), lambda: handle.write("1"), lambda: other.pread(9, 0)):
            with refused(ENODEV):
                call()
    assert ([], [], None) == (device.listdir(), channels.listdir(), device.lookup("id"))
    assert b"13\n" == machine.fs.read(ident)


def test_a_channel_that_is_gone_has_no_counters():
    """ENODEV, never another channel's numbers."""
    machine = Machine(1)
    channel = machine.attach("netvsc", 16)
    machine.detach(16)
    machine.attach("netvsc", 16)
    assert channel.gone
    with refused(ENODEV, "channel 16"):
        _ = channel.stats


# ---- instances


def test_instance_guids_come_from_the_scenario_or_from_name_and_seed():
    """Two machines of one seed agree; names and seeds differ."""

    def guid(seed, device):
        machine = Machine(1, seed=seed)
        machine.attach("kvp", 5, device=device)
        return machine.fs.listdir(f"{BUS}/devices")[0]

    assert guid(0, "a") == guid(0, "a")
    assert 4 == len({guid(0, "a"), guid(0, "b"), guid(1, "a"), guid(1, "b")})
    assert str(UUID(guid(0, "a"))) == guid(0, "a")


def test_two_devices_cannot_be_one():
    """Two directories of one name cannot be; nor can a device have two primaries."""
    machine = Machine(2)
    guid = UUID("11112222-3333-4444-5555-666677778888")
    machine.attach("netvsc", 1, device="a", instance=guid)
    for attempt in (
        lambda: machine.attach("netvsc", 2, device="b", instance=guid),
        lambda: machine.attach("scsi", 2, device="b", scsi_host=0, instance=guid),
        lambda: machine.attach("netvsc", 2, device="a", instance=UUID(int=5)),
        lambda: machine.attach("netvsc", 2, device="a"),
    ):
        with refused(EEXIST):
            attempt()
    machine.attach("kvp", 3, device="a")  # another class, another device
    machine.attach("netvsc", 2, device="a", sub=1)
    assert ["1", "2"] == machine.fs.listdir(f"{BUS}/devices/{guid}/channels")


def test_a_device_explains_itself():
    """What a debugger shows."""
    machine = default()
    assert f"<HvDevice {NIC} relid 13>" == repr(machine.vmbus.devices[UUID(NIC)])
