"""The strict reader of /proc/interrupts: what it understands, and what it says (genirq.md 1, real-clients.md 4)."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fs.tables import rfc_machine, tables
from tests.reference import interrupts as reference
from tests.reference.interrupts import Cpu, Ipi, Irq, Single
from vmbusirq.fs.parse import InterruptsTable, ParseError, parse_interrupts
from vmbusirq.fs.rows import IrqText
from vmbusirq.fs.split import split_strict
from vmbusirq.generations import GENERATIONS

HEADER = b"           CPU0       CPU1       \n"


def refusal(data: bytes) -> tuple[int, int, str]:
    with pytest.raises(ParseError) as caught:
        parse_interrupts(data)
    error = caught.value
    assert f"{error.line}:{error.column}: {error.message}" == str(error)
    return error.line, error.column, error.message


def as_reference(row):
    """Return a parsed row as one of the reference twin."""
    if row.kind == "irq":
        t = row.irq
        return Irq(int(row.label), list(row.counts), t.chip, t.hwirq, t.level, t.flow, t.actions, t.chip_prints)
    if row.kind == "single":
        return Single(row.label, row.counts[0])
    if row.kind == "ipi":
        return Ipi(int(row.label[3:]), list(row.counts), row.text)
    return Cpu(row.label, list(row.counts), row.text)


# ---- round trips


def test_a_real_machine_round_trips(sample):
    """x86, two CPUs, v6.18: byte for byte, and known by its one blank before the chip."""
    table = parse_interrupts(sample)
    assert sample == table.render()
    assert table.exact
    assert ("v6.13", "v6.18") == table.generations
    assert () == table.notices
    assert (0, 1) == table.cpus
    assert 35 == len(table.rows)
    rows = {row.label: row for row in table.rows}
    assert IrqText("PCI-MSIX-0000:00:02.0", 1, None, "edge", ("virtio1-req.0",)) == rows["36"].irq
    assert [0, 315964] == list(rows["36"].counts)
    assert ("cpu", "Function call interrupts") == (rows["CAL"].kind, rows["CAL"].text)
    assert [3012437, 2880769] == list(rows["CAL"].counts)
    assert ("single", (0,)) == (rows["ERR"].kind, rows["ERR"].counts)


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("version", GENERATIONS)
def test_every_generation_round_trips(version, arch):
    """The awkward rows of each, from the reference twin."""
    made = rfc_machine(version, arch)
    table = parse_interrupts(made.text())
    assert made.text() == table.render()
    assert table.exact
    assert version in table.generations
    assert list(made.rows) == [as_reference(row) for row in table.rows]


@given(tables())
@settings(max_examples=120)
def test_parse_then_render_gives_the_same_bytes(made):
    """Any file of a known generation, whatever its CPUs, widths and names; and every field is what was printed."""
    table = parse_interrupts(made.text())
    assert made.text() == table.render()
    assert table.exact
    assert (made.cpus, made.prec) == (table.cpus, table.prec)
    assert [len(row.counts) for row in made.rows if not isinstance(row, Single)] == [
        len(row.counts) for row in table.rows if row.kind != "single"
    ]
    if not any(isinstance(row, Irq) and row.chip_prints for row in made.rows):
        assert made.version in table.generations
        assert list(made.rows) == [as_reference(row) for row in table.rows]


@given(tables(wild=True))
@settings(max_examples=100)
def test_any_action_name_round_trips(made):
    """Names may hold blanks, commas, dashes, digits, anything but a newline."""
    assert made.text() == parse_interrupts(made.text()).render()


@given(tables(), st.sampled_from(list(GENERATIONS)))
@settings(max_examples=50)
def test_a_table_can_be_printed_as_another_generation_would(made, version):
    """Same rows, other text: as if that kernel had run on the machine."""
    generation = GENERATIONS[version]
    if any(isinstance(row, Irq) and row.chip_prints for row in made.rows):
        return
    expected = reference.render(version, max(made.prec, generation.prec_floor), made.cpus, made.rows, 0)
    longest = max([8, *(len(row.chip.encode()) for row in made.rows if isinstance(row, Irq))])
    if version == "v7.1":
        expected = reference.render(version, max(made.prec, 4), made.cpus, made.rows, longest)
    assert expected == parse_interrupts(made.text()).render(generation)


# ---- truncation and garbage


@pytest.mark.parametrize("source", ["sample", "v6.10 x86", "v7.1 x86", "v6.12 arm64"])
def test_a_file_cut_anywhere_is_refused_or_whole(source, sample):
    """Cut at every byte: the rows so far when it is cut between two rows, else an error at the cut."""
    data = sample
    if source != "sample":
        made = rfc_machine(*source.split(), cpus=(0, 3))
        data = replace(made, rows=made.rows[6:12] + made.rows[-3:]).text()
    whole = parse_interrupts(data)
    for cut in range(len(data)):
        part = data[:cut]
        if part.endswith(b"\n"):
            table = parse_interrupts(part)
            assert table.exact
            assert part == table.render()
            assert part.count(b"\n") - 1 == len(table.rows)
            assert [row.label for row in table.rows] == [row.label for row in whole.rows[: len(table.rows)]]
        else:
            last = part.rpartition(b"\n")[2]
            assert (part.count(b"\n") + 1, len(last) + 1) == refusal(part)[:2]


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_is_refused_with_a_place_inside_it(data):
    """Never a crash, never another exception."""
    try:
        table = parse_interrupts(data)
    except ParseError as caught:
        error = caught
    else:
        assert isinstance(table, InterruptsTable)
        return
    lines = data.split(b"\n")
    assert 1 <= error.line <= len(lines)
    assert 1 <= error.column <= len(lines[error.line - 1]) + 1
    assert error.message.startswith("expected ")


@given(tables(), st.data())
@settings(max_examples=100)
def test_a_damaged_byte_is_refused_or_told(made, data):
    """One byte changed: the file is refused, or read with a notice, or still prints back to what it says."""
    text = bytearray(made.text())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255))
    damaged = bytes(text)
    try:
        table = parse_interrupts(damaged)
    except ParseError:
        return
    assert table.exact == (damaged == table.render())
    assert table.exact or table.notices


@pytest.mark.parametrize(
    ("data", "line", "column", "message"),
    [
        (b"", 1, 1, "expected the header ('CPU0 ...'), but the file is empty"),
        (b"\n", 1, 1, "expected the header ('CPU0 ...'), found the end of the line"),
        (b"CPU0", 1, 5, "expected the header ('CPU0 ...'), but the file ends here"),
        (b"hello\n", 1, 1, "expected 'CPU' and a number, found 'hello'"),
        (b"           CPU0 CPUx\n", 1, 17, "expected 'CPU' and a number, found 'CPUx'"),
        (b"           CPU01\n", 1, 12, "expected 'CPU' and a number, found 'CPU01'"),
        (b"           CPU2147483648\n", 1, 12, "expected 'CPU' and a number, found 'CPU2147483648'"),
        (b"           CPU1       CPU1       \n", 1, 23, "expected a CPU above 1, found 'CPU1'"),
        (b"           CPU1       CPU0       \n", 1, 23, "expected a CPU above 1, found 'CPU0'"),
        (HEADER + b"\n", 2, 1, "expected a row label and a colon, found the end of the line"),
        (HEADER + HEADER, 2, 12, "expected a row label and a colon, found 'CPU0       CPU1'"),
        (HEADER + b" 24 : 0 0 x\n", 2, 2, "expected a row label and a colon, found '24 : 0 0 x'"),
        (
            HEADER + b" 24:          1  IO-APIC   5-edge  x\n",
            2,
            18,
            "expected count 2 of 2, of CPU1, found 'IO-APIC   5-edge  x'",
        ),
        (HEADER + b" 24:          1\n", 2, 16, "expected count 2 of 2, of CPU1, found the end of the line"),
        (HEADER + b"LOC:          1\n", 2, 16, "expected count 2 of 2, of CPU1, found the end of the line"),
        (HEADER + b"LOC:\n", 2, 5, "expected count 1 of 2, of CPU0, found the end of the line"),
        (
            HEADER + b" 24:         -1          0  IO-APIC\n",
            2,
            14,
            "expected count 1 of 2, of CPU0, found '-1          0  IO-APIC'",
        ),
        (HEADER + b" 24:          1          0\n", 2, 27, "expected a chip name, found the end of the line"),
        (HEADER + b" 24:          1          0   \n", 2, 27, "expected a chip name, found the end of the line"),
        (
            HEADER + b" 24:          1 4294967296  IO-APIC   5-edge      x\n",
            2,
            17,
            "expected a count up to 4294967295, found '4294967296'",
        ),
        (
            HEADER + b"NMI: 99999999999999999999999          0   x\n",
            2,
            6,
            "expected a count up to 4294967295, found '99999999999999999999999'",
        ),
        (
            HEADER + b"ERR: 18446744073709551616\n",
            2,
            6,
            "expected one number up to 18446744073709551615, found '18446744073709551616'",
        ),
        (HEADER + b"ERR:          x\n", 2, 15, "expected one number up to 18446744073709551615, found 'x'"),
        (
            HEADER + b"2147483648:          0          0  x\n",
            2,
            1,
            "expected an IRQ number up to 2147483647, found '2147483648'",
        ),
        (
            HEADER + 2 * b" 24:          1          0  IO-APIC   5-edge      x\n",
            3,
            2,
            "expected each IRQ once, but 24 has a row on line 2 already",
        ),
        (HEADER + b" 24:          1          0  IO-APIC   5-edge      \0\n", 2, 51, "expected text, found a NUL byte"),
        (HEADER + b"foo: bar\n", 2, 6, "expected count 1 of 2, of CPU0, found 'bar'"),
        (HEADER + "NMI: ½ 0 x\n".encode(), 2, 6, "expected count 1 of 2, of CPU0, found '\\xbd 0 x'"),
        (
            HEADER + b"NMI: " + 40 * b"x" + b"\n",
            2,
            6,
            "expected count 1 of 2, of CPU0, found 'xxxxxxxxxxxxxxxxxxxxxxxx'…",
        ),
    ],
)
def test_a_refusal_says_what_was_expected_and_what_is_there(data, line, column, message):
    """Line and column from 1; the message quotes the file."""
    assert (line, column, message) == refusal(data)


# ---- both sides of the borders


def test_the_largest_numbers_are_read():
    """u32 in cells, u64 in a single number, INT_MAX for an IRQ and a CPU."""
    table = parse_interrupts(
        b"               CPU2147483647\n2147483647: 4294967295     VMBus       7  x\n   Err: 18446744073709551615\n"
    )
    assert (2147483647,) == table.cpus
    assert [4294967295] == list(table.rows[0].counts)
    assert (18446744073709551615,) == table.rows[1].counts


def test_a_single_number_is_read_whatever_the_number_of_cpus():
    """ERR, MIS, Err and the older BAD; a row of any other label needs one count per CPU."""
    for cpus in (b"           CPU0       \n", HEADER):
        for label in (b"ERR", b"MIS", b"Err", b"BAD"):
            table = parse_interrupts(cpus + label + b":         12\n")
            assert table.exact
            assert ("single", (12,)) == (table.rows[0].kind, table.rows[0].counts)


def test_a_row_may_have_more_numbers_than_the_header():
    """A CPU that came online after the header was printed; every number is kept, and told."""
    data = HEADER + b" 24:          1          2          3     VMBus   7  x\n"
    table = parse_interrupts(data)
    assert [1, 2, 3] == list(table.rows[0].counts)
    assert data == table.render()
    assert ["2:5: row 24 has 3 counts for 2 CPUs"] == [str(notice) for notice in table.notices]
    loose = parse_interrupts(HEADER + b" 24: 1 2 3 VMBus 7 x\nNMI: 1 2 3 text\n")
    assert [[1, 2, 3], [1, 2, 3]] == [list(row.counts) for row in loose.rows]
    assert IrqText("VMBus", 7, actions=("x",)) == loose.rows[0].irq


def test_a_header_alone_is_a_table_without_rows():
    """All IRQs may be hidden; then all generations agree."""
    table = parse_interrupts(HEADER)
    assert () == table.rows
    assert table.exact
    assert ("v6.10", "v6.12", "v6.13", "v6.18") == table.generations
    assert tuple(GENERATIONS) == parse_interrupts(b" " + HEADER).generations


# ---- generations


@pytest.mark.parametrize(
    ("row", "prec", "generations"),
    [
        (b" 24:          1          0     VMBus   7  x", 3, "v6.10 v6.12"),
        (b" 24:          1          0    VMBus   7  x", 3, "v6.13 v6.18"),
        (b"  24:          1          0  VMBus       7  x", 4, "v7.1"),
        (b" 24:          1          0     VMBus   7", 3, "v6.10"),
        (b"NMI:          1          0   Non-maskable interrupts", 3, "v6.10 v6.12 v6.13 v6.18"),
        (b" NMI:          1          0  Non-maskable interrupts", 4, "v7.1"),
        (b"IPI3:         1          0       CPU stop (for crash dump) interrupts", 3, "v6.10"),
        (b"IPI3:         1          0       CPU stop NMIs", 3, "v6.12 v6.13 v6.18"),
        (b"IPI7:          1          0       KGDB roundup interrupts", 4, "v6.12 v6.13 v6.18 v7.1"),
        (b"IPI3:         1          0       something else", 3, ""),
    ],
)
def test_the_generations_that_may_have_printed_a_row(row, prec, generations):
    """genirq.md 8 and 9; the text of an IPI that no generation has still round-trips."""
    table = parse_interrupts(b" " * (prec - 3) + HEADER + row + b"\n")
    assert table.exact
    assert tuple(generations.split()) == table.generations


def test_the_chip_field_of_v7_1_may_be_wider_than_any_chip_shown():
    """The width remembers the longest name ever set."""
    data = b" " + HEADER + b"  24:          1          0  VMBus            7  x\n"
    table = parse_interrupts(data)
    assert ("v7.1",) == table.generations
    assert 13 == table.chip_width
    assert data == table.render()
    both = data + b"  25:          1          0  VMBus       8  y\n"
    assert not parse_interrupts(both).exact


# ---- files that no known generation printed


RFC_MAIL = b"""           CPU0       CPU1        CPU6       CPU7
  8:          0          0           0          0   IO-APIC   8-edge      rtc0
  9:          2          0           0          0   IO-APIC   9-fasteoi   acpi
 24:      16841          0           0          0     VMBus   7  heartbeat
HYP:         71          0           0          0   Hypervisor callback interrupts
ERR:          0
"""


def test_a_table_cut_by_hand_is_read_with_a_notice():
    """Columns were removed from the mail's table, which left a stray blank and lost the header's trailing ones."""
    table = parse_interrupts(RFC_MAIL)
    assert not table.exact
    assert () == table.generations
    assert (0, 1, 6, 7) == table.cpus
    assert ["1:34: expected 'CPU6       CPU7       ', found ' CPU6       CPU7'"] == [str(n) for n in table.notices]
    assert [16841, 0, 0, 0] == list(table.rows[2].counts)
    assert IrqText("VMBus", 7, actions=("heartbeat",)) == table.rows[2].irq
    mended = table.render()
    assert parse_interrupts(mended).exact
    assert b" 24:      16841          0          0          0     VMBus   7  heartbeat\n" in mended


def test_a_kernel_that_glued_the_flow_name_to_the_chip_is_read():
    """2.6.2x: no hwirq column."""
    table = parse_interrupts(
        HEADER
        + b"  0:        127          0   IO-APIC-edge      timer\n"
        + b" 16:          3          0   IO-APIC-fasteoi   ehci_hcd:usb1, uhci_hcd:usb2\n"
        + b" 24:          0          0  PCI-MSI-edge      ahci\n"
        + b"NMI:          0          0 \n"
    )
    assert [
        IrqText("IO-APIC", None, None, "edge", ("timer",)),
        IrqText("IO-APIC", None, None, "fasteoi", ("ehci_hcd:usb1", "uhci_hcd:usb2")),
        IrqText("PCI-MSI", None, None, "edge", ("ahci",)),
        None,
    ] == [row.irq for row in table.rows]
    assert not table.exact
    assert table.notices


def test_rows_of_other_architectures_are_read():
    """powerpc, riscv, 32-bit Arm, s390."""
    table = parse_interrupts(
        HEADER
        + b" 16:          5          0      XICS   2 Edge      IPI\n"
        + b"LOC:         12         13   Local timer interrupts for timer event device\n"
        + b"IPI0:         1          2  Rescheduling interrupts\n"
        + b"FIQ:              usb_fiq\n"
        + b"I/O:          1          2\n"
        + b"BAD:          0\n"
    )
    assert ["irq", "cpu", "ipi", "text", "cpu", "single"] == [row.kind for row in table.rows]
    assert IrqText("XICS", 2, "Edge", None, ("IPI",)) == table.rows[0].irq
    assert "usb_fiq" == table.rows[3].text
    assert [1, 2] == list(table.rows[2].counts)
    fiq = HEADER + b"FIQ:              usb_fiq\n"
    assert fiq == parse_interrupts(fiq).render()


def test_lines_of_another_system_are_read():
    """CR LF, as a file that went through a mail or an editor may have."""
    lines = HEADER + b" 24:          1          0     VMBus   7  x\n"
    table = parse_interrupts(lines.replace(b"\n", b"\r\n"))
    assert not table.exact
    assert ("x",) == table.rows[0].irq.actions
    assert lines == table.render()


def test_cells_of_ten_digits_may_touch_the_label():
    """genirq.md 1.7: what confused a real client (real-clients.md 5.9)."""
    data = b"           CPU0       \nIPI0:1145401553       Rescheduling interrupts\n"
    assert [1145401553] == list(parse_interrupts(data).rows[0].counts)
    assert parse_interrupts(data).exact


def test_a_chip_name_may_begin_with_a_digit_or_be_one():
    """real-clients.md 4.3: cells end where the columns end."""
    for version in ("v6.10", "v6.18"):
        for chip in ("8250", "3com", "1 2 3", "-"):
            rows = [Irq(24, [1, 2], chip, 7, actions=("x",))]
            data = reference.render(version, 3, [0, 1], rows)
            assert rows == [as_reference(row) for row in parse_interrupts(data).rows]
    words = parse_interrupts(HEADER + b"24: 1 2 8250 5-edge x\n")
    assert [1, 2] == list(words.rows[0].counts)


def test_names_that_are_not_utf_8_round_trip():
    """A driver may name its IRQ as it likes."""
    data = HEADER + b" 24:          1          0     VMBus   7  \xff\xfe\n"
    assert data == parse_interrupts(data).render()
    json.dumps(parse_interrupts(data).to_json())


def test_rows_of_v7_1_agree_on_one_width():
    """A row alone may be read with a wider chip field; the others decide."""
    rows = [Irq(1, [0], "VMBus", None, actions=("7  x",)), Irq(2, [0], "VMBus", 3, actions=("y",))]
    data = reference.render("v7.1", 4, [0], rows)
    assert rows == [as_reference(row) for row in parse_interrupts(data).rows]
    alone = reference.render("v7.1", 4, [0], rows[:1])
    assert Irq(1, [0], "VMBus", 7, actions=("x",)) == as_reference(parse_interrupts(alone).rows[0])
    assert alone == parse_interrupts(alone).render()


def test_a_level_word_before_the_action_is_the_level_not_a_part_of_its_name():
    """genirq.md 1.3, steps 5 and 7: `` %-8s`` and then two blanks, which an action name would need as a run inside."""
    rows = [Irq(0, [0], "VMBus", None, "Level", actions=("0",)), Single("Err", 0)]
    data = reference.render("v7.1", 4, [0], rows, 21)
    assert b"   0:          0  VMBus                       Level     0" == data.splitlines()[1]
    table = parse_interrupts(data)
    assert rows == [as_reference(row) for row in table.rows]
    assert (21, ("v7.1",)) == (table.chip_width, table.generations)
    assert data == table.render()
    assert reference.render("v6.10", 4, [0], rows) == table.render(GENERATIONS["v6.10"])


def test_all_rows_have_a_level_or_none_has():
    """genirq.md 1.3, step 5, and 9: the configuration decides, so one row tells what the others say."""
    like_a_level = Irq(0, [0], "VMBus", None, actions=("Level     0",))
    with_level = replace(like_a_level, level="Level", actions=("0",))
    timer = Irq(1, [0], "GIC-0", 27, actions=("timer",), chip_prints=True)
    for rows, width in (([like_a_level, timer], 20), ([with_level, replace(timer, level="Edge")], 21)):
        data = reference.render("v7.1", 4, [0], rows, width)
        assert rows == [as_reference(row) for row in parse_interrupts(data).rows]
        assert data == parse_interrupts(data).render()


def test_where_a_level_and_a_name_print_the_same_the_level_wins():
    """genirq.md 9: only where the chip field's width is unknown, which is where no row has a hwirq."""
    like_a_level = Irq(0, [0], "VMBus", None, actions=("Level     0",))
    with_level = replace(like_a_level, level="Level", actions=("0",))
    data = reference.render("v7.1", 4, [0], [like_a_level], 20)
    assert data == reference.render("v7.1", 4, [0], [with_level], 21)
    assert [with_level] == [as_reference(row) for row in parse_interrupts(data).rows]
    known = [like_a_level, Irq(1, [0], "VMBus", 7, actions=("Level     0",))]
    for version in ("v6.10", "v6.18", "v7.1"):
        data = reference.render(version, 4, [0], known, 20)
        assert known == [as_reference(row) for row in parse_interrupts(data).rows]


def test_rows_that_disagree_on_the_level_are_of_no_known_kernel():
    """genirq.md 1.3, step 5; such a table was put together from two, and is still read row by row."""
    rows = [Irq(1, [0], "VMBus", 7, "Edge", actions=("x",)), Irq(2, [0], "VMBus", 8, actions=("y",))]
    table = parse_interrupts(reference.render("v6.10", 3, [0], rows))
    assert () == table.generations
    assert rows == [as_reference(row) for row in table.rows]


def test_a_name_like_a_flow_name_is_a_name_where_no_row_is_nameless():
    """genirq.md 1.4: since v6.12 there is no row without action; up to then, it is the likelier reading."""
    rows = [Irq(24, [0], "VMBus", None, actions=("-fasteoi-long",))]
    data = reference.render("v7.1", 4, [0], rows)
    table = parse_interrupts(data)
    assert (rows, ("v7.1",)) == ([as_reference(row) for row in table.rows], table.generations)
    rows = [Irq(24, [0], "VMBus", 7, flow="fasteoi-long")]
    table = parse_interrupts(reference.render("v6.10", 3, [0], rows))
    assert (rows, ("v6.10",)) == ([as_reference(row) for row in table.rows], table.generations)


def test_a_name_with_a_dash_is_likelier_than_one_that_begins_with_blanks():
    """genirq.md 1.3: a chip whose name ends in a number, and an IRQ without domain."""
    rows = [Irq(24, [0], "GIC-0 Edge 1234", None, actions=("- GIC-0",))]
    for version in ("v6.10", "v6.18", "v7.1"):
        data = reference.render(version, 4, [0], rows, 15)
        assert rows == [as_reference(row) for row in parse_interrupts(data).rows]


# ---- other forms


def test_json_holds_all_there_is(sample):
    """Plain values only."""
    out = json.loads(json.dumps(parse_interrupts(sample).to_json()))
    assert ["cpus", "prec", "exact", "generations", "notices", "rows"] == list(out)
    assert {
        "label": "24",
        "kind": "irq",
        "counts": [1, 0],
        "irq": 24,
        "chip": "IO-APIC",
        "hwirq": 5,
        "level": None,
        "flow": "edge",
        "actions": ["ACPI:Ged"],
    } == out["rows"][0]
    assert {"label": "NMI", "kind": "cpu", "counts": [0, 0], "text": "Non-maskable interrupts"} == out["rows"][19]
    assert {"label": "ERR", "kind": "single", "counts": [0]} == out["rows"][30]
    notices = parse_interrupts(RFC_MAIL).to_json()["notices"]
    assert [
        {"line": 1, "column": 34, "message": "expected 'CPU6       CPU7       ', found ' CPU6       CPU7'"}
    ] == notices


def test_counts_cannot_be_written(sample):
    """Rows are values: read-only views of uint32."""
    counts = parse_interrupts(sample).rows[0].counts
    assert "I" == counts.format
    with pytest.raises(TypeError):
        counts[0] = 1


def test_the_likeliest_reading_comes_first():
    """Where the hwirq could be in two places, the one with the likelier action wins."""
    layout = GENERATIONS["v6.10"].layout
    readings = split_strict(layout, 3, b"  long chip 1234   7  name")
    assert (None, IrqText("long chip 1234", 7, actions=("name",))) == readings[0]
    assert (None, IrqText("long chip", 1234, actions=(" 7  name",))) == readings[1]
    readings = split_strict(layout, 3, b"     VMBus   7   8  name")
    assert [(None, IrqText("VMBus", 7, actions=(" 8  name",)))] == readings
    assert [] == split_strict(layout, 3, b"VMBus 7")


def test_a_large_table_is_read_and_told_quickly(seed):
    """512 CPUs by 400 rows: counts never become Python objects; a late difference is found by halving."""
    rows = [
        Irq(24 + i, [(i * c * 7919 + seed) % 2**32 for c in range(512)], "VMBus", i, actions=("n",)) for i in range(400)
    ]
    data = reference.render("v6.10", 4, range(512), rows)
    table = parse_interrupts(data)
    assert table.exact
    assert 512 * 400 == sum(len(row.counts) for row in table.rows)
    assert list(table.rows[399].counts) == rows[399].counts
    late = re.sub(rb"  n\n$", b" n\n", data)
    notice = parse_interrupts(late).notices[0]
    assert (401, len(late.splitlines()[-1])) == (notice.line, notice.column)
