"""Events of a scenario are read strictly, and their course is followed before anything runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.scenario.schema import Scenario, ScenarioError, load_scenario, parse_scenario
from vmbusirq.scenario.timeline import BOOT_TICKS, TICKS_PER_S, plan

BASE = """
duration_s = 100
[cpus]
possible = 4
present = 3
isolated = "2"
[host]
hv_sock_ports = [22]
[[device]]
name = "disk"
class = "scsi"
[[device]]
name = "nic"
class = "netvsc"
present = false
[[device]]
name = "bare"
class = "mouse"
present = false
[[channel]]
device = "disk"
relid = 1
interrupts = 101
[[channel]]
device = "disk"
relid = 2
sub = 1
[[channel]]
device = "nic"
relid = 3
"""


def at(seconds: object, action: str, rest: str = "") -> str:
    return f'[[event]]\nat_s = {seconds}\naction = "{action}"\n{rest}\n'


def add(seconds: object) -> str:
    return at(seconds, "hot-add", 'device = "nic"')


def connect(seconds: object, rest: str = "port = 22") -> str:
    return at(seconds, "connect", f'connection = "c"\n{rest}')


def disconnect(seconds: object) -> str:
    return at(seconds, "disconnect", 'connection = "c"')


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ('[[event]]\naction = "suspend"', "event[0].at_s: is missing"),
        ("[[event]]\nat_s = 1", "event[0].action: is missing"),
        (at(100.1, "suspend"), "event[0].at_s: 100.1 is out of range; 0 to 100 is allowed"),
        (at(-1, "suspend"), "event[0].at_s: -1 is out of range"),
        (at("nan", "suspend"), "event[0].at_s: nan is out of range"),
        (at("true", "suspend"), "event[0].at_s: wants a number of seconds, not a boolean"),
        (at('"1"', "suspend"), "event[0].at_s: wants a number of seconds, not a string"),
        (at(1, "explode"), "event[0].action: no 'explode'; choose from hot-add, rescind, suspend"),
        (at(1, "suspend", "device = 'disk'"), "event[0].device: unknown key; known: at_s, action"),
        (at(1, "hot-add"), "event[0].device: is missing"),
        (at(1, "hot-add", "device = 'x'"), "event[0].device: no 'x'; choose from disk, nic, bare"),
        (at(1, "hot-add", "device = 'disk'"), "event[0].device: disk is there already"),
        (at(1, "hot-add", "device = 'bare'"), "event[0].device: bare has no [[channel]]"),
        (add(1) + add(2), "event[1].device: nic is there already"),
        (at(1, "rescind"), "event[0].device: is missing"),
        (at(1, "rescind", "device = 'nic'"), "event[0].device: nic is not there then"),
        (at(1, "rescind", "relid = 9"), "event[0].relid: no [[channel]] has relid 9; known: 1, 2, 3"),
        (at(1, "rescind", "relid = 2048"), "event[0].relid: 2048 is out of range"),
        (at(1, "rescind", "relid = 1\ndevice = 'disk'"), "event[0].relid: a rescind names a device or a relid"),
        (2 * at(1, "rescind", "relid = 2"), "event[1].relid: there is no sub-channel 1 of disk then"),
        (at(1, "rescind", "relid = 1") + at(2, "rescind", "relid = 2"), "there is no sub-channel 1 of disk then"),
        (2 * at(1, "suspend"), "event[1].action: suspend cannot be: the guest is suspended then"),
        (at(1, "resume"), "event[0].action: resume cannot be: the guest is not suspended then"),
        (at(2, "suspend") + at(1, "resume"), "event[1].action: resume cannot be"),
        (at(1, "suspend") + connect(2), "event[1].action: connect cannot be: the guest is suspended then"),
        (at(1, "suspend") + at(2, "affinity", "relid = 1\ncpus = '0'"), "event[1].action: affinity cannot be"),
        (at(1, "suspend") + at(2, "rescind", "relid = 2"), "event[1].relid: there is no sub-channel"),
        (at(1, "affinity", "relid = 3\ncpus = '0'"), "event[0].relid: there is no channel 0 of nic then"),
        (at(1, "affinity", "relid = 1"), "event[0].cpus: is missing"),
        (at(1, "affinity", "relid = 1\ncpus = 'x'"), "event[0].cpus: "),
        (at(1, "affinity", "relid = 1\ncpus = '4'"), "event[0].cpus: "),
        (at(1, "affinity", "relid = 1\ncpus = '2-3'"), "'2-3' has no CPU that is online and not isolated"),
        (at(1, "offline"), "event[0].cpus: is missing"),
        (at(1, "online", "cpus = 1"), "event[0].cpus: wants a string, not an integer"),
        (at(1, "offline", "cpus = 'x'"), "event[0].cpus: "),
        (at(1, "offline", "cpus = '4'"), "event[0].cpus: "),
        (at(1, "offline", "cpus = ''"), "event[0].cpus: '' names no CPU"),
        (at(1, "offline", "cpus = '2-3'"), "event[0].cpus: '2-3': CPUs from 3 on are not present"),
        (at(1, "online", "cpus = '3'"), "event[0].cpus: '3': CPUs from 3 on are not present"),
        (at(1, "offline", "cpus = '0-1'"), "event[0].cpus: '0-1': CPU 0 of x86 is always online; leave it out"),
        (at(1, "online", "cpus = '0'"), "event[0].cpus: '0': CPU 0 of x86 is always online"),
        (at(1, "offline", "cpus = '1'\ndevice = 'disk'"), "event[0].device: unknown key"),
        (
            at(1, "suspend") + at(2, "offline", "cpus = '1'"),
            "event[1].action: offline cannot be: the guest is suspended",
        ),
        (at(1, "suspend") + at(2, "online", "cpus = '1'"), "event[1].action: online cannot be: the guest is suspended"),
        (at(1, "connect", "port = 22"), "event[0].connection: is missing"),
        (connect(1, ""), "event[0].port: is missing"),
        (connect(1, "port = 4294967295"), "event[0].port: 4294967295 is out of range"),
        (connect(1, "port = 22\npayload = 0"), "event[0].payload: 0 is out of range; 1 to 4088"),
        (connect(1, "port = 22\npayload = 4089"), "event[0].payload: 4089 is out of range"),
        (connect(1, "port = 22\nby = 'me'"), "event[0].by: no 'me'; choose from guest, host"),
        (2 * connect(1), "event[1].connection: c is connected already"),
        (disconnect(1), "event[0].connection: c is not connected then"),
        (connect(1) + 2 * disconnect(2), "event[2].connection: c is not connected then"),
        (connect(1, "port = 23") + disconnect(2), "event[1].connection: c is not connected then, or was refused"),
        (connect(1) + at(2, "suspend") + at(3, "resume") + disconnect(4), "event[3].connection: c is not connected"),
    ],
)
def test_what_cannot_be_is_named_with_its_place(events: str, says: str) -> None:
    """The file, the event, the key; and what would be right."""
    with pytest.raises(ScenarioError) as error:
        parse_scenario(BASE + events, "x", "x.toml")
    assert str(error.value).startswith("x.toml: event[")
    assert says in str(error.value)


def test_events_come_in_order_of_time_and_of_the_file_at_one_time() -> None:
    """Seconds may have fractions, down to 100 ns."""
    events = at(7.5, "resume") + add(0) + at(7.5, "suspend") + at("2.0000001", "rescind", "device = 'nic'")
    with pytest.raises(ScenarioError, match=r"event\[0\].action: resume cannot be"):
        parse_scenario(BASE + events, "x")
    scenario = parse_scenario(BASE + events.replace("at_s = 7.5", "at_s = 8", 1), "x")

    assert [(0, "hot-add"), (20_000_001, "rescind"), (75_000_000, "suspend"), (80_000_000, "resume")] == [
        (event.at, event.action) for event in scenario.events
    ]


@pytest.mark.parametrize("action", ["offline", "online"])
def test_cpus_of_hotplug_are_a_list_of_those_present(action: str) -> None:
    """One that is where it shall be may be named, and on arm64 CPU 0, too: whether it can go is for the kernel."""
    (event,) = parse_scenario(BASE + at(1, action, "cpus = '1-2'"), "x").events
    assert (action, "1-2", "cpu 1-2") == (event.action, event.cpus, event.what)
    parse_scenario(BASE + 2 * at(1, action, "cpus = '2'"), "x")
    parse_scenario('arch = "arm64"\n' + BASE + at(1, action, "cpus = '0'"), "x")


def test_connect_needs_a_host_that_knows_it() -> None:
    """TL_CONNECT_REQUEST came with 4.0 (vmbus.md 2.1)."""
    with pytest.raises(ScenarioError, match=r"connect needs a host of version 4\.0; this one speaks 3\.0"):
        parse_scenario(BASE.replace("[host]", '[host]\nversion = "3.0"') + connect(1), "x")


def test_interrupts_of_a_device_that_never_comes_are_refused() -> None:
    """They could never be counted."""
    with pytest.raises(ScenarioError, match="relid 3 has interrupts, and nic is never there"):
        parse_scenario(BASE + "interrupts = 1", "x")
    parse_scenario(BASE + "interrupts = 1\n" + add(100), "x")


# ---- what a scenario may have


@pytest.mark.parametrize(
    ("device_class", "cpus", "subs"),
    [
        ("netvsc", 1, 0),
        ("netvsc", 4, 3),
        ("netvsc", 8, 7),
        ("netvsc", 64, 7),
        ("scsi", 1, 0),
        ("scsi", 64, 63),
        ("fc", 4, 3),
        ("ide", 4, 0),
        ("heartbeat", 4, 0),
        ("vpci", 4, 0),
        ("avma1", 4, 0),
    ],
)
def test_no_more_sub_channels_than_the_driver_asks_for(device_class: str, cpus: int, subs: int) -> None:
    """vmbus.md 5.4: netvsc min(8, CPUs) channels, storvsc CPUs - 1 sub-channels, IDE and all others none."""
    text = f'[cpus]\npossible = {cpus}\n[[device]]\nname = "d"\nclass = "{device_class}"\n'
    text += '[[channel]]\ndevice = "d"\nrelid = 1\ncount = '
    assert subs + 1 == len(parse_scenario(f"{text}{subs + 1}", "x").channels)
    with pytest.raises(ScenarioError, match=rf"channel\[0\].sub: d cannot have a sub-channel {subs + 1}: the guest"):
        parse_scenario(f"{text}{subs + 2}", "x")


def test_sub_channels_have_no_gaps() -> None:
    """The host offers them by index, each the next."""
    with pytest.raises(ScenarioError, match="nic has no channel 1; sub-channels are offered in order"):
        parse_scenario(BASE + '[[channel]]\ndevice = "nic"\nrelid = 9\nsub = 2', "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[platform]\npage_kib = 16", "platform.page_kib: 16 is no page size of x86; choose from 4"),
        ("[platform]\npage_kib = 5", "platform.page_kib: 5 is no page size"),
        ("[platform]\npage_kib = 128", "platform.page_kib: 128 is out of range"),
        ('[host]\nversion = "9.9"', "host.version: "),
        ("[host]\nhv_sock_ports = [1, 1]", "host.hv_sock_ports: a port is named twice"),
        ("[host]\nhv_sock_ports = [-1]", "host.hv_sock_ports: -1 is no port"),
        ("[host]\nhv_sock_ports = [true]", "host.hv_sock_ports: True is no port"),
        ("[host]\nthrottle_us = 0", "host.throttle_us: 0 is out of range"),
        ("[host]\ngpadl_quota_mb = 1048577", "host.gpadl_quota_mb: 1048577 is out of range"),
        ("[host]\nrelids_change_on_resume = 1", "wants a boolean, not an integer"),
        ('[[device]]\nname = "a"\nclass = "scsi"\nmonitored = 128', "device[0].monitored: 128 is out of range"),
        (
            "".join(f'[[device]]\nname = "{name}"\nclass = "ide"\nmonitored = 5\n' for name in "ab"),
            "device[1].monitored: id 5 is used twice",
        ),
        ('[[device]]\nname = "a"\nclass = "scsi"\npresent = "no"', "device[0].present: wants a boolean, not a string"),
        (
            2 * '[[device]]\nname = "a"\nclass = "ide"\ninstance = "00000000-0000-8899-0000-000000000000"\n',
            "used twice",
        ),
    ],
)
def test_host_platform_and_devices_are_read_strictly(text: str, says: str) -> None:
    """As everything else."""
    with pytest.raises(ScenarioError) as error:
        parse_scenario("[cpus]\npossible = 4\n" + text, "x")
    assert says in str(error.value)


def test_arm64_has_a_choice_of_pages() -> None:
    """CONFIG_ARM64_{4K,16K,64K}_PAGES."""
    for kib in (4, 16, 64):
        text = f'arch = "arm64"\n[cpus]\npossible = 1\n[platform]\npage_kib = {kib}'
        assert kib == parse_scenario(text, "x").page_kib


# ---- how traffic is laid out


def course(draw: st.DrawFn) -> Scenario:
    """Draw a scenario whose events can all happen: the NIC comes and goes, the guest sleeps and wakes."""
    interrupts = [draw(st.integers(0, 10_000)) for _ in range(3)]
    base = BASE.replace("interrupts = 101", f"interrupts = {interrupts[0]}")
    text, present, suspended, gone = "", False, False, False
    times = sorted(draw(st.lists(st.integers(0, 1000), max_size=8)))
    for tenth in times:
        thing = draw(st.sampled_from(["nic", "sleep", "sub"]))
        if thing == "nic":
            text += add(tenth / 10) if not present else at(tenth / 10, "rescind", "device = 'nic'")
            present = not present
        elif thing == "sleep":
            text += at(tenth / 10, "resume" if suspended else "suspend")
            suspended, gone = not suspended, False
        elif not suspended and not gone:
            text += at(tenth / 10, "rescind", "relid = 2")
            gone = True
    return parse_scenario(base + text, "drawn")


@given(st.composite(course)())
def test_the_last_share_of_a_channel_makes_its_number_whole(scenario: Scenario) -> None:
    """Totals never fall, end with the scenario's number, and are None exactly where the channel is not."""
    segments = plan(scenario)

    assert len(scenario.events) + 1 == len(segments)
    assert BOOT_TICKS == segments[0].start
    assert max(BOOT_TICKS, scenario.duration_s * TICKS_PER_S) == segments[-1].end
    for one, two in pairwise(segments):
        assert one.end == two.start <= two.end
    for index, spec in enumerate(scenario.channels):
        totals = [due for due in (segment.due[index] for segment in segments) if due is not None]
        assert totals == sorted(totals)
        if totals:
            assert spec.interrupts == totals[-1]
        else:
            assert not spec.interrupts


def test_traffic_is_in_proportion_to_time() -> None:
    """From boot to the end: 2 s to 100 s; the first half of that has half of the interrupts."""
    scenario = parse_scenario(BASE + add(51), "x")
    assert [(50, None), (101, 0)] == [(segment.due[0], segment.due[2]) for segment in plan(scenario)]


def test_a_scenario_without_time_has_all_at_once() -> None:
    """``duration_s`` 0: everything comes with the last segment of its channel."""
    text = BASE.replace("duration_s = 100", "duration_s = 0") + at(0, "suspend") + at(0, "resume") + add(0)
    assert [0, None, 0, 101] == [segment.due[0] for segment in plan(parse_scenario(text, "x"))]


def test_the_default_scenario_has_no_events() -> None:
    """Its table is reached as before: one segment, everything in it."""
    (segment,) = plan(load_scenario("rfc-gen2-8vcpu"))
    assert 22095 in segment.due
