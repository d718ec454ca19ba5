"""The ring benchmark: its workloads, its bars, and that a lost packet is caught."""

from __future__ import annotations

import errno

import pytest

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import MachineBug
from vmbusirq.lab import bench_ring


def test_a_row_per_bar():
    """performance.md 7: R1 to R4 on one thread, in order of their ids."""
    steps = []
    rows = bench_ring.bench_ring(
        rounds=1, two_threads=False, progress=lambda done, total, what: steps.append((done, total, what))
    )
    expected = [(id_, f"{payload} B") for id_ in ("R1", "R2", "R3", "R4") for payload in bench_ring._BARS[id_][2]]
    assert expected == [(row.id, row.workload) for row in rows]
    assert all(row.ours_ns > 0 and row.peer_ns > 0 and row.bar is not None for row in rows)
    assert [(i, 6, f"{payload} B") for i, payload in enumerate(bench_ring.PAYLOADS)] == steps


def test_two_threads_need_two_cpus(monkeypatch):
    """R5 has rows only where there are two CPUs to put the threads on."""
    monkeypatch.setattr(bench_ring, "PAYLOADS", (16,))
    monkeypatch.setattr(bench_ring, "_allowed_cpus", lambda: {0})
    assert {"R1", "R2"} == {row.id for row in bench_ring.bench_ring(rounds=1)}


def test_a_lost_packet_is_a_bug():
    """A benchmark that loses packets must not print a number."""
    with pytest.raises(MachineBug, match="lost or altered"):
        bench_ring._arrived(-errno.EBADMSG, "batch", 16)


@pytest.mark.parametrize(
    ("payload", "batch", "error"),
    [
        (0, 16, errno.EINVAL),
        (1, 16, 0),
        (16, 0, errno.EINVAL),
        (16, 65, errno.EINVAL),
        (16, 64, 0),
        (32744, 16, errno.EINVAL),
        (32736, 16, 0),
    ],
)
def test_a_batch_must_fit_the_ring(payload, batch, error):
    """512 KiB of data; a full ring would look empty."""
    out = ffi.new("struct vi_ring_bench **")
    assert -error == lib.vi_ring_bench_create(payload, batch, out)
    if error == 0:
        ns = ffi.new("uint64_t *")
        for contender in range(lib.VI_RING_CONTENDERS):
            assert lib.vi_ring_bench_run(out[0], contender, 3 * batch, ns) == 0
            assert ns[0] > 0
        assert -errno.EINVAL == lib.vi_ring_bench_run(out[0], lib.VI_RING_CONTENDERS, 1, ns)
        assert -errno.EINVAL == lib.vi_ring_bench_pair(out[0], lib.VI_RING_BENCH_MEMCPY, 1, 0, 0, ns)
        assert -errno.EINVAL == lib.vi_ring_bench_pair(out[0], lib.VI_RING_BENCH_BATCH, 1, 2**32 - 1, 0, ns)
    lib.vi_ring_bench_destroy(out[0])


def test_two_threads_on_one_cpu_arrive_too():
    """Waiting threads offer their CPU, so that one is enough."""
    out, ns = ffi.new("struct vi_ring_bench **"), ffi.new("uint64_t *")
    cpu = min(bench_ring._allowed_cpus())
    assert lib.vi_ring_bench_create(64, 16, out) == 0
    for contender in (
        lib.VI_RING_BENCH_LINUX,
        lib.VI_RING_BENCH_PACKET,
        lib.VI_RING_BENCH_BATCH,
        lib.VI_RING_BENCH_VIEW,
    ):
        assert lib.vi_ring_bench_pair(out[0], contender, 1000, cpu, cpu, ns) == 0
        assert ns[0] > 0
    lib.vi_ring_bench_destroy(out[0])
