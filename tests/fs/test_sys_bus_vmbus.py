"""/sys/bus/vmbus (vmbus.md 4.2, 5.1 to 5.3, 6; real-clients.md 5.6)."""

from __future__ import annotations

import stat
from errno import EACCES, EEXIST, EINVAL, ENODEV, ENOENT
from uuid import UUID

import pytest

from tests.fs.bus import BUS, channel_dir, default, errno_of, show, small, store
from tests.fs.kernel import Kernel, refused
from vmbusirq import Machine
from vmbusirq._ffi import lib
from vmbusirq.fs.sysfs.kernel_irq import PAGE_TEXT
from vmbusirq.wire.devices import CLASS_IDS

ROOT = "/sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00"
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
    assert sorted({row[3] for row in CLASSES.values()} | {"hv_pci", "hv_sock"}) == fs.listdir(f"{BUS}/drivers")
    for guid, device_class, _, _ in DEVICES:
        driver = f"{BUS}/drivers/{CLASSES[device_class][3]}"
        assert f"../../..{ROOT[4:]}/{guid}" == fs.readlink(f"{BUS}/devices/{guid}")
        assert f"../../../..{ROOT[4:]}/{guid}" == fs.readlink(f"{driver}/{guid}")
        assert f"{ROOT}/{guid}" == fs.realpath(f"{BUS}/devices/{guid}") == fs.realpath(f"{driver}/{guid}")
        assert driver == fs.realpath(f"{BUS}/devices/{guid}/driver")
        assert BUS == fs.realpath(f"{BUS}/devices/{guid}/subsystem")
    assert "../../../../../../bus/vmbus/drivers/hv_netvsc" == fs.readlink(f"{ROOT}/{NIC}/driver")
    assert "../../../../../../bus/vmbus" == fs.readlink(f"{ROOT}/{NIC}/subsystem")
    assert [] == fs.listdir(f"{BUS}/drivers/hv_pci")
    assert 6 == sum(len(fs.listdir(f"{BUS}/drivers/{name}")) for name in ("hv_utils", "hv_netvsc"))


def test_every_file_of_every_device_of_the_default_scenario():
    """6.2 and 6.3: the exact text of each file after boot: rings are open and empty, nothing has happened."""
    fs = default().fs
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
        for ring in ("in", "out"):
            expected |= {f"{ring}_{name}": "0" for name in ("intr_mask", "read_index", "write_index")}
            expected |= {f"{ring}_read_bytes_avail": "0", f"{ring}_write_bytes_avail": str(free)}
        here = f"{BUS}/devices/{guid}"
        shown = {name for name in fs.listdir(here) if stat.S_ISREG(fs.stat(f"{here}/{name}").st_mode)}
        assert {f"{name}": f"{text}\n".encode() for name, text in expected.items()} == {
            name: fs.read(f"{here}/{name}") for name in shown
        }
        assert sorted([*expected, "channels", "driver", "subsystem"]) == fs.listdir(here)
        assert sorted(str(relid) for relid, _ in channels) == fs.listdir(f"{here}/channels")
        for sub, (relid, cpu) in enumerate(channels):
            expected = dict.fromkeys(["out_mask", "in_mask", "read_avail", "interrupts", "events"], "0")
            expected |= dict.fromkeys(["intr_in_full", "intr_out_empty", "out_full_first", "out_full_total"], "0")
            expected |= {"write_avail": str(free), "cpu": str(cpu), "subchannel_id": str(sub)}
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
    assert not Kernel(2).fs.exists(BUS)


def test_a_bus_without_devices_is_there():
    """Drivers are registered, devices may come."""
    fs = Machine(2).fs
    assert ([], []) == (fs.listdir(f"{BUS}/devices"), fs.listdir(f"{BUS}/drivers/hv_netvsc"))


# ---- lsvmbus and the field's health check


def lsvmbus_vv(fs):
    """Print what ``lsvmbus -vv`` does, by the formats of 5.2 and the reads of real-clients.md 5.6."""
    names = {f"{{{row[0]}}}": row[4] for row in CLASSES.values()}
    assert stat.S_ISDIR(fs.stat(f"{BUS}/devices").st_mode)
    devices = []
    for name in fs.listdir(f"{BUS}/devices"):
        path = f"{BUS}/devices/{name}"
        first = {file: fs.read(f"{path}/{file}").decode().splitlines()[0] for file in ("id", "class_id", "device_id")}
        lines = fs.read(f"{path}/channel_vp_mapping").decode().splitlines()
        devices.append((first, path, sorted((line.split(":") for line in lines), key=lambda pair: int(pair[0]))))
    text = ""
    for first, path, channels in sorted(devices, key=lambda device: int(device[0]["id"])):
        name = names.get(first["class_id"], "Unknown")
        text += f"VMBUS ID {first['id']:>2}: Class_ID = {first['class_id']} - {name}\n"
        text += f"\tDevice_ID = {first['device_id']}\n\tSysfs path: {path}\n"
        text += "".join(f"\tRel_ID={relid}, target_cpu={cpu}\n" for relid, cpu in channels) + "\n"
    return text


def test_lsvmbus_names_all_devices_of_the_rfc_table():
    """real-clients.md 5.6: the 12 devices print with the right names; class_id is looked up with braces."""
    text = lsvmbus_vv(default().fs)
    assert 12 == text.count("VMBUS ID")
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


@pytest.mark.parametrize("design", ["rfc", "legacy", "mgmt-irq-hidden"])
def test_the_field_check_every_channel_takes_every_cpu(design):
    """6.5: write a CPU to each channel's cpu, read it back through lsvmbus; then move everything to CPU 0."""
    machine = default(design)
    for cpu in [*range(8), 0]:
        for relid in RELIDS:
            assert 2 == store(machine, relid, f"{cpu}\n")
        assert {f"target_cpu={cpu}"} == {word for word in lsvmbus_vv(machine.fs).split() if word[:7] == "target_"}
        assert {cpu} == {machine.host.channels[relid].target_vp for relid in RELIDS}


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_heartbeat_counters_grow(engine):
    """6.5: interrupts and events of the heartbeat channel both grow: each request is answered, into an empty ring."""
    machine = Machine.load("rfc-gen2-8vcpu", engine=engine)
    machine.boot()
    for beat in range(1, 4):
        machine.host.send(relid=7)
        machine.settle()
        assert (str(beat), str(beat)) == (show(machine, 7, "interrupts"), show(machine, 7, "events"))


# ---- live state


@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_after_a_run_counters_and_rings_agree_with_the_traffic(design):
    """Heartbeat: 16841 packets of 16 + 72 + 8 bytes through 12288 bytes of ring, one interrupt and one answer each."""
    machine = Machine.load("rfc-gen2-8vcpu", design=design)
    machine.run()
    here = f"{BUS}/devices/{DEVICES[0][0]}"
    index = str(16841 * 96 % 12288).encode() + b"\n"
    assert "16841" == show(machine, 7, "interrupts")
    assert (index, index) == (machine.fs.read(f"{here}/in_read_index"), machine.fs.read(f"{here}/in_write_index"))
    assert (index, index) == (machine.fs.read(f"{here}/out_read_index"), machine.fs.read(f"{here}/out_write_index"))
    assert sum(c.stats.interrupts for c in machine.vmbus.channels.values()) == sum(
        int(show(machine, relid, "interrupts")) for relid in RELIDS
    )


def test_packets_that_wait_are_bytes_to_read():
    """1.4: read_avail is of the in ring, write_avail of the out ring; the host's packets wait until they are read."""
    machine = default()
    here = f"{BUS}/devices/{NIC}"
    machine.host.send(relid=13, packets=2, payload=120)
    used = 2 * (16 + 120 + 8)
    assert (str(used), str(127 * 4096)) == (show(machine, 13, "read_avail"), show(machine, 13, "write_avail"))
    expected = {"in_read_bytes_avail": used, "in_write_bytes_avail": 127 * 4096 - used, "in_write_index": used}
    expected |= {"in_read_index": 0, "out_read_bytes_avail": 0, "out_write_bytes_avail": 127 * 4096}
    assert expected == {name: int(machine.fs.read(f"{here}/{name}")) for name in expected}
    machine.settle()
    assert "0" == show(machine, 13, "read_avail")


def test_words_of_the_control_page_are_signed_in_one_face_and_unsigned_in_the_other():
    """6.2: %d; 6.3: %u; whatever a host writes there, nothing breaks."""
    machine = default()
    rings = machine.vmbus.channels[13].rings
    for ring in (rings.ring_in, rings.ring_out):
        ring.hdr.interrupt_mask = 0xFFFF_FFFF
    rings.ring_out.hdr.read_index = 0x8000_0000
    assert ("4294967295", "4294967295") == (show(machine, 13, "in_mask"), show(machine, 13, "out_mask"))
    here = f"{BUS}/devices/{NIC}"
    assert (b"-1\n", b"-1\n") == (machine.fs.read(f"{here}/in_intr_mask"), machine.fs.read(f"{here}/out_intr_mask"))
    assert b"-2147483648\n" == machine.fs.read(f"{here}/out_read_index")
    for name in ("write_avail", "read_avail"):
        assert 0 <= int(show(machine, 13, name)) < 1 << 32


def test_counters_of_the_out_ring_and_of_flow_control_outlive_a_close():
    """6.3: they belong to the channel, not to one opening of it."""
    machine = default()
    channel = machine.vmbus.channels[9]
    names = ("intr_in_full", "intr_out_empty", "out_full_first", "out_full_total")
    for opening in (1, 2):
        lib.vi_channel_in(channel.c).intr_in_full += 1
        out = lib.vi_channel_out(channel.c)
        out.intr_out_empty += 2
        out.out_full_first += 3
        out.out_full_total += 4
        expected = [str(opening * count) for count in (1, 2, 3, 4)]
        assert expected == [show(machine, 9, name) for name in names]
        machine.vmbus.close(channel)
        assert expected == [show(machine, 9, name) for name in names]
        machine.vmbus.open(channel)
    assert expected == [show(machine, 9, name) for name in names]


def test_a_closed_channel_has_no_ring_and_keeps_the_rest():
    """6.2, 6.3: ring attributes are EINVAL while the ring is not mapped; state 2 is offered and bound."""
    machine = default()
    machine.vmbus.close(machine.vmbus.channels[13])
    here = f"{BUS}/devices/{NIC}"
    rings = {name for name in machine.fs.listdir(here) if name.startswith(("in_", "out_"))}
    rings |= {f"channels/13/{name}" for name in ("out_mask", "in_mask", "read_avail", "write_avail")}
    assert 14 == len(rings)
    for path, node in list(machine.fs.walk(f"{ROOT}/{NIC}")):
        name = path.removeprefix(f"{ROOT}/{NIC}/")
        if not stat.S_ISREG(node.mode):
            continue
        if name in rings:
            with refused(EINVAL, "channel 13", "OPEN"):
                machine.fs.read(path)
        else:
            machine.fs.read(path)
    assert b"2\n" == machine.fs.read(f"{here}/state")
    machine.vmbus.open(machine.vmbus.channels[13])
    assert b"3\n" == machine.fs.read(f"{here}/state")
    assert "0" == show(machine, 13, "read_avail")


def test_before_open_every_directory_exists():
    """6.3: from offer time."""
    machine = Machine(2)
    machine.vmbus.offer(Offer("d", "heartbeat", 5))
    assert 12 == len(machine.fs.listdir(channel_dir(machine, 5)))
    with refused(EINVAL):
        show(machine, 5, "read_avail")


def test_numa_node_follows_the_primary():
    """6.2: the node of the primary's target CPU."""
    machine = small()
    device = next(iter(machine.vmbus.devices.values()))
    path = f"{BUS}/devices/{device.guid}/numa_node"
    assert b"0\n" == machine.fs.read(path)
    store(machine, 9, "3")
    assert b"1\n" == machine.fs.read(path)
    store(machine, 10, "0")
    assert b"1\n" == machine.fs.read(path)


def test_the_mapping_is_cut_at_a_page():
    """A show function has one page with a NUL at its end; the primary comes first, then subs in offer order."""
    machine = Machine(1)
    relids = [2000, *range(1, 720)]
    for sub, relid in enumerate(relids):
        machine.vmbus.offer(Offer("nic", "netvsc", relid, sub))
    text = "".join(f"{relid}:0\n" for relid in relids).encode()
    device = next(iter(machine.vmbus.devices.values()))
    assert len(text) > PAGE_TEXT == 4095
    assert text[:PAGE_TEXT] == machine.fs.read(f"{BUS}/devices/{device.guid}/channel_vp_mapping")


def test_hv_sock_is_a_device_of_no_class_that_linux_lists():
    """5.1: index 16 with driver hv_sock; 7.6: the class is the service, whose first group is the port."""
    machine = Machine(1)
    machine.attach("hv_sock", 5)
    guid = machine.fs.listdir(f"{BUS}/drivers/hv_sock")[0]
    here = f"{BUS}/devices/{guid}"
    assert b"0x10\n" == machine.fs.read(f"{here}/device")
    assert b"{00000000-facb-11e6-bd58-64006a7986d3}\n" == machine.fs.read(f"{here}/class_id")
    assert b"vmbus:00000000cbfae611bd5864006a7986d3\n" == machine.fs.read(f"{here}/modalias")


@pytest.mark.parametrize(("index", "name"), list(enumerate(CLASS_IDS)))
def test_index_and_modalias_of_every_class(index, name):
    """5.1 and 6.2: the place in vmbus_devs, and the class GUID with its first three groups turned round."""
    machine = Machine(1)
    if name in ("netdirect", "fcopy"):  # no driver of the catalogue binds them
        with refused(EINVAL):
            machine.attach(name, 5)
        return
    machine.attach(name, 5, scsi_host=0)
    here = f"{BUS}/devices/{machine.fs.listdir(f'{BUS}/devices')[0]}"
    groups = str(CLASS_IDS[name]).split("-")
    turned = [bytes.fromhex(group)[::-1].hex() for group in groups[:3]]
    assert f"{index:#x}\n".encode() == machine.fs.read(f"{here}/device")
    assert f"vmbus:{''.join(turned + groups[3:])}\n".encode() == machine.fs.read(f"{here}/modalias")


# ---- driver_override and uevent


def test_driver_override():
    """6.2: a line sets it, an empty line clears it; drivers/base/driver.c cuts at NUL and newline."""
    fs = default().fs
    path = f"{BUS}/devices/{NIC}/driver_override"
    for text, shown in [
        (b"uio_hv_generic\n", b"uio_hv_generic\n"),
        (b"a b", b"a b\n"),
        (b"x\0y\n", b"x\n"),
        (b"x\ny\n", b"x\n"),
        (b"\xff\n", b"\xff\n"),
        (b"z" * 4094, b"z" * 4094 + b"\n"),
        (b"\n", b"(null)\n"),
        (b"q", b"q\n"),
        (b"\0", b"(null)\n"),
        (b"q", b"q\n"),
    ]:
        assert len(text) == fs.write(path, text)
        assert shown[:PAGE_TEXT] == fs.read(path)
    assert 0 == fs.write(path, b"")
    for length in (4095, 4096, 9000):
        with refused(EINVAL, NIC):
            fs.write(path, b"z" * length)
    assert b"q\n" == fs.read(path)
    assert "hv_netvsc" == fs.readlink(f"{ROOT}/{NIC}/driver").split("/")[-1]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (b"change\n", 7),
        (b"add", 3),
        (b"bind\0", 5),
        (b"change 0123abcd-0000-1111-2222-333344445555 A=1 B=two\n", None),
        (b"", 0),
        (b"\n", -EINVAL),
        (b"chang\n", -EINVAL),
        (b"changes\n", -EINVAL),
        (b"change now\n", -EINVAL),
        (b"change 0123abcd-0000-1111-2222-333344445555 A=\n", -EINVAL),
    ],
)
def test_uevent_takes_the_kernels_words(text, result):
    """lib/kobject_uevent.c: an action, then perhaps a UUID and variables."""
    machine = Machine(1)
    machine.attach("kvp", 5)
    fs = machine.fs
    path = f"{BUS}/devices/{fs.listdir(f'{BUS}/devices')[0]}/uevent"
    assert (len(text) if result is None else result) == errno_of(lambda: fs.write(path, text))


# ---- devices come and go


def test_a_hot_attach_appears_everywhere_and_a_detach_disappears():
    """Devices, driver, root and channels show what is there now."""
    machine = default()
    guid = UUID("11112222-3333-4444-5555-666677778888")
    machine.attach("netvsc", 40, device="vf", instance=guid)
    machine.attach("netvsc", 41, device="vf", sub=1)
    places = [f"{BUS}/devices", f"{BUS}/drivers/hv_netvsc", ROOT]
    assert all(str(guid) in machine.fs.listdir(place) for place in places)
    assert ["40", "41"] == machine.fs.listdir(f"{BUS}/devices/{guid}/channels")
    machine.detach(41)
    cpu = machine.vmbus.channels[40].target_cpu
    assert f"40:{cpu}\n".encode() == machine.fs.read(f"{BUS}/devices/{guid}/channel_vp_mapping")
    assert ["40"] == machine.fs.listdir(f"{BUS}/devices/{guid}/channels")
    machine.detach(40)
    assert not any(str(guid) in machine.fs.listdir(place) for place in places)
    with refused(ENOENT):
        machine.fs.read(f"{BUS}/devices/{guid}/id")


def test_what_is_held_open_of_a_channel_that_is_gone():
    """kernfs: ENODEV, also when relid and instance have come back meanwhile; nothing speaks of the new channel."""
    machine = default()
    cpu, ident = f"{ROOT}/{NIC}/channels/16/cpu", f"{ROOT}/{NIC}/id"
    directory = machine.fs.lookup(f"{ROOT}/{NIC}/channels/16")
    with machine.fs.open(cpu, "r+") as handle, machine.fs.open(ident) as other:
        assert (b"3\n", b"13\n") == (handle.read(), other.read())
        machine.detach(16)
        machine.attach("netvsc", 16, device="nic", sub=1)
        for call in (lambda: handle.pread(9, 0), lambda: handle.write("1")):
            with refused(ENODEV, "channels/16/cpu"):
                call()
        assert b"13\n" == other.pread(9, 0)
        assert ([], None) == (directory.listdir(), directory.lookup("cpu"))
    assert machine.fs.exists(cpu)


def test_a_device_goes_with_its_primary():
    """7.3: the device is unregistered with its primary; sub-channels that are left have no directory any more."""
    machine = default()
    device = machine.fs.lookup(f"{ROOT}/{NIC}")
    channels = machine.fs.lookup(f"{ROOT}/{NIC}/channels")
    with machine.fs.open(f"{ROOT}/{NIC}/channels/16/cpu", "r+") as handle:
        machine.detach(13)
        with refused(ENODEV):
            handle.read()
    assert not machine.fs.exists(f"{BUS}/devices/{NIC}")
    assert ([], [], None) == (device.listdir(), channels.listdir(), device.lookup("id"))
    for relid in range(16, 23):
        machine.detach(relid)
    machine.attach("netvsc", 13, device="nic")
    assert b"13\n" == machine.fs.read(f"{channel_dir(machine, 13)}/../../id")


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
        with refused(EEXIST, "channel 2"):
            attempt()
    machine.attach("kvp", 3, device="a")  # another class, another device
    machine.attach("netvsc", 2, device="a", sub=1)
    assert ["1", "2"] == machine.fs.listdir(f"{BUS}/devices/{guid}/channels")


def test_a_device_explains_itself():
    """What a debugger shows."""
    machine = default()
    assert f"<HvDevice nic {NIC} relid 13>" == repr(machine.vmbus.devices[UUID(NIC)])
