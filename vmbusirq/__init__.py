"""vmbusirq: an emulated Linux IRQ subsystem with an irqdomain per VMBus relid; a wind tunnel for interrupt designs.

>>> from vmbusirq import Machine
>>> m = Machine.load("rfc-gen2-8vcpu")
>>> m.run()
>>> print(m.fs.read("/proc/interrupts").decode(), end="")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbusirq.designs import DESIGNS, Design
    from vmbusirq.errors import IrqError
    from vmbusirq.fs.parse import ParseError, parse_interrupts
    from vmbusirq.generations import GENERATIONS, Generation
    from vmbusirq.machine import Machine
    from vmbusirq.scenario.schema import Scenario, ScenarioError, load_scenario

__all__ = [
    "DESIGNS",
    "GENERATIONS",
    "Design",
    "Generation",
    "IrqError",
    "Machine",
    "ParseError",
    "Scenario",
    "ScenarioError",
    "load_scenario",
    "parse_interrupts",
]

_HOMES = {
    "DESIGNS": "designs",
    "Design": "designs",
    "GENERATIONS": "generations",
    "Generation": "generations",
    "IrqError": "errors",
    "Machine": "machine",
    "ParseError": "fs.parse",
    "Scenario": "scenario.schema",
    "ScenarioError": "scenario.schema",
    "load_scenario": "scenario.schema",
    "parse_interrupts": "fs.parse",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for.

    The command line starts without the rooms it does not need.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'vmbusirq' has no attribute {name!r}")
    return getattr(import_module(f"vmbusirq.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
