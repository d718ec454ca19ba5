"""A slow second reading of the kernel's mask and list parsers: byte by byte, with sets, nothing of the package in it.

Written from the rules of lib/bitmap-str.c (v6.10) as a transcript of what the kernel's pointers do. An errno comes back
as a number, a mask as a set of CPUs.
"""

from __future__ import annotations

import errno

BLANKS = {0x20, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0xA0, ord(",")}


def parse_mask(text: bytes, nr_cpu_ids: int) -> set[int] | int:
    """Return the CPUs that a mask text names, or the errno."""
    line = []
    for byte in text:
        if byte in (0, 0x0A):
            break
        line.append(byte)
    chunks_left = -(-nr_cpu_ids // 32)
    base = 0
    cpus: set[int] = set()
    while True:
        while line and line[-1] in BLANKS:
            line.pop()
        if not line:
            break
        if chunks_left == 0:
            return errno.EOVERFLOW
        chunks_left -= 1
        for nibble in range(8):
            digit = "0123456789abcdef".find(chr(line.pop()).lower()) if line else -1
            if digit < 0:
                return errno.EINVAL
            cpus |= {base + nibble * 4 + bit for bit in range(4) if digit >> bit & 1}
            if not line or line[-1] in BLANKS:
                break
        else:
            if chr(line.pop()).lower() in "0123456789abcdef":
                return errno.EOVERFLOW
        base += 32
    return errno.EOVERFLOW if any(cpu >= nr_cpu_ids for cpu in cpus) else cpus


class _Refused(Exception):
    pass


class _ListReader:
    def __init__(self, text: bytes, nr_cpu_ids: int) -> None:
        self.bytes = [*text, 0]
        self.at = 0
        self.nr_cpu_ids = nr_cpu_ids

    @property
    def byte(self) -> int:
        return self.bytes[self.at]

    def region_ends(self) -> bool:
        return self.byte in BLANKS or self.byte == 0

    def take(self, byte: str) -> None:
        if self.byte != ord(byte):
            raise _Refused(errno.EINVAL)
        self.at += 1

    def number(self) -> int:
        if self.byte == ord("N"):
            self.at += 1
            return self.nr_cpu_ids - 1
        value = None
        while 0x30 <= self.byte <= 0x39:
            value = (value or 0) * 10 + self.byte - 0x30
            self.at += 1
        if value is None:
            raise _Refused(errno.EINVAL)
        if value >= 2**32:
            raise _Refused(errno.EOVERFLOW)
        return value

    def region(self) -> tuple[int, int, int, int, bool]:
        """start, end, used, group, and whether the text goes on behind it."""
        if bytes(self.bytes[self.at : self.at + 3]).lower() == b"all":
            self.at += 3
            start, end = 0, self.nr_cpu_ids - 1
        else:
            start = end = self.number()
            if not self.region_ends():
                self.take("-")
                end = self.number()
            else:
                return start, end, (end + 1) % 2**32, (end + 1) % 2**32, self.byte not in (0, 0x0A)
        if self.region_ends():
            return start, end, (end + 1) % 2**32, (end + 1) % 2**32, self.byte not in (0, 0x0A)
        self.take(":")
        used = self.number()
        self.take("/")
        return start, end, used, self.number(), True


def parse_list(text: bytes, nr_cpu_ids: int) -> set[int] | int:
    """Return the CPUs that a list text names, or the errno."""
    reader = _ListReader(text.split(b"\0")[0], nr_cpu_ids)
    cpus: set[int] = set()
    more = True
    try:
        while more:
            while reader.byte in BLANKS:
                reader.at += 1
            if reader.byte == 0:
                break
            start, end, used, group, more = reader.region()
            if start > end or group == 0 or used > group:
                raise _Refused(errno.EINVAL)
            if end >= nr_cpu_ids:
                raise _Refused(errno.ERANGE)
            while start <= end:
                cpus |= set(range(start, start + min(used, end - start + 1)))
                start = (start + group) % 2**32
    except _Refused as refused:
        return int(refused.args[0])
    return cpus


def mask_text(cpus: set[int], nr_cpu_ids: int) -> str:
    """Return ``%*pb``: one hex digit for every started group of 4 CPUs, a comma before every multiple of 32."""
    digits = ""
    for low in range(0, nr_cpu_ids, 4):
        if low and low % 32 == 0:
            digits = "," + digits
        digits = f"{sum(1 << i for i in range(4) if low + i in cpus):x}" + digits
    return digits


def list_text(cpus: set[int]) -> str:
    """Return ``%*pbl``: runs of consecutive CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
