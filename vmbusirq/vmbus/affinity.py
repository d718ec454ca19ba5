"""Which CPU a channel interrupts: at offer time (init_vp_index), and when its IRQ's affinity is set.

See RFC patches 10 and 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

__all__ = ["CONNECT_CPU", "CpuPicker", "VpAssignment"]

CONNECT_CPU: Final = 0  # VMBUS_CONNECT_CPU: control messages and slow devices


class VpAssignment:
    """The state behind init_vp_index (drivers/hv/channel_mgmt.c, v6.10): who has which CPU of which NUMA node.

    Args:
        nodes: mask of the CPUs of each node.
        housekeeping: CPUs that may be chosen, all possible ones unless isolcpus=managed_irq names some.
        online: says which CPUs are online, all of them if it is not given.
    """

    def __init__(self, nodes: Sequence[int], housekeeping: int, online: Callable[[], int] | None = None) -> None:
        self._possible_nodes = tuple(nodes)
        self._housekeeping = housekeeping
        self._online = online
        self._next_node = 0
        self.allocated = [0] * len(nodes)

    def assign(self, perf: bool, sub_channel_index: int, device_cpus: Iterable[int]) -> int:
        """Choose the CPU of a new channel.

        Args:
            perf: the device is a performance one (network, storage): spread it.
            sub_channel_index: 0 for a primary channel.
            device_cpus: targets of the device's other channels.
        """
        nodes = self._nodes
        if not perf or not any(node & self._housekeeping for node in nodes):
            if perf:
                self.mark(CONNECT_CPU)
            return CONNECT_CPU
        used = set(device_cpus)
        online = sum(node.bit_count() for node in nodes)
        for attempt in range(1, online + 2):
            node = self._take_node()
            cpu = self._lowest_available(node)
            self.allocated[node] |= 1 << cpu
            if sub_channel_index >= online or attempt > online or cpu not in used:
                break
        return cpu

    def mark(self, cpu: int) -> None:
        """Count ``cpu`` as given away (hv_set_allocated_cpu)."""
        self.allocated[self._node_of(cpu)] |= 1 << cpu

    def unmark(self, cpu: int) -> None:
        """Give ``cpu`` back; the caller knows that no other performance channel is there (hv_clear_allocated_cpu)."""
        self.allocated[self._node_of(cpu)] &= ~(1 << cpu)

    @property
    def _nodes(self) -> tuple[int, ...]:
        """The online CPUs of each node (cpumask_of_node)."""
        if self._online is None:
            return self._possible_nodes
        online = self._online()
        return tuple(node & online for node in self._possible_nodes)

    def _node_of(self, cpu: int) -> int:
        return next((i for i, node in enumerate(self._possible_nodes) if node >> cpu & 1), 0)

    def _take_node(self) -> int:
        nodes = self._nodes
        while True:
            node = self._next_node
            self._next_node = (self._next_node + 1) % len(nodes)
            if nodes[node] & self._housekeeping:
                return node

    def _lowest_available(self, node: int) -> int:
        usable = self._nodes[node] & self._housekeeping
        available = usable & ~self.allocated[node]
        if not available:
            self.allocated[node] = 0
            available = usable
        return (available & -available).bit_length() - 1


class CpuPicker:
    """The static cursor of vmbus_irq_set_affinity: one for all channels of a machine (RFC patch 10)."""

    def __init__(self) -> None:
        self._cursor = 0

    def pick(self, mask: int) -> int:
        """Return the next CPU of a non-empty mask strictly after the last one chosen, cyclically, and remember it."""
        above = mask >> (self._cursor + 1) << (self._cursor + 1)
        chosen = above or mask
        self._cursor = (chosen & -chosen).bit_length() - 1
        return self._cursor
