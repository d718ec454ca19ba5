"""log: the guest's dmesg."""

from __future__ import annotations

import pytest

from vmbusirq.log import ENTRIES_MAX, Entry, Level, Log


@pytest.mark.parametrize(
    ("ticks", "stamp"),
    [
        (0, "[    0.000000]"),
        (9, "[    0.000000]"),
        (10, "[    0.000001]"),
        (51_234_569, "[    5.123456]"),
        (999_999_999_999, "[99999.999999]"),
        (1_000_000_000_000, "[100000.000000]"),
    ],
)
def test_lines_have_the_kernels_stamp(ticks, stamp):
    """kernel/printk/printk.c v6.10: seconds in 5, microseconds in 6, cut, not rounded; time is in 100 ns units."""
    assert f"{stamp} text" == str(Entry(ticks, Level.INFO, "text"))


def test_a_log_reads_like_dmesg():
    """Every line of a text is a line of the log, at the virtual time of its making."""
    now = [0]
    log = Log(lambda: now[0])
    assert "" == str(log)
    log.info("booted")
    now[0] = 15_000_000
    log.err("first\nsecond")
    assert "[    0.000000] booted\n[    1.500000] first\n[    1.500000] second\n" == str(log)
    assert (3, ["first", "second"]) == (len(log), log.texts(Level.ERR))


def test_once_is_once_per_key():
    """include/linux/once_lite.h v6.10: a place warns once, whatever it would say next."""
    log = Log()
    for key, text in [("a", "1"), ("a", "2"), ("b", "3")]:
        log.once(key, Level.WARNING, text)
    assert ["1", "3"] == log.texts()


def test_ratelimit_is_ten_in_five_seconds():
    """lib/ratelimit.c v6.10: ten, then silence; the next window says how many were held back."""
    now = [7]
    log = Log(lambda: now[0])
    for _ in range(13):
        log.ratelimited("place", Level.ERR, "text")
    now[0] += 50_000_000
    log.ratelimited("place", Level.ERR, "text")
    assert ["text"] * 10 == log.texts()
    now[0] += 1
    log.ratelimited("place", Level.ERR, "text")
    assert ["place: 4 callbacks suppressed", "text"] == log.texts()[10:]
    log.ratelimited("elsewhere", Level.ERR, "other")
    assert "other" == log.texts()[-1]


def test_the_oldest_lines_go_first():
    """A ring of 65 536 lines, and a count of what it dropped."""
    log = Log()
    for number in range(ENTRIES_MAX + 2):
        log.info(str(number))
    assert (ENTRIES_MAX, 2, "2") == (len(log), log.dropped, log.texts()[0])
