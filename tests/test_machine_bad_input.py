"""Bad input to a machine: an errno and a sentence, never a crash or a hang, and nothing lost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from vmbusirq import IrqError, Machine
from vmbusirq.host.stats import Traffic
from vmbusirq.scenario.schema import parse_scenario


def driven(**numbers: int) -> object:
    """Drive one heartbeat channel with a line of bulk traffic."""
    machine = Machine(2)
    machine.attach("heartbeat", 5)
    return machine.host.drive([Traffic(**{"relid": 5, "interrupts": 1} | numbers)], 0)


def test_clock_that_refused_goes_on_as_before() -> None:
    """An error loses nothing."""
    machine = Machine(2)
    machine.clock.advance(5)
    with pytest.raises(IrqError):
        machine.clock.advance(10**30)
    machine.clock.advance(5)

    assert 10 == machine.clock.now


@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("payload", [65, 72, 76, 512, 5000, 16384, 100_000])
def test_packet_larger_than_the_drivers_buffer_loses_the_rest_of_the_ring_and_hangs_nothing(
    payload: int, engine: str
) -> None:
    """Linux cuts the packet and reads on in the middle of nowhere; here the reader drops what is there and says so."""
    machine = Machine(1, engine=engine)
    channel = machine.attach("scsi", 5, scsi_host=0)
    machine.host.send(5, 1, payload)
    machine.settle()
    assert 1 == channel.stats.resyncs
    before = channel.stats.packets
    machine.host.send(5, 3, 64)
    machine.settle()

    assert 3 == channel.stats.packets - before


def test_platform_interrupts_are_raised_in_bulk() -> None:
    """A million interrupts of an IO-APIC line take no time worth a progress bar."""
    text = '[cpus]\npossible = 2\n[[irq]]\nirq = 4\nname = "ttyS0"\nhwirq = 4\nflow = "edge"\ncounts = [0, 1000000]\n'
    machine = Machine.load(parse_scenario(text, "bulk"))
    machine.run()

    assert [0, 1_000_000] == machine.irq.counts[4].tolist()


def test_scenario_may_be_a_path(tmp_path: Path) -> None:
    """os.PathLike, as everywhere else in Python."""
    path = tmp_path / "mine.toml"
    path.write_text("[cpus]\npossible = 3\n")

    assert 3 == Machine.load(path).core.nr_cpus
    with pytest.raises(TypeError):
        Machine.load(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "number", "says"),
    [
        (lambda: Machine(0), errno.EINVAL, "0 CPUs; 1 to 2048"),
        (lambda: Machine(-1), errno.EINVAL, "-1 CPUs"),
        (lambda: Machine(1.5), errno.EINVAL, "1.5 CPUs"),  # type: ignore[arg-type]
        (lambda: Machine(10**30), errno.EINVAL, "1 to 2048"),
        (lambda: Machine(2).clock.advance(10**30), errno.EINVAL, "below 2**63"),
        (lambda: Machine(2).clock.advance(1.5), errno.EINVAL, "whole number"),  # type: ignore[arg-type]
        (lambda: Machine(2, seed=1 << 64), errno.EINVAL, "below 2**64"),
        (lambda: Machine(2, seed=-1), errno.EINVAL, "below 2**64"),
        (lambda: Machine(2).irq.generic_handle_irq(-1, 0), errno.EINVAL, "no such irq"),
        (lambda: Machine(2).irq.generic_handle_irq(24, -1), errno.EINVAL, "no cpu -1"),
        (lambda: driven(packets=0), errno.EINVAL, "a burst has 1 to"),
        (lambda: driven(interrupts=-1), errno.EINVAL, "none may be negative"),
        (lambda: driven(packets=1 << 32), errno.EINVAL, "a burst has 1 to"),
        (lambda: driven(payload=20000), errno.EMSGSIZE, "channel"),
        (lambda: Machine(2049), errno.EINVAL, "2048"),
        (lambda: Machine(design="rcf"), errno.EINVAL, "rfc"),
        (lambda: Machine(generation="v9"), errno.EINVAL, "v6.10"),
        (lambda: Machine(engine="slow"), errno.EINVAL, "linux"),
        (lambda: Machine(simd="mmx"), errno.EINVAL, "avx2"),
        (lambda: Machine(arch="vax"), errno.EINVAL, "arm64"),
        (lambda: Machine(2).host.send(5), errno.ENOENT, "no open channel 5"),
        (lambda: Machine(2).host.send(2048), errno.ENOENT, "1 to 2047"),
        (lambda: Machine(2).detach(5), errno.ENOENT, "channel 5"),
        (lambda: Machine(2).attach("toaster", 5), errno.EINVAL, "heartbeat"),
        (lambda: Machine(2).attach("scsi", 5, scsi_host=-4), errno.EINVAL, "0 to 65535"),
        (lambda: Machine(2).attach("scsi", 5, sub=-1), errno.EINVAL, "sub-channel -1"),
        (lambda: Machine(2).attach("scsi", 5, device="a\nb"), errno.EINVAL, "printable"),
        (lambda: Machine(2).attach("kvp", 5, device="kvp-4", sub=1), errno.EINVAL, "one channel"),
        (lambda: Machine(2).attach("scsi", 1.5), errno.EINVAL, "1 to 2047"),  # type: ignore[arg-type]
        (lambda: Machine(2).attach("avma1", 5), errno.EIO, "binds no device of class avma1"),
        (lambda: Machine(2).vmbus.panic(2), errno.EINVAL, "0 to 1"),
        (lambda: Machine(2).vmbus.panic(-1), errno.EINVAL, "0 to 1"),
        (lambda: Machine(2).synic.signal(2, 5), errno.EINVAL, "0 to 1"),
        (lambda: Machine(2).synic.signal(0, 2048), errno.EINVAL, "2047"),
        (lambda: Machine(2).host.post_message(bytes(241)), errno.EMSGSIZE, "240"),
        (lambda: Machine(2).clock.advance(-1), errno.EINVAL, "back"),
    ],
)
def test_bad_input_is_an_errno_and_a_sentence(make: Callable[[], object], number: int, says: str) -> None:
    """Say what was asked, what is true and what to do; never a crash."""
    with pytest.raises(IrqError) as error:
        make()
    assert number == error.value.errno
    assert says in str(error.value)
    assert errno.errorcode[number] in str(error.value)


def test_an_offer_that_comes_to_nothing_is_taken_back() -> None:
    """The host keeps no device that the guest has not taken up, and says what was wrong."""
    machine = Machine(2)
    for _ in range(2):
        with pytest.raises(IrqError, match="avma1"):
            machine.attach("avma1")
    assert (0, {}) == (len(machine.host.devices), dict(machine.vmbus.channels))


def test_devices_without_a_name_or_a_relid_are_numbered() -> None:
    """Each gets the lowest relid that is free; two of a class do not get in each other's way."""
    machine = Machine(2)
    assert [1, 2, 3] == [machine.attach(kind).relid for kind in ("keyboard", "keyboard", "mouse")]
    assert ["keyboard-1", "keyboard-2", "mouse-1"] == [device.name for device in machine.host.devices]


def test_a_number_is_no_data_to_write() -> None:
    """bytes(3) would be three zero bytes."""
    with pytest.raises(TypeError):
        Machine(2).fs.write("/proc/irq/default_smp_affinity", 3)  # type: ignore[arg-type]
