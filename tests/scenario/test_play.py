"""Scenarios with events: what is counted, what both ends have, what is left when it is over."""

from __future__ import annotations

import pytest

from tests.footprint import amounts, footprint, ledger
from vmbusirq import DESIGNS, Machine, parse_interrupts
from vmbusirq.scenario.schema import builtin_names, parse_scenario
from vmbusirq.wire.protocol import MessageType

EVENTFUL = ("hibernate", "hvsock")

BASE = """
duration_s = 100
[cpus]
possible = 4
[[device]]
name = "beat"
class = "heartbeat"
[[device]]
name = "disk"
class = "scsi"
[[device]]
name = "nic"
class = "netvsc"
present = {present}
[[channel]]
device = "beat"
relid = 1
interrupts = 500
[[channel]]
device = "disk"
relid = 2
interrupts = 2000
[[channel]]
device = "disk"
relid = 3
sub = 1
interrupts = 100
[[channel]]
device = "nic"
relid = 4
interrupts = {nic}
packets = 4
[[channel]]
device = "nic"
relid = 5
sub = 1
count = 3
interrupts = {nic_sub}
"""


def machine_of(events: str, *, present: str = "false", host: str = "", **options: object) -> Machine:
    nic, nic_sub = (1000, 800) if present == "true" or '"nic"' in events else (0, 0)
    text = BASE.format(present=present, nic=nic, nic_sub=nic_sub) + f"[host]\n{host}\n{events}"
    return Machine.load(parse_scenario(text, "events"), **options)  # type: ignore[arg-type]


def event(at: float, action: str, **keys: object) -> str:
    quoted = {key: f'"{value}"' if isinstance(value, str) else value for key, value in keys.items()}
    return f'[[event]]\nat_s = {at}\naction = "{action}"\n' + "".join(f"{k} = {v}\n" for k, v in quoted.items())


def results(machine: Machine) -> list[tuple[str, bool]]:
    return [(happened.event.action, happened.ok) for happened in machine.script.happened]


# ---- the built-in ones


def test_71_control_messages_of_the_default_scenario_add_up() -> None:
    """RFC cover letter: HYP is 71 on CPU 0. The host speaks 5.2, and so refuses the guest's first try, 5.3."""
    machine = Machine.load("rfc-gen2-8vcpu")
    machine.run()
    said = {MessageType(number): count for number, count in machine.vmbus.messages_received.items()}

    version_responses = 2  # 5.3 refused, 5.2 agreed on
    offers = 21 + 3  # channels; and relids 2, 6, 12, which RFC patch 01 drops early
    all_offers_delivered = 1
    gpadls_created = 21 + 2  # a pair of rings per channel; the NIC's receive and send buffers
    open_results = 21
    assert {
        MessageType.VERSION_RESPONSE: version_responses,
        MessageType.OFFERCHANNEL: offers,
        MessageType.ALLOFFERS_DELIVERED: all_offers_delivered,
        MessageType.GPADL_CREATED: gpadls_created,
        MessageType.OPENCHANNEL_RESULT: open_results,
    } == said
    assert 71 == version_responses + offers + all_offers_delivered + gpadls_created + open_results
    (row,) = [row for row in parse_interrupts(machine.fs.read("/proc/interrupts")).rows if row.label == "HYP"]
    assert [71, 0, 0, 0, 0, 0, 0, 0] == list(row.counts)


# the largest one in one design; the smaller ones show the others
RUNS = [
    (name, design) for name in builtin_names() for design in (["rfc"] if name == "stress-2047" else sorted(DESIGNS))
]


@pytest.mark.parametrize(("name", "design"), RUNS)
def test_every_channel_interrupts_as_often_as_its_scenario_says(name: str, design: str) -> None:
    """Whatever happens meanwhile, the counts are the scenario's; every packet sent was read, unaltered."""
    with ledger() as books:
        machine = Machine.load(name, design=design)
        machine.run()

        assert {} == machine.script.undelivered
        assert all(happened.ok for happened in machine.script.happened)
        for spec in machine.scenario.channels:
            assert spec.interrupts == machine.script.interrupts(spec.device, spec.sub), spec
        assert books.sent() == books.read(machine)
        assert machine.host.messages_posted == sum(machine.vmbus.messages_received.values())


@pytest.mark.parametrize("name", EVENTFUL)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    """Events and instance GUIDs too come from scenario and seed alone."""
    texts = []
    for _ in range(2):
        machine = Machine.load(name, seed=5)
        machine.run()
        paths = ("/proc/interrupts", "/proc/stat", "/proc/softirqs")
        texts.append((str(machine.log), [machine.fs.read(path) for path in paths], machine.script.happened))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", EVENTFUL)
def test_the_rfc_as_posted_plays_them_too(name: str) -> None:
    """``strict_rfc`` keeps the IRQ over a close (vmbus.md 10); a suspend unmaps the relid, which frees it."""
    machine = Machine.load(name, strict_rfc=True)
    machine.run()
    assert all(happened.ok for happened in machine.script.happened)


def test_hibernation_changes_relids_and_keeps_target_cpus() -> None:
    """vmbus.md 7.4: a re-offer is matched by instance and may have any relid; target_cpu is not recomputed."""
    machine = Machine.load("hibernate")
    machine.run()
    names = [device.name for device in machine.scenario.devices if device.name != "nic1"]
    boot = {spec.device: spec.relid for spec in machine.scenario.channels if not spec.sub}
    now = {name: machine.script.channel(name, 0) for name in names}

    for name in names:
        channel = now[name]
        assert channel is not None
        assert boot[name] != channel.relid
    disk = now["scsi"]
    assert disk is not None
    assert 3 == machine.vmbus.channels[disk.relid].target_cpu == disk.target_vp
    assert "Some vmbus device is missing" in str(machine.log)


def test_each_hv_sock_connection_is_a_new_channel_with_an_irq_of_its_own() -> None:
    """vmbus.md 7.6: relid and IRQ go with the connection, and the lowest that is free is taken next."""
    machine = Machine.load("hvsock")
    machine.run()
    told = {h.event.connection: h.result for h in machine.script.happened if h.event.action == "connect"}

    assert {
        "ssh": "relid 8, irq 31, cpu 0",
        "agent": "relid 9, irq 32, cpu 0",
        "nobody": "refused",
        "host-exec": "relid 10, irq 33, cpu 0",
        "agent-2": "relid 9, irq 32, cpu 0",
        "again": "refused",
        "ssh-2": "relid 8, irq 31, cpu 0",
        "ssh-3": "relid 8, irq 31, cpu 0",
    } == told
    assert 2 == machine.host.hv_sock.refused == machine.vmbus.messages_received[MessageType.TL_CONNECT_RESULT]
    assert [9, 12] == [int(machine.irq.counts[irq].sum()) for irq in (31, 32)]  # a packet of the host, an interrupt


# ---- one event at a time


def test_a_device_that_comes_late_has_all_its_interrupts_in_the_time_that_is_left() -> None:
    """Traffic is shared out over the time in which its channel exists."""
    machine = machine_of(event(60, "hot-add", device="nic"))
    machine.run()

    assert [("hot-add", True)] == results(machine)
    assert [1000, 800, 800, 800] == [machine.script.interrupts("nic", sub) for sub in range(4)]


def test_a_device_that_goes_has_had_all_its_interrupts_before() -> None:
    """What is gone when the scenario ends has counted all the same."""
    machine = machine_of(event(60, "rescind", device="disk"), present="true")
    machine.run()

    assert [("rescind", True)] == results(machine)
    assert [2000, 100] == [machine.script.interrupts("disk", sub) for sub in range(2)]
    assert {1, 4, 5, 6, 7} == set(machine.vmbus.channels)


def test_a_sub_channel_alone_can_be_rescinded() -> None:
    """By relid; its device lives on, and keeps what is left of it until it is closed (vmbus.md 7.3)."""
    machine = machine_of(event(60, "rescind", relid=5), present="true")
    machine.run()

    assert [5] == [relid for relid, channel in machine.vmbus.channels.items() if channel.rescinded]
    assert {1, 2, 3, 4, 6, 7} == set(machine.host.channels)
    assert [1000, 800, 800, 800] == [machine.script.interrupts("nic", sub) for sub in range(4)]


@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_affinity_moves_a_channel_at_its_time(design: str) -> None:
    """Through /proc/irq/N where there is an N, through the channel's cpu file in a design without."""
    machine = machine_of(event(50, "affinity", relid=2, cpus="3"), design=design)
    machine.run()
    channel = machine.vmbus.channels[2]

    assert [("affinity", True)] == results(machine)
    assert 3 == channel.target_cpu
    if channel.irq:
        counts = machine.irq.counts[channel.irq].tolist()
        assert 2000 == sum(counts)
        assert 0.45 < counts[3] / 2000 < 0.55  # half of the time


def test_an_affinity_that_the_host_carries_out_late_loses_no_interrupt() -> None:
    """MODIFYCHANNEL takes effect 2 s after it was sent (vmbus.md 4.4)."""
    machine = machine_of(event(50, "affinity", relid=2, cpus="3"), host="modify_delay_us = 2000000")
    machine.run()

    assert 2000 == machine.script.interrupts("disk", 0)
    assert 3 == machine.vmbus.channels[2].target_cpu == machine.host.channels[2].target_vp


# the disk's two channels are on CPUs 0 and 1, and the move frees CPU 1
GO = event(20, "affinity", relid=3, cpus="0") + event(30, "offline", cpus="1-3")
COME = event(60, "online", cpus="1-3")


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_cpus_go_offline_and_come_back_at_their_time(design: str, back: bool) -> None:
    """Files, columns and counts follow; nothing that the host sent is lost."""
    with ledger() as books:
        machine = machine_of(GO + COME if back else GO, design=design)
        machine.run()

        told = [happened.result for happened in machine.script.happened[1:]]
        assert all(happened.ok for happened in machine.script.happened)
        assert (["online: 0", "online: 0-3"] if back else ["online: 0"]) == told
        lists = [machine.fs.read(f"/sys/devices/system/cpu/{name}") for name in ("online", "offline")]
        assert ([b"0-3\n", b"\n"] if back else [b"0\n", b"1-3\n"]) == lists
        shown = parse_interrupts(machine.fs.read("/proc/interrupts")).cpus
        assert ((0, 1, 2, 3) if back else (0,)) == shown
        assert {} == machine.script.undelivered
        assert [2000, 100] == [machine.script.interrupts("disk", sub) for sub in range(2)]
        assert books.sent() == books.read(machine)


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_a_cpu_that_is_refused_is_told_and_the_others_go(design: str) -> None:
    """EBUSY (vmbus.md 4.5): nothing is moved for anybody; the machine goes on, with all its interrupts."""
    machine = machine_of(event(30, "offline", cpus="1-3") + event(60, "online", cpus="1-2"), design=design)
    machine.run()

    assert [("offline", False), ("online", True)] == results(machine)
    result = machine.script.happened[0].result
    assert "cpu 1: cannot go offline: it serves channels 3 (EBUSY)" in result
    assert result.endswith("; online: 0-1")
    assert 0b0111 == machine.online_mask
    assert [2000, 100] == [machine.script.interrupts("disk", sub) for sub in range(2)]


@pytest.mark.parametrize("design", ["legacy", "rfc"])
def test_an_affinity_to_a_cpu_that_is_away_is_refused(design: str) -> None:
    """EINVAL by either file (vmbus.md 4.2, row 6; 4.3, row 3); where one of the list is online, that one is taken."""
    events = event(20, "offline", cpus="2-3") + event(30, "affinity", relid=2, cpus="2-3")
    machine = machine_of(events + event(40, "affinity", relid=2, cpus="1-2"), design=design)
    machine.run()
    assert [("offline", True), ("affinity", False), ("affinity", True)] == results(machine)
    assert "EINVAL" in machine.script.happened[1].result
    assert 1 == machine.vmbus.channels[2].target_cpu


def test_cpu_0_of_arm64_is_refused_by_its_connection() -> None:
    """It has a file ``online``; what refuses is the connect CPU (vmbus.md 4.5, row 2)."""
    text = 'arch = "arm64"\n' + BASE.format(present="false", nic=0, nic_sub=0) + event(30, "offline", cpus="0")
    machine = Machine.load(parse_scenario(text, "arm64"))
    machine.run()

    assert [("offline", False)] == results(machine)
    assert "EBUSY" in machine.script.happened[0].result
    assert 0b1111 == machine.online_mask


def test_the_state_that_a_cpu_has_is_no_refusal() -> None:
    """A write of the present state succeeds."""
    machine = machine_of(
        event(10, "online", cpus="1-3") + event(20, "offline", cpus="3") + event(30, "offline", cpus="3")
    )
    machine.run()
    assert [("online", True), ("offline", True), ("offline", True)] == results(machine)


def test_a_device_that_comes_while_cpus_are_away_has_channels_for_those_that_are_there() -> None:
    """Netvsc asks for min(8, online CPUs) channels (vmbus.md 5.4), and once; what the others lack is told."""
    events = event(20, "offline", cpus="2-3") + event(30, "hot-add", device="nic") + event(40, "online", cpus="2-3")
    machine = machine_of(events)
    machine.run()
    assert {1, 2, 3, 4, 5} == set(machine.vmbus.channels)
    assert {6: 800, 7: 800} == machine.script.undelivered


@pytest.mark.parametrize("mode", ["direct", "message", "lapic"])
def test_a_cpu_that_is_away_does_not_tick(mode: str) -> None:
    """What it had until it went and from when it came is counted; the ticks between are nobody's."""
    text = "duration_s = 100\n[cpus]\npossible = 2\n" + f'[timers]\nmode = "{mode}"\nticks = [1000, 1000]\n'
    text += event(20, "offline", cpus="1") + event(70, "online", cpus="1")
    machine = Machine.load(parse_scenario(text, "ticks"))
    machine.run()
    label = {"direct": "HVS", "message": "HYP", "lapic": "LOC"}[mode]
    (row,) = [row for row in parse_interrupts(machine.fs.read("/proc/interrupts")).rows if row.label == label]
    said = 2 if mode == "message" else 0  # the host's answers to the guest's first messages
    assert [1000 + said, 500] == list(row.counts)


def test_suspend_without_resume_ends_with_nobody_there() -> None:
    """The guest stays away: its channels have had their interrupts before."""
    machine = machine_of(event(40, "suspend"))
    machine.run()

    assert {} == dict(machine.vmbus.channels)
    assert 2000 == machine.script.interrupts("disk", 0)
    assert machine.vmbus.version is None


def test_a_device_added_while_the_guest_is_away_is_there_after_it() -> None:
    """The resume asks for offers anew; what is new is a hot add."""
    machine = machine_of(event(20, "suspend") + event(30, "hot-add", device="nic") + event(40, "resume"))
    machine.run()

    assert [("suspend", True), ("hot-add", True), ("resume", True)] == results(machine)
    assert [1000, 800, 800, 800] == [machine.script.interrupts("nic", sub) for sub in range(4)]


def test_the_next_suspend_fails_while_a_device_is_missing() -> None:
    """vmbus.md 7.4: "Can not suspend due to a previous failed resuming", EBUSY; the machine goes on, and tells."""
    events = event(20, "suspend") + event(30, "rescind", device="nic") + event(40, "resume") + event(60, "suspend")
    machine = machine_of(events, present="true")
    machine.run()

    assert [("suspend", True), ("rescind", True), ("resume", True), ("suspend", False)] == results(machine)
    assert "EBUSY" in machine.script.happened[-1].result or "missing" in machine.script.happened[-1].result


def test_a_second_run_drives_the_same_traffic_again_and_no_event() -> None:
    """As without events; devices that went stay away."""
    machine = machine_of(event(60, "rescind", device="disk"), present="true")
    machine.run()
    machine.run()

    assert 1 == len(machine.script.happened)
    assert (1000, 2000) == (machine.script.interrupts("beat", 0), machine.script.interrupts("disk", 0))


def test_a_gpadl_quota_that_is_too_small_leaves_channels_closed_and_says_so() -> None:
    """The host refuses the NIC's buffers: the scenario runs on, and tells what it could not deliver."""
    machine = machine_of("", present="true", host="gpadl_quota_mb = 4")
    machine.run()

    assert 4 in machine.script.undelivered
    assert 1 not in machine.script.undelivered
    assert 500 == machine.script.interrupts("beat", 0)


# ---- nothing is left


UNDOING = {
    "hot-add and rescind": event(20, "hot-add", device="nic") + event(60, "rescind", device="nic"),
    "suspend and resume": event(20, "suspend") + event(60, "resume"),
    "connections": event(20, "connect", connection="a", port=1)
    + event(30, "connect", connection="b", port=9)
    + event(40, "connect", connection="c", port=9, by="host")
    + event(60, "disconnect", connection="a", by="host")
    + event(70, "disconnect", connection="c"),
    "connections that a suspend ends": event(20, "connect", connection="a", port=1)
    + event(25, "connect", connection="b", port=7, by="host")
    + event(40, "suspend")
    + event(50, "resume"),
    "rescind and hot-add": event(20, "rescind", device="disk") + event(60, "hot-add", device="disk"),
    "offline and online": event(20, "affinity", relid=3, cpus="0")
    + event(30, "offline", cpus="1-3")
    + event(60, "online", cpus="1-3")
    + event(70, "affinity", relid=3, cpus="1"),
    "all at once": event(10, "hot-add", device="nic")
    + event(15, "affinity", relid=2, cpus="2")
    + event(20, "suspend")
    + event(30, "rescind", device="nic")
    + event(30, "hot-add", device="nic")
    + event(40, "resume")
    + event(50, "connect", connection="a", port=1)
    + event(60, "rescind", device="nic")
    + event(70, "disconnect", connection="a"),
}


@pytest.mark.parametrize("change", [False, True], ids=["same relids", "other relids"])
@pytest.mark.parametrize("events", UNDOING.values(), ids=UNDOING.keys())
def test_events_that_undo_themselves_leave_nothing_behind(events: str, change: bool) -> None:
    """Descriptors, directories, mappings, pages, GPADLs, relids: all as before; each packet sent was read."""
    host = f"hv_sock_ports = [1]\nrelids_change_on_resume = {str(change).lower()}"
    with ledger() as books:
        machine = machine_of(events, host=host)
        machine.boot()
        before = amounts(footprint(machine))
        machine.run()

        assert all(happened.ok for happened in machine.script.happened), machine.script.happened
        assert before == amounts(footprint(machine))
        assert books.sent() == books.read(machine)
        assert {} == machine.script.undelivered
        for spec in machine.scenario.channels:
            assert spec.interrupts == machine.script.interrupts(spec.device, spec.sub)


# ---- hosts and guests that differ


@pytest.mark.parametrize("kib", [4, 16, 64])
def test_arm64_guests_with_large_pages_run_the_same_scenario(kib: int) -> None:
    """vmbus.md 1.1: the ring's header takes a whole page of the guest; counts do not depend on it."""
    text = f'arch = "arm64"\n[platform]\npage_kib = {kib}\n' + BASE.format(present="true", nic=1000, nic_sub=800)
    text = text.replace("duration_s = 100\n", "").replace("[platform]", "duration_s = 100\n[platform]")
    with ledger() as books:
        machine = Machine.load(parse_scenario(text, "large pages"))
        machine.run()

        assert kib << 10 == machine.vmbus.options.page_bytes
        assert {} == machine.script.undelivered
        assert books.sent() == books.read(machine)


def test_a_monitored_device_signals_through_its_monitor_page() -> None:
    """vmbus.md 2.5: the offer carries the id; what the guest sends is found by the hypervisor looking at the page."""
    text = BASE.format(present="true", nic=1000, nic_sub=800).replace('class = "scsi"', 'class = "scsi"\nmonitored = 7')
    machine = Machine.load(parse_scenario(text, "monitored"))
    machine.run()
    offer = machine.vmbus.channels[2].offer

    assert (7, True) == (offer.monitorid, offer.is_monitored)
    assert not machine.vmbus.channels[3].offer.is_monitored
    assert {} == machine.script.undelivered


def test_a_host_that_throttles_has_the_scenarios_figures() -> None:
    """Microseconds become ticks of 100 ns."""
    host = "throttle_after = 9\nthrottle_window_us = 3\nthrottle_us = 5\ngpadl_quota_mb = 64\nmodify_delay_us = 7"
    options = machine_of("", host=host).host.options

    assert (9, 30, 50) == (options.throttle_after, options.throttle_window_ticks, options.throttle_ticks)
    assert (64 << 20, 70) == (options.gpadl_quota_bytes, options.modify_delay_ticks)


def test_a_device_can_come_with_the_relid_that_another_has_got_meanwhile() -> None:
    """After a renumbering the relids in use are the same ones; a device that was away keeps its own."""
    events = event(10, "hot-add", device="nic") + event(20, "suspend") + event(30, "resume")
    events += event(40, "rescind", device="nic") + event(50, "hot-add", device="nic")
    machine = machine_of(events, host="relids_change_on_resume = true")
    machine.run()

    assert all(happened.ok for happened in machine.script.happened)
    assert set(range(1, 8)) == set(machine.vmbus.channels)
    assert {} == machine.script.undelivered


def test_progress_counts_interrupts() -> None:
    """What a progress bar hears: never more than there are in all."""
    heard: list[tuple[int, int, str]] = []
    machine = machine_of(event(50, "hot-add", device="nic"))
    machine.run(lambda done, total, what: heard.append((done, total, what)))

    assert heard[:2] == [(0, 7, "boot"), (0, 6000, "traffic")]
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert all(done < total for done, total, _ in heard)


@pytest.mark.parametrize("count", [2, 4])
def test_no_sub_channel_gets_the_directory_of_its_primary(count: int) -> None:
    """vmbus.md 7.4: channels/<first relid> stays with the primary, whatever relid it has after a resume."""
    events = "".join(event(10 * n, ("suspend", "resume")[n % 2 == 0]) for n in range(1, 7))
    text = f"""duration_s = 100
[cpus]
possible = 4
[host]
relids_change_on_resume = true
[[device]]
name = "disk"
class = "scsi"
[[channel]]
device = "disk"
relid = 1
count = {count}
interrupts = 300
"""
    machine = Machine.load(parse_scenario(text + events, "one disk"))
    machine.run()
    assert all(happened.ok for happened in machine.script.happened)
    assert {} == machine.script.undelivered
    assert count == len(machine.vmbus.channels)


def test_a_resume_without_a_sub_channel_says_so() -> None:
    """What was open before the suspend is looked for, sub-channels too."""
    machine = machine_of(event(10, "suspend") + event(20, "resume"), present="true")
    machine.boot()
    nic = next(device for device in machine.host.devices if device.name == "nic")
    nic.vsp.max_sub_channels = 0
    nic.max_sub_channels = 0
    machine.run()
    resumed = machine.script.happened[-1]
    assert (False, "without nic/1, nic/2, nic/3") == (resumed.ok, resumed.result)
