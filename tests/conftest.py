"""What every test may use: one seed, golden files, and hypothesis without surprises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDENS = Path(__file__).parent / "goldens"

# how fast a busy machine draws examples is no property of the code
_BY_THE_CLOCK = [HealthCheck.too_slow]
settings.register_profile(
    "default", derandomize=True, deadline=None, database=None, suppress_health_check=_BY_THE_CLOCK
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--seed N`` for every test that draws numbers; ``--update-golden`` rewrites the files in tests/goldens."""
    parser.addoption("--seed", type=int, default=0, help="seed of every test that draws numbers (default 0)")
    parser.addoption("--update-golden", action="store_true", help="write tests/goldens anew; review the diff like code")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of this run; a failing test's report names it."""
    value: int = request.config.getoption("--seed")
    request.node.add_report_section("call", "seed", f"--seed {value}")
    return value


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, bytes], None]:
    """Compare bytes with a file of tests/goldens, or write it with ``--update-golden``.

    The bytes come from the reference twin, never from the code under test and never from a mail.
    """

    def check(name: str, data: bytes) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-golden"):
            path.write_bytes(data)
        assert path.read_bytes() == data, f"{path.name} differs; if that is right, run pytest --update-golden"

    return check


@pytest.fixture
def sample() -> bytes:
    """Return the /proc/interrupts of a real machine: x86, two CPUs, v6.18, no Hyper-V."""
    return (Path(__file__).parent / "samples" / "proc_interrupts_x86_2cpu.txt").read_bytes()
