"""Scenarios are read strictly: what is wrong is named with its place and what would be right."""

from __future__ import annotations

import tomllib
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq import Machine, parse_interrupts
from vmbusirq.host.stats import Traffic
from vmbusirq.scenario.schema import ScenarioError, builtin_names, load_scenario, parse_scenario
from vmbusirq.vmbus.drivers.catalogue import CATALOGUE

DEVICE = '[cpus]\npossible = 4\n[[device]]\nname = "n"\nclass = "netvsc"\n'


@pytest.mark.parametrize("name", builtin_names())
def test_every_builtin_scenario_is_valid_and_bears_its_file_name(name: str) -> None:
    """A built-in that does not load would be found by a user first."""
    assert name == load_scenario(name).name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cpus.possible: is missing"),
        ("[cpus]\npossible = 0", "cpus.possible: 0 is out of range; 1 to 2048"),
        ("[cpus]\npossible = 2049", "cpus.possible: 2049 is out of range"),
        ("[cpus]\npossible = true", "wants an integer, not a boolean"),
        ('[cpus]\npossible = "4"', "wants an integer, not a string"),
        ("[cpus]\npossible = 4\npresent = 5", "cpus.present: 5 is out of range; 1 to 4"),
        ("[cpus]\npossible = 4\npresnt = 3", "cpus.presnt: unknown key; did you mean 'present'?"),
        ('[cpus]\npossible = 4\nisolated = "4"', "cpus.isolated"),
        ('[cpus]\npossible = 4\nisolated = "a"', "cpus.isolated"),
        ('[cpus]\npossible = 4\nnodes = ["0-1"]', "together they must hold CPUs 0 to 3"),
        ('[cpus]\npossible = 4\nnodes = ["0-2", "2-3"]', "a CPU is in two nodes"),
        ("cpus = 4", "cpus: wants a table, not an integer"),
        ('arch = "vax"\n[cpus]\npossible = 4', "choose from x86, arm64"),
        ("[cpus]\npossible = 4\n[platfrom]\nx = 1", "unknown key; did you mean 'platform'?"),
        ('[cpus]\npossible = 4\n[platform]\nrows = ["HPY"]', "no row 'HPY'"),
        ("[cpus]\npossible = 4\n[presets]\nHVS = [1, 2, 3, 4, 5]", "presets.HVS: has 5 numbers for 4 CPUs"),
        ("[cpus]\npossible = 4\n[presets]\nHPY = [1]", "presets.HPY: no such row; known: NMI"),
        ('arch = "arm64"\n[cpus]\npossible = 4\n[presets]\nIPI01 = [1]', "presets.IPI01: no such row; known: IPI0"),
        ('arch = "arm64"\n[cpus]\npossible = 4\n[presets]\n"IPI\u00b2" = [1]', "no such row; known: IPI0"),
        ("[cpus]\npossible = 4\n[presets.stat]\nfoo = 1", "presets.stat.foo: unknown key; known: btime"),
        ('[cpus]\npossible = 4\n[[device]]\nname = "a\\nb"\nclass = "netvsc"', "device[0].name: 'a\\nb' is no name"),
        ('[cpus]\npossible = 4\n[[device]]\nname = ""\nclass = "netvsc"', "device[0].name: '' is no name"),
        (
            '[cpus]\npossible = 4\n[[device]]\nname = "a"\nclass = "toaster"',
            "device[0].class: no 'toaster'",
        ),
        (
            "[cpus]\npossible = 4\n[[irq]]\nirq = 24\nname = 'x'\nhwirq = 8\nflow = 'edge'",
            "irq[0].irq: 24 is out",
        ),
        ("[cpus]\npossible = 4\n[[irq]]\nirq = 8\nname = 'x'\nhwirq = 24\nflow = 'edge'", "irq[0].hwirq: 24 is out"),
        (2 * "[[irq]]\nirq = 8\nname = 'x'\nhwirq = 8\nflow = 'edge'\n" + "[cpus]\npossible = 4", "used twice"),
        (DEVICE + 'instance = "1234"', "device[0].instance: '1234' is not a GUID"),
        ("[cpus]\npossible = 4\n[presets]\nHVS = [-1]", "presets.HVS: wants a list of counts"),
        ("[cpus]\npossible = 4\n[presets]\nHVS = [4294967296]", "presets.HVS: wants a list of counts"),
        (DEVICE + '[[channel]]\ndevice = "n"\nrelid = 0', "channel[0].relid: 0 is out of range; 1 to 2047"),
        (DEVICE + '[[channel]]\ndevice = "n"\nrelid = 2048', "channel[0].relid: 2048 is out of range"),
        (DEVICE + '[[channel]]\ndevice = "m"\nrelid = 1', "channel[0].device: no 'm'; choose from n"),
        (DEVICE + '[[channel]]\ndevice = "n"\nrelid = 1\n[[channel]]\ndevice = "n"\nrelid = 1\nsub = 1', "used twice"),
        (DEVICE + '[[channel]]\ndevice = "n"\nrelid = 1\nsub = 1', "needs its primary channel first"),
        (
            DEVICE + '[[channel]]\ndevice = "n"\nrelid = 1\n[[channel]]\ndevice = "n"\nrelid = 2',
            "has a channel 0 already",
        ),
        (
            DEVICE + '[[channel]]\ndevice = "n"\nrelid = 2000\ncount = 49',
            "channel[0].relid: 2000 is out of range; 1 to 1999",
        ),
        (DEVICE + '[[channel]]\ndevice = "n"\nrelid = 1\ncount = 0', "channel[0].count: 0 is out of range"),
        (
            DEVICE + '[[channel]]\ndevice = "n"\nrelid = 1\ncount = 3\n[[channel]]\ndevice = "n"\nrelid = 3',
            "used twice",
        ),
        (DEVICE + '[[device]]\nname = "n"\nclass = "scsi"', "same name"),
        ("[cpus\npossible = 4", "line 1"),
        (
            "[cpus]\npossible = 4\n[[irq]]\nirq = 8\nname = 'x'\nhwirq = 8\nflow = 'edgy'",
            "choose from edge, fasteoi, level",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, says: str) -> None:
    """The message starts with the file, then the key."""
    with pytest.raises(ScenarioError) as error:
        parse_scenario(text, "x", "x.toml")
    assert str(error.value).startswith("x.toml: ")
    assert says in str(error.value)


@pytest.mark.parametrize("name", sorted(name for name, row in CATALOGUE.items() if row.driver))
def test_largest_payload_of_every_class_arrives_whole_and_one_byte_more_is_refused(name: str) -> None:
    """A packet must fit the driver's private copy: a cut one would leave its reader in the middle of nowhere."""
    limit = CATALOGUE[name].max_payload
    text = f'[cpus]\npossible = 1\n[[device]]\nname = "d"\nclass = "{name}"\n[[channel]]\ndevice = "d"\nrelid = 1\n'
    text += "interrupts = 3\npackets = 5\npayload = "
    with pytest.raises(ScenarioError, match=f"payload: {limit + 1} is out of range; 0 to {limit} is allowed"):
        parse_scenario(f"{text}{limit + 1}", "x")
    machine = Machine.load(parse_scenario(f"{text}{limit}", "x"))
    machine.boot()
    before = machine.host.channels[1].stats.packets  # the driver's handshake
    machine.host.drive([Traffic(1, 3, 5, limit)], 0)
    machine.settle()
    sent, read = machine.host.channels[1].stats, machine.vmbus.channels[1].stats

    assert 15 == sent.packets - before
    assert (sent.packets, sent.bytes, sent.checksum, 0) == (read.packets, read.bytes, read.checksum, read.resyncs)


def test_count_makes_channels_with_relids_and_indices_that_go_up() -> None:
    """One entry for a primary and its sub-channels, up to the last relid."""
    scenario = parse_scenario(DEVICE + '[[channel]]\ndevice = "n"\nrelid = 2045\ncount = 3\ninterrupts = 5', "x")
    assert [(2045, 0, 5), (2046, 1, 5), (2047, 2, 5)] == [
        (channel.relid, channel.sub, channel.interrupts) for channel in scenario.channels
    ]


def rows_shown(machine: Machine) -> list[str]:
    return [row.label for row in parse_interrupts(machine.fs.read("/proc/interrupts")).rows]


@pytest.mark.parametrize("generation", ["v6.10", "v7.1"])
def test_a_file_without_rows_shows_those_of_a_machine_without_a_file(generation: str) -> None:
    """What a kernel usually has; an empty list is no kernel's but is asked for, and arm64 has no such rows."""
    bare = rows_shown(Machine(cpus=2, generation=generation))
    assert {"NMI", "LOC", "HYP", "HVS"} < set(bare)
    for platform, shown in (("", bare), ("platform.rows = []", []), ('platform.rows = ["HYP", "LOC"]', ["LOC", "HYP"])):
        scenario = parse_scenario("cpus.possible = 2\n" + platform, "x")
        assert shown == rows_shown(Machine.load(scenario, generation=generation))
    assert () == parse_scenario('arch = "arm64"\ncpus.possible = 2', "x").rows


def test_clock_ticks_are_seen_without_a_list_of_rows() -> None:
    """A [timers] table alone: 600 and 450 messages, and the host's two answers on CPU 0."""
    text = 'duration_s = 60\n[cpus]\npossible = 2\n[timers]\nmode = "message"\nticks = [600, 450]\n'
    machine = Machine.load(parse_scenario(text, "x"))
    machine.run()
    table = parse_interrupts(machine.fs.read("/proc/interrupts"))
    assert [(602, 450)] == [tuple(row.counts) for row in table.rows if row.label == "HYP"]


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_scenarios_say_which_rows_they_show(name: str) -> None:
    """Their tables do not depend on what is usual."""
    text = (resources.files("vmbusirq.scenario") / "builtin" / f"{name}.toml").read_text(encoding="utf-8")
    top = tomllib.loads(text)
    assert ("rows" in top.get("platform", {})) == (top["arch"] == "x86")


def test_missing_file_lists_what_is_built_in(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A typo in a name should not end in a stack trace."""
    with pytest.raises(ScenarioError, match="rfc-gen2-8vcpu"):
        load_scenario(str(tmp_path / "none.toml"))
    with pytest.raises(ScenarioError, match="cannot read"):
        load_scenario(str(tmp_path))


def test_file_that_is_not_utf8_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Any bytes may be called a scenario."""
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="cannot read"):
        load_scenario(str(path))


def scenario_error(text: str) -> str | None:
    """Return what is wrong with a scenario, None if nothing is."""
    try:
        parse_scenario(text, "cut")
    except ScenarioError as error:
        return str(error)
    return None


def test_truncated_scenario_is_refused_or_whole() -> None:
    """Cut at any line, the default scenario is an error or a smaller valid scenario; never a crash."""
    text = (resources.files("vmbusirq.scenario") / "builtin" / "rfc-gen2-8vcpu.toml").read_text()
    lines = text.splitlines(keepends=True)
    for cut in range(len(lines)):
        assert (scenario_error("".join(lines[:cut])) or "cut: ").startswith("cut: ")


@given(st.text(max_size=200))
def test_any_text_is_a_scenario_or_an_error(text: str) -> None:
    """Bad input of any kind gets a ScenarioError."""
    assert (scenario_error(text) or "cut: ").startswith("cut: ")


def test_generation_1_has_its_isa_lines_on_the_io_apic() -> None:
    """PIC, IDE, IO-APIC: 16 legacy IRQs below the first channel, two IDE channels, no row of the 8259s themselves."""
    machine = Machine.load("gen1-4vcpu")
    machine.boot()
    text = machine.fs.read("/proc/interrupts").decode()
    assert ["14", "15"] == [line.split(":")[0].strip() for line in text.splitlines() if line.endswith("ata_piix")]
    assert "IO-APIC   2-edge      timer" in text
    assert "XT-PIC" not in text
    assert min(channel.irq for channel in machine.vmbus.channels.values()) >= 16
