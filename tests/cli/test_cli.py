"""The command line as a user meets it: output, exit status, one line for what cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmbusirq import Machine
from vmbusirq.cli import main
from vmbusirq.lab.explain import explain

SAMPLE = Path(__file__).parent.parent / "samples" / "proc_interrupts_x86_2cpu.txt"


def test_run_prints_the_file_byte_for_byte(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Piped output is /proc/interrupts and nothing else."""
    from vmbusirq import Machine

    assert 0 == main(["run"])
    machine = Machine.load("rfc-gen2-8vcpu")
    machine.run()
    assert machine.fs.read("/proc/interrupts") == capfdbinary.readouterr().out


def test_run_json_marks_presets(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that nothing models are marked as presets."""
    assert 0 == main(["run", "--json", "--design", "rfc"])
    out = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in out["rows"]}

    assert ("rfc-gen2-8vcpu", "rfc", "v6.10", 0) == tuple(
        out[key] for key in ("scenario", "design", "generation", "seed")
    )
    assert rows["RES"]["preset"]
    assert not rows["HYP"]["preset"]
    assert not rows["HVS"]["preset"]
    assert not rows["28"]["preset"]
    assert 22095 == rows["28"]["counts"][0]


def test_run_json_tells_version_messages_and_events(capsys: pytest.CaptureFixture[str]) -> None:
    """What the two ends agreed on, said to each other, and what happened meanwhile."""
    assert 0 == main(["run", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert ("5.2", False, [], {}) == tuple(out[key] for key in ("vmbus_version", "strict_rfc", "events", "undelivered"))
    assert {
        "VERSION_RESPONSE": 2,
        "OFFERCHANNEL": 24,
        "ALLOFFERS_DELIVERED": 1,
        "GPADL_CREATED": 23,
        "OPENCHANNEL_RESULT": 21,
    } == out["messages"]

    assert 0 == main(["run", "-s", "hvsock", "--strict-rfc", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["strict_rfc"]
    assert {
        "at_s": 31.0,
        "action": "connect",
        "what": "nobody",
        "over_s": 31.0,
        "ok": True,
        "result": "refused",
    } == out["events"][2]


def test_run_says_what_went_wrong_in_a_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file goes to standard output, complaints to standard error; a scenario that goes wrong is no failure."""
    path = tmp_path / "wrong.toml"
    path.write_text(
        'duration_s = 99\n[cpus]\npossible = 2\n[host]\ngpadl_quota_mb = 0\n[[device]]\nname = "d"\nclass = "ide"\n'
        '[[channel]]\ndevice = "d"\nrelid = 5\ninterrupts = 9\n[[event]]\nat_s = 50\naction = "affinity"\n'
        'relid = 5\ncpus = "1"\n'
    )
    assert 0 == main(["run", "-s", str(path)])
    told = capsys.readouterr()

    assert "CPU0" in told.out
    assert "d/0 (relid 5 of the scenario): 9 interrupts did not come: the channel is not open; see dmesg" in told.err
    assert "50 s: affinity d/0: " in told.err


def test_run_tells_which_cpu_did_not_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CPU that refuses is one line and an event that is not ok; the table has the column still."""
    scenario = tmp_path / "busy.toml"
    scenario.write_text(
        'duration_s = 9\n[cpus]\npossible = 3\n[[device]]\nname = "d"\nclass = "scsi"\n'
        '[[channel]]\ndevice = "d"\nrelid = 5\ncount = 2\n'
        '[[event]]\nat_s = 4\naction = "offline"\ncpus = "1-2"\n',
        encoding="utf-8",
    )
    assert 0 == main(["run", "-s", str(scenario), "--json"])
    told = capsys.readouterr()
    refusal = "cpu 1: cannot go offline: it serves channels 6 (EBUSY); move them first; online: 0-1"
    assert [f"4 s: offline cpu 1-2: {refusal}"] == told.err.splitlines()
    out = json.loads(told.out)
    (event,) = out["events"]
    assert ("offline", "cpu 1-2", False, refusal) == tuple(event[key] for key in ("action", "what", "ok", "result"))
    assert [0, 1] == out["cpus"]


def test_run_table_shows_names_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """The heat table for people."""
    assert 0 == main(["run", "--format", "table"])
    out = capsys.readouterr().out

    assert "22,095" in out
    assert "pri@storvsc1" in out
    assert "RES*" in out
    assert "HVS*" not in out


def test_cat_and_ls(capfd: pytest.CaptureFixture[str]) -> None:
    """Files after the scenario has run."""
    assert 0 == main(["cat", "/proc/irq/28/smp_affinity", "/proc/irq/29/smp_affinity_list"])
    assert "01\n1\n" == capfd.readouterr().out
    assert 0 == main(["ls", "/proc/irq/28"])
    assert "node" == capfd.readouterr().out.splitlines()[0]
    assert 0 == main(["ls", "-l", "/proc/irq/28/smp_affinity"])
    assert capfd.readouterr().out.startswith("-rw-r--r--     0 ")
    assert 0 == main(["ls", "--json", "/proc"])
    assert "interrupts" in [entry["name"] for entry in json.loads(capfd.readouterr().out)[0]["entries"]]
    assert 0 == main(["cat", "--json", "/proc/irq/28/node"])
    assert [{"path": "/proc/irq/28/node", "text": "-1\n"}] == json.loads(capfd.readouterr().out)


def test_dmesg(capsys: pytest.CaptureFixture[str]) -> None:
    """The guest's log, as text and as JSON."""
    assert 0 == main(["dmesg"])
    assert "offer of relid 14: scsi, cpu 0, irq 28" in capsys.readouterr().out
    assert 0 == main(["dmesg", "--json"])
    assert "time_100ns" in json.loads(capsys.readouterr().out)[0]


def test_explain_shows_the_rfc_as_posted(capsys: pytest.CaptureFixture[str]) -> None:
    """--strict-rfc keeps the IRQ of a closed channel: it counts, and nobody is called (vmbus.md 11, check 7)."""
    assert 0 == main(["explain", "--relid", "14", "--state", "closed", "--strict-rfc"])
    assert "IRQ 28 cnt on CPU" in capsys.readouterr().out


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    """One interrupt as text, and the same as JSON; on a terminal a tree."""
    from rich.console import Console

    from vmbusirq.report import explanation_tree

    assert 0 == main(["explain", "--relid", "14"])
    text = capsys.readouterr().out
    assert text.startswith("relid 14, pri@storvsc1: IRQ 28, CPU 0, mode BATCHED, idle; rfc-gen2-8vcpu, design rfc,")
    assert "      here    csrc/irq/softirq.c vi_do_softirq()\n" in text
    assert "      as in   drivers/hv/ring_buffer.c hv_signal_on_write()\n" in text
    assert "      moved   in ring interrupt_mask: 0 -> 1\n" in text
    assert 0 == main(["explain", "--relid", "14", "--cpu", "3", "--json", "--engine", "linux"])
    out = json.loads(capsys.readouterr().out)
    assert (14, 28, 0, 3, "linux") == tuple(out[key] for key in ("relid", "irq", "target", "cpu", "engine"))
    assert {"number", "where", "what", "places", "kernel", "moved"} == set(out["steps"][0])
    assert {"counter": "IRQ 28 cnt on CPU 3", "before": 0, "after": 1} in out["moved"]

    machine = Machine.load("rfc-gen2-8vcpu")
    machine.boot()
    console = Console(width=120, force_terminal=True, record=True)
    console.print(explanation_tree(explain(machine, 14)))
    drawn = console.export_text()
    assert "CPU 0, softirq" in drawn
    assert all(name in drawn for name in ("vi_vsp_send()", "vi_ring_drain()", "21 leaves the interrupt"))


def test_offline_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """Who refuses and what to do, as text and as JSON; on a terminal tables; for a shell the lines alone."""
    assert 0 == main(["offline", "6-7", "--plan"])
    text = capsys.readouterr().out
    assert text.startswith("offline 6-7: rfc-gen2-8vcpu, design rfc, protocol 5.2\n\nchannels that refuse (EBUSY):\n")
    assert "\nto free (2 moves, no fewer):\n  echo 4 > /proc/irq/39/smp_affinity_list\n" in text
    assert 0 == main(["offline", "6-7", "--plan", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert (True, 2, [6, 7], [19, 20]) == (
        *(out[key] for key in ("possible", "moves", "going")),
        [holder["relid"] for holder in out["holders"]],
    )
    assert 0 == main(["offline", "6-7", "--plan", "--shell"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# take cpus 6-7 offline: ")
    assert out["free"] == lines[1:]
    assert 0 == main(["offline", "6-7", "--plan", "--shell", "--restore"])
    assert out["restore"] == capsys.readouterr().out.splitlines()[1:]


def test_offline_plan_that_is_impossible(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1; a shell gets nothing to do, a person the reason."""
    assert 1 == main(["offline", "3", "-s", "hibernate", "--plan"])
    assert "\nimpossible:\n  cpu 3: channel without relid (netvsc): EIO: " in capsys.readouterr().out
    assert 1 == main(["offline", "3", "-s", "hibernate", "--plan", "--shell"])
    told = capsys.readouterr()
    assert "" == told.out
    assert told.err.startswith("cpu 3: channel without relid (netvsc): EIO: ")
    assert 1 == main(["offline", "3", "-s", "hibernate"])
    told = capsys.readouterr()
    assert "\nonline: 0-3\n" in told.out
    assert told.err.startswith("cpu 3: channel without relid (netvsc): EIO: ")


def test_offline_does_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line with its errno; the status says whether the CPUs are offline."""
    assert 0 == main(["offline", "7", "--design", "legacy"])
    assert "  ok  sleep 1\n" in (out := capsys.readouterr().out)
    assert out.endswith("\nonline: 0-6\ncolumns: CPU0 CPU1 CPU2 CPU3 CPU4 CPU5 CPU6\n")
    assert 1 == main(["offline", "7", "--no-move", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (False, "0-7", ["EBUSY"]) == (result["done"], result["online"], [o["error"] for o in result["outcomes"]])
    assert 0 == main(["offline", "7", "--json"])
    assert json.loads(capsys.readouterr().out)["done"]


def test_offline_on_a_terminal() -> None:
    """Tables; a line to be typed is never broken, however narrow the terminal is."""
    from rich.console import Console

    from vmbusirq.lab.plan import plan_offline
    from vmbusirq.lab.rehearse import carry_out
    from vmbusirq.report import show_plan, show_result

    machine = Machine.load("rfc-gen2-8vcpu", design="legacy")
    machine.run()
    plan = plan_offline(machine, 0x80)
    console = Console(width=60, force_terminal=True, record=True)
    show_plan(console, plan)
    drawn = console.export_text()
    assert {str(line) for line in (*plan.free, *plan.restore)} <= set(drawn.splitlines())
    assert "channels that refuse (EBUSY)" in drawn
    assert "interrupts that move by themselves: none" in drawn
    console = Console(width=120, force_terminal=True, record=True)
    show_result(console, carry_out(machine, plan))
    assert "online: 0-6" in console.export_text()


def test_parse_prints_render_and_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A real file round-trips byte for byte; JSON has its rows."""
    assert 0 == main(["parse", str(SAMPLE), "--render"])
    assert SAMPLE.read_bytes() == capfdbinary.readouterr().out
    assert 0 == main(["parse", str(SAMPLE), "--json"])
    assert [0, 1] == json.loads(capfdbinary.readouterr().out)["cpus"]
    assert 0 == main(["parse", str(SAMPLE)])
    assert b"virtio3-rx" in capfdbinary.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "-s", "none"], "no scenario 'none'"),
        (["run", "--design", "none"], "choose from legacy, rfc"),
        (["run", "--generation", "v5"], "v6.10"),
        (["run", "--engine", "slow"], "fast, linux"),
        (["cat", "/proc/irq/99/node"], "irqs: 8-9 24-44"),
        (["cat", "/proc/irq"], "EISDIR"),
        (["ls", "/nowhere"], "ENOENT"),
        (["explain", "--relid", "99"], "relid 99: the guest has no such channel (ENOENT); it has: 1,3-5,7-11,13-24"),
        (["explain", "--relid", "14", "--cpu", "8"], "cpu 8: there is none (EINVAL); 0 to 7"),
        (["explain", "--relid", "23", "--state", "closed"], "its primary closes it (EINVAL)"),
        (["offline", "0"], "cpu 0: cannot go offline on x86: it has no online file (EPERM); others: 1-7"),
        (["offline", "0", "-s", "arm64-8vcpu"], "cpu 0: cannot go offline: control messages come to it"),
        (["offline", "0-7"], "cpus 0-7: cannot go offline: one CPU must stay (EBUSY); online: 0-7"),
        (["offline", "8"], "cpu list '8': not all of its CPUs are present (EINVAL); present: 0-7"),
        (["offline", "-1", "--plan"], "a cpu number is missing"),
        (["offline", ""], "names no CPU (EINVAL); present: 0-7"),
        (["offline", "7", "--design", "legacy", "--interface", "irq"], "has no channel IRQs (EINVAL); choose sysfs"),
        (["offline", "7", "--plan", "--no-move"], "leave --plan out"),
        (["offline", "7", "--shell"], "add --plan"),
        (["offline", "7", "--plan", "--restore"], "add --shell"),
        (["parse", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["parse", "/"], "/: Is a directory"),
        (["run", "-s", "/"], "cannot read scenario '/': Is a directory"),
        (["run", "-s", ""], "needs a name or a path"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_status_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback on user input is a bug."""
    assert 2 == main(argv)
    err = capsys.readouterr().err

    assert says in err
    assert 1 == len(err.splitlines())


def test_parse_error_names_file_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FILE:LINE:COLUMN: what was expected and what is there."""
    path = tmp_path / "cut"
    path.write_bytes(SAMPLE.read_bytes()[:600])
    assert 2 == main(["parse", str(path)])
    err = capsys.readouterr().err

    assert err.startswith(f"{path}:")
    assert all(part.isdigit() for part in err[len(str(path)) + 1 :].split(":")[:2])


def test_no_command_prints_help_and_version_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    """What a newcomer types first."""
    assert 2 == main([])
    assert "run" in capsys.readouterr().out
    assert 0 == main(["--version"])
    assert capsys.readouterr().out.startswith("vmbusirq ")


def test_help_imports_neither_the_core_nor_numpy_nor_rich() -> None:
    """Start-up stays fast: each command imports what it needs when it is called."""
    code = (
        "import sys\nfrom vmbusirq.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'rich', 'vmbusirq._core', 'cffi'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("argv", [["run"], ["explain", "--relid", "14"], ["offline", "7", "--plan"]])
def test_plain_text_imports_neither_numpy_nor_rich(argv: list[str]) -> None:
    """Plain text costs one C call; numpy alone would take three times as long as everything else."""
    code = (
        f"import sys\nfrom vmbusirq.cli import main\nmain({argv})\n"
        "heavy = {'numpy', 'rich'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("command", "says"), [("run >&-", "standard output is closed"), ("parse - <&-", "standard input is closed")]
)
def test_closed_streams_are_one_line_and_status_2(command: str, says: str) -> None:
    """Python leaves None where a descriptor was closed; a person gets a sentence."""
    line = f"'{sys.executable}' -m vmbusirq {command}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert [says] == [text.partition(": ")[2] for text in done.stderr.splitlines()]


@pytest.mark.parametrize("argv", [["run", "--json", "--format", "table"], ["parse", "x", "--json", "--render"]])
def test_two_forms_of_output_exclude_each_other(argv: list[str]) -> None:
    """One of them would be dropped silently."""
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert 2 == exit_.value.code


def test_reader_that_stops_early_is_no_error() -> None:
    """``vmbusirq run | head -1``."""
    command = f"'{sys.executable}' -m vmbusirq run | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert "CPU0" in done.stdout
