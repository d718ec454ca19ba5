"""The SynIC benchmark: what it measures arrives, its bars, and that what goes astray is caught."""

from __future__ import annotations

import errno
import json

import pytest

from vmbusirq._ffi import ffi, lib
from vmbusirq.cli import main
from vmbusirq.core import Core
from vmbusirq.errors import MachineBug
from vmbusirq.hyperv.partition import Partition
from vmbusirq.lab import bench_synic as room

VMBUS, OTHER = 2, 4
COUNT = 10


@pytest.fixture
def partition() -> Partition:
    """Return a SynIC with SINT2 and SINT4 unmasked, flag and slot clear, and connection 5."""
    partition = Partition(Core(nr_cpus=1))
    for msr, value in ((0x80, 1), (0x82, 0x6001), (0x83, 0x7001), (0x92, 0xF3), (0x94, 0x51), (0x95, 0x10051)):
        partition.vcpus[0].wrmsr(0x4000_0000 + msr, value)
    partition.create_event_port(7)
    partition.connect(5, 7)
    return partition


def run(partition: Partition, contender: int, sint: int = OTHER, connection_id: int = 5, count: int = COUNT) -> int:
    work = ffi.new("struct vi_synic_work *", (contender, sint, connection_id, count))
    return int(lib.vi_synic_bench_run(partition.core.handle, work, ffi.new("uint64_t *")))


def test_every_loop_does_what_it_says(partition):
    """And leaves flag and slot as it found them, so that the next one can run."""
    for _ in range(2):
        for contender in range(lib.VI_SYNIC_CONTENDERS):
            assert run(partition, contender, VMBUS if contender == lib.VI_SYNIC_BENCH_TAKE else OTHER) == 0
            assert () == partition.synic.flags_set(0, OTHER) == partition.synic.flags_set(0, VMBUS)
            assert partition.synic.take_message(0, OTHER) is None
    assert [7] == [port.id for port in partition.take_events()]
    assert partition.vcpus[0].apic.irr >> 0x51 & 1
    assert 2 * COUNT == lib.vi_synic_eom_count(partition.core.handle, 0)


def test_a_loop_that_cannot_be(partition):
    """EINVAL for what does not exist; EBADMSG when a step does not go as it should."""
    assert -errno.EINVAL == run(partition, lib.VI_SYNIC_CONTENDERS)
    assert -errno.EINVAL == run(partition, lib.VI_SYNIC_BENCH_FLAG, 16)
    assert -errno.EINVAL == run(partition, lib.VI_SYNIC_BENCH_TAKE, OTHER)
    assert -errno.EBADMSG == run(partition, lib.VI_SYNIC_BENCH_CONNECTION, connection_id=6)
    for contender in (lib.VI_SYNIC_BENCH_FLAG, lib.VI_SYNIC_BENCH_SET):
        assert -errno.EBADMSG == run(partition, contender, 5), "masked"
    partition.synic.signal(0, 77, OTHER)
    assert -errno.EBADMSG == run(partition, lib.VI_SYNIC_BENCH_FLAG)
    partition.synic.post(0, b"in the way", sint=VMBUS)
    assert -errno.EBADMSG == run(partition, lib.VI_SYNIC_BENCH_MESSAGE, VMBUS)


def test_rows_rates_and_the_split(capsys):
    """Four ratios with bars; messages/s and signals/s both ways; where the cost is, by step."""
    assert main(["bench", "synic", "--rounds", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert ["S1", "S2", "S3", "S4"] == [row["id"] for row in document["rows"]]
    assert all(row["bar"] and row["ours_ns"] > 0 and row["peer_ns"] > 0 for row in document["rows"])
    units = [finding["unit"] for finding in document["findings"]]
    assert len(room._RATES) == units.count("signals/s") + units.count("messages/s")
    assert len(room._SPLIT) == units.count("ns")
    used = {name for _, _, name, less in room._SPLIT for name in (name, *(less or name).split(" + "))}
    used |= {name for _, _, _, name in room._RATES} | {"floor"}
    assert used == set(document["timings"]), "every contender is there for something"


def test_what_goes_astray_is_a_bug():
    """A benchmark that loses messages must not print a number."""
    with pytest.raises(MachineBug, match="30 of 30 went astray"):
        room._calls(lambda: False, "nothing")()
    with pytest.raises(MachineBug, match="went astray"):
        room._loop(Partition(Core(nr_cpus=1)), lib.VI_SYNIC_BENCH_FLAG, OTHER)()
