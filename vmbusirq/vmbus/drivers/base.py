"""stub"""

from __future__ import annotations
from typing import Any
from vmbusirq.steps import Steps


class Driver:
    name = ""

    def __init__(self, bus: Any) -> None:
        self.bus = bus

    def probe(self, device: Any) -> Steps[None]:
        yield from self.bus.open_steps(device.primary)

    def remove(self, device: Any) -> Steps[None]:
        yield from self.bus.close_steps(device.primary)

    def suspend(self, device: Any) -> Steps[None]:
        yield from self.bus.close_steps(device.primary)

    def resume(self, device: Any) -> Steps[None]:
        yield from self.bus.open_steps(device.primary)

    def sub_channel(self, channel: Any) -> Steps[None]:
        yield from self.bus.open_steps(channel)
