"""Tables to print and to read: fixed machines for goldens, random ones for hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

from tests.reference import interrupts as reference
from tests.reference.interrupts import Cpu, Ipi, Irq, Single


@dataclass(frozen=True)
class Table:
    """What the reference twin prints."""

    version: str
    prec: int
    cpus: tuple[int, ...]
    rows: tuple[object, ...]
    chip_width: int = 8

    def text(self) -> bytes:
        return reference.render(self.version, self.prec, self.cpus, self.rows, self.chip_width)


def rfc_machine(version: str, arch: str, cpus: tuple[int, ...] = tuple(range(8)), nr_irqs: int = 472) -> Table:
    """A guest with the awkward cases of each generation: nameless and chipless rows, long names, all cell widths."""
    random = Random(1)

    def counts() -> list[int]:
        return [random.getrandbits(random.randrange(33)) for _ in cpus]

    level = {"level": "Edge"} if arch == "arm64" else {}
    edge = {} if arch == "arm64" else {"flow": "edge"}
    rows: list[object] = [
        Irq(8, [0] * len(cpus), "IO-APIC", 8, actions=("rtc0",), **level, **edge),
        Irq(9, counts(), "IO-APIC", 9, actions=("acpi",), **level, flow="fasteoi"),
        Irq(10, counts(), "GIC-0", 27, actions=("arch_timer",), **level, chip_prints=True),
        Irq(24, [16841] + [0] * (len(cpus) - 1), "VMBus", 7, actions=("heartbeat",), **level),
        Irq(28, counts(), "VMBus", 14, actions=("pri@storvsc0",), **level),
        Irq(45, counts(), "Hyper-V PCIe MSI", 4, actions=("mlx5_async0@pci:7870:00:00.0",), **level, **edge),
        Irq(46, counts(), "PCI-MSIX-0000:00:02.0", 1, actions=("virtio1-req.0", "shared by two"), **level, **edge),
        Irq(47, counts(), "None", actions=("no chip",), **level),
        Irq(48, counts(), "-", 1234567, actions=("i2c-designware,foo",), **level),
        Irq(999, [4294967295] * len(cpus), "dummy", actions=(), **level)
        if version == "v6.10"
        else Irq(999, [4294967295] * len(cpus), "dummy", 99, actions=("last",), **level),
    ]
    if arch == "arm64":
        rows += [Ipi(i, counts(), text) for i, text in enumerate(reference.ipi_texts(version))]
        rows += [Single("Err", 3)]
    else:
        for label, text in reference.X86_DESCRIPTIONS.items():
            rows += [Single(label, 0)] if text is None else [Cpu(label, counts(), text)]
    return Table(version, reference.prec_of(version, nr_irqs), cpus, tuple(rows), 21)


_WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1, max_size=20)
_NAME = st.lists(_WORD, min_size=1, max_size=3).map(" ".join)
_WILD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=12)
_CHIP = st.sampled_from(["VMBus", "IO-APIC", "Hyper-V PCIe MSI", "PCI-MSIX-0000:00:02.0", "-", "None", "8250"]) | _NAME
_COUNT = st.just(0) | st.integers(0, 2**32 - 1) | st.sampled_from([9, 10, 99_999_999, 100_000_000, 2**32 - 1])


@st.composite
def tables(draw: st.DrawFn, *, wild: bool = False) -> Table:
    """Draw a table of any generation and architecture; ``wild`` action names may hold any character of a line."""
    version = draw(st.sampled_from(reference.VERSIONS))
    arch = draw(st.sampled_from(["x86", "arm64"]))
    prec = draw(st.integers(4 if version == "v7.1" else 3, 5))
    ids = st.lists(st.integers(0, 200), min_size=1, max_size=70, unique=True).map(sorted)
    cpus = tuple(draw(ids | st.integers(1, 8).map(lambda n: list(range(n)))))
    random = draw(st.randoms(use_true_random=False))
    pool = draw(st.lists(_COUNT, min_size=1, max_size=6))

    def counts() -> list[int]:
        return [random.choice(pool) for _ in cpus]

    rows: list[object] = []
    for irq in sorted(draw(st.sets(st.integers(0, 10**prec - 1), max_size=5))):
        prints = draw(st.booleans()) and draw(st.booleans())
        actions = draw(st.lists(_WILD if wild else _NAME, min_size=version != "v6.10", max_size=3))
        rows.append(
            Irq(
                irq,
                counts(),
                "GIC-" + str(draw(st.integers(0, 9))) if prints else draw(_CHIP),
                draw(st.none() | st.integers(0, 2**40) | st.integers(0, 99)),
                draw(st.sampled_from(["Level", "Edge"])) if arch == "arm64" else None,
                draw(st.sampled_from([None, "edge", "fasteoi", "fasteoi-long"])),
                tuple(actions),
                prints,
            )
        )
    if arch == "arm64":
        texts = reference.ipi_texts(version)
        rows += [Ipi(i, counts(), texts[i]) for i in range(draw(st.integers(0, len(texts))))]
        rows += [Single("Err", draw(st.integers(0, 2**64 - 1)))]
    else:
        for label in draw(st.lists(st.sampled_from(sorted(reference.X86_DESCRIPTIONS)), unique=True, max_size=4)):
            text = reference.X86_DESCRIPTIONS[label]
            rows += [Cpu(label, counts(), text)] if text else [Single(label, draw(st.integers(0, 2**32 - 1)))]
    longest = max((len(row.chip.encode()) for row in rows if isinstance(row, Irq) and not row.chip_prints), default=0)
    return Table(version, prec, cpus, tuple(rows), max(8, longest, draw(st.sampled_from([0, 21]))))
