"""The data plane under real threads, driven from Python: cffi releases the GIL, so they really overlap.

tests/c/test_stress.c does the same at speed and under the sanitizers; here the whole way is built as Python builds it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from time import monotonic

import pytest

from tests.rig import ENGINES, Channel, Rig
from vmbusirq._ffi import lib

DEADLINE_S = 60
MODES = {
    "isr": (lib.VI_CALL_ISR, lib.VI_CALLBACK_DRAIN),
    "batched": (lib.VI_CALL_BATCHED, lib.VI_CALLBACK_DRAIN),
    "direct": (lib.VI_CALL_DIRECT, lib.VI_CALLBACK_DRAIN),
    "napi": (lib.VI_CALL_ISR, lib.VI_CALLBACK_NAPI),
}


class Threads:
    """Threads that run until told to stop, and hand over what went wrong in them."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._errors: list[BaseException] = []
        self._forever: list[threading.Thread] = []

    def forever(self, body: Callable[[], object]) -> None:
        """Repeat ``body`` until the end of the test."""

        def loop() -> None:
            while not self.stop.is_set():
                body()

        self._forever.append(self._start(loop))

    def finish(self, *bodies: Callable[[], object]) -> None:
        """Run these at once, each in a thread of its own; then stop the others."""
        workers = [self._start(body) for body in bodies]
        for worker in workers:
            worker.join(DEADLINE_S)
        self.stop.set()
        for thread in (*workers, *self._forever):
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]

    def _start(self, body: Callable[[], object]) -> threading.Thread:
        def guarded() -> None:
            try:
                body()
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread


def send_all(rig: Rig, ch: Channel, packets: int, nudge: bool) -> None:
    """Write packets in bursts until they are in; a host that may be dropped nudges."""
    dice, until = random.Random(packets), monotonic() + DEADLINE_S
    while packets:
        sent = lib.vi_vsp_send(ch.vsp, min(packets, dice.randint(1, 40)), dice.randint(0, 200))
        assert sent >= 0
        packets -= sent
        if not sent:
            assert monotonic() < until, "nobody reads"
            if nudge:
                lib.vi_vsp_signal(ch.vsp)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", ["rfc", "legacy"])
def test_no_packet_is_lost_or_altered(engine: str, design: str) -> None:
    """Two vCPUs, a host, a control thread that moves every channel all the time: the checksums of both ends agree."""
    with Rig(engine, design=design, irqs=128) as rig:
        channels = [
            rig.channel(40 + i, mode=mode, callback=callback, ring=16384)
            for i, (mode, callback) in enumerate(MODES.values())
        ]
        dice = random.Random(1)

        def move() -> None:
            ch, cpu = dice.choice(channels), dice.randrange(2)
            assert 0 == lib.vi_channel_set_cpu(ch.c, cpu)
            assert 0 == lib.vi_vsp_set_target(ch.vsp, cpu)

        def host() -> None:
            for _ in range(5):
                for ch in channels:
                    send_all(rig, ch, 1000, nudge=engine == "linux")

        threads = Threads()
        threads.forever(lambda: rig.run(0))
        threads.forever(lambda: rig.run(1))
        threads.forever(move)
        threads.finish(host)
        for ch in channels:
            if engine == "linux":
                lib.vi_vsp_signal(ch.vsp)  # v6.10 may have dropped the last one: trap 27
            rig.settle()
            got, sent = rig.stats(ch), rig.sent(ch)
            assert 5000 == sent.packets == got.packets
            assert (sent.bytes, sent.checksum) == (got.bytes, got.checksum)
            assert 0 < got.interrupts <= sent.edges
        assert [] == rig.flags(0) + rig.flags(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_edge_is_one_count_while_nobody_interferes(engine: str) -> None:
    """Two hosts raise flags of two vCPUs that scan all the time: counts = edges, to the last one."""
    relids = range(1, 2000, 97)
    with Rig(engine, irqs=2100) as rig:
        channels = {relid: rig.channel(relid, cpu=relid % 2) for relid in relids}
        edges = dict.fromkeys(relids, 0)

        def host(cpu: int) -> None:
            mine = [relid for relid in relids if relid % 2 == cpu]
            dice = random.Random(cpu)
            for _ in range(10000):
                relid = dice.choice(mine)
                edges[relid] += rig.signal(relid, cpu)

        threads = Threads()
        threads.forever(lambda: rig.run(0))
        threads.forever(lambda: rig.run(1))
        threads.finish(lambda: host(0), lambda: host(1))
        rig.settle()
        assert edges == {relid: rig.cnt(ch.irq) for relid, ch in channels.items()}
        assert edges == {relid: int(ch.calls[0]) for relid, ch in channels.items()}
        assert sum(edges.values()) == rig.irqs_sum(0) + rig.irqs_sum(1)


def test_an_irq_can_be_freed_while_its_flag_rains() -> None:
    """free_irq() waits for the handler; what comes without an action is remembered and replays at the next request."""
    with Rig() as rig:
        ch = rig.channel(5)
        armed = True
        ran_unarmed: list[int] = []

        def handler(cpu: int) -> int:
            if not armed:
                ran_unarmed.append(cpu)
            return 1

        def control() -> None:
            nonlocal armed
            for _ in range(100):
                armed = True
                action = rig.request(ch.irq, handler, exact=False)
                rig.free(action)
                armed = False

        rig.free(rig.descs[ch.irq].actions[0])
        threads = Threads()
        threads.forever(lambda: rig.run(0))
        threads.forever(lambda: rig.signal(5))
        threads.finish(control)
        assert [] == ran_unarmed


def test_messages_of_two_hosts_arrive_once_each() -> None:
    """HvPostMessage on two threads at one slot: told to try again while it is full; every payload arrives whole."""
    with Rig() as rig:

        def post(host: int) -> None:
            for i in range(150):
                payload = bytes([host, i % 256]) * 100
                until = monotonic() + DEADLINE_S
                while lib.vi_synic_post(rig.m, 0, lib.VI_SINT_VMBUS, 1, payload, len(payload)):
                    assert monotonic() < until, "the slot stays full"

        threads = Threads()
        threads.forever(lambda: rig.run(0))
        threads.finish(lambda: post(0), lambda: post(1))
        rig.settle()
        got = [payload for _type, _size, payload in rig.messages]
        for host in (0, 1):
            assert [bytes([host, i % 256]) * 100 for i in range(150)] == [p for p in got if p[0] == host]
        assert 300 == len(got)
