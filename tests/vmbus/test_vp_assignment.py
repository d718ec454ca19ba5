"""init_vp_index and the affinity cursor against their check values, and against a naive model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbusirq.vmbus.affinity import CpuPicker, VpAssignment


def assign_rfc_devices(
    nodes: list[int], housekeeping: int, nic_subs: int = 7, scsi_subs: int = 1
) -> tuple[list[int], list[int]]:
    """Offer storvsc1, storvsc0, netvsc, its sub-channels, then the storvsc sub-channels.

    Return targets and node masks.
    """
    state = VpAssignment(nodes, housekeeping)
    scsi1, scsi0, nic = ([state.assign(True, 0, ())] for _ in range(3))
    order = [scsi1[0], scsi0[0], nic[0]]
    for index in range(1, nic_subs + 1):
        nic.append(state.assign(True, index, nic))
        order.append(nic[-1])
    for device in (scsi1, scsi0):
        for index in range(1, scsi_subs + 1):
            device.append(state.assign(True, index, device))
            order.append(device[-1])
    return order, state.allocated


@pytest.mark.parametrize(
    ("nodes", "housekeeping", "targets", "allocated"),
    [
        ([0xFF], 0xFF, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], [0x0F]),
        ([0x0F, 0xF0], 0xFF, [0, 4, 1, 5, 2, 6, 3, 7, 0, 4, 1, 5], [0x03, 0x30]),
        ([0xFF], 0x03, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0], [0x01]),
        ([0, 0xFF], 0xFF, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3], [0, 0x0F]),
    ],
    ids=["8 cpus, 1 node", "8 cpus, 2 nodes", "housekeeping 0-1", "node 0 empty"],
)
def test_targets_of_the_rfc_devices(
    nodes: list[int], housekeeping: int, targets: list[int], allocated: list[int]
) -> None:
    """drivers/hv/channel_mgmt.c, init_vp_index, v6.10: the check values of vmbus.md 4.1."""
    assert (targets, allocated) == assign_rfc_devices(nodes, housekeeping)


def test_two_small_nodes() -> None:
    """4 CPUs, 2 nodes, NIC primary and 3 sub-channels, then a SCSI primary: 0, 2, 1, 3, then 0."""
    state = VpAssignment([0b0011, 0b1100], 0b1111)
    nic = [state.assign(True, 0, ())]
    for index in range(1, 4):
        nic.append(state.assign(True, index, nic))

    assert [0, 2, 1, 3] == nic
    assert 0 == state.assign(True, 0, ())
    assert [0b0001, 0b1100] == state.allocated


def test_slow_devices_go_to_the_connect_cpu_and_leave_no_mark() -> None:
    """Only performance channels are spread; the others share VMBUS_CONNECT_CPU."""
    state = VpAssignment([0xFF], 0xFF)

    assert [0, 0] == [state.assign(False, 0, ()), state.assign(False, 0, ())]
    assert [0] == state.allocated


def test_without_housekeeping_cpus_everything_is_on_the_connect_cpu() -> None:
    """isolcpus=managed_irq with every CPU: the kernel falls back to CPU 0 instead of searching for ever."""
    state = VpAssignment([0xFF], 0)

    assert [0, 0, 0] == [state.assign(True, index, [0] * index) for index in range(3)]


@given(
    cpus=st.integers(1, 70),
    channels=st.integers(1, 80),
    split=st.integers(0, 70),
)
def test_sub_channels_share_a_cpu_only_when_there_are_more_channels_than_cpus(
    cpus: int, channels: int, split: int
) -> None:
    """A sub-channel takes a CPU that its device does not use, as long as there is one."""
    split %= cpus
    everybody = (1 << cpus) - 1
    low = (1 << split) - 1
    nodes = [low, everybody & ~low] if split else [everybody]
    state = VpAssignment(nodes, everybody)
    used: list[int] = []
    for index in range(channels):
        used.append(state.assign(True, index, used))

    assert all(0 <= cpu < cpus for cpu in used)
    if channels <= cpus and len(nodes) == 1:
        assert len(set(used)) == channels


@given(st.lists(st.integers(1, (1 << 70) - 1), max_size=30))
def test_cursor_takes_the_next_cpu_of_the_mask_and_wraps(masks: list[int]) -> None:
    """RFC patch 10: strictly after the last one chosen for any channel, else the lowest of the mask."""
    picker, last = CpuPicker(), 0
    for mask in masks:
        cpus = [cpu for cpu in range(70) if mask >> cpu & 1]
        last = next((cpu for cpu in cpus if cpu > last), cpus[0])
        assert last == picker.pick(mask)


def test_first_pick_of_cpus_0_and_1_is_1() -> None:
    """The cursor starts at 0, and next means strictly greater."""
    assert 1 == CpuPicker().pick(0b11)
