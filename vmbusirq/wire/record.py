"""What the payloads of device protocols have in common: fixed fields in order, packed without gaps, little-endian."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from vmbusirq.errors import IrqError

__all__ = ["PayloadError", "Record"]


class PayloadError(ValueError):
    """Bytes from the other end that are no such record; who catches it logs it and drops the packet."""


@dataclass(frozen=True, slots=True)
class Record:
    """A value whose fields lie in memory in the order of their declaration, as ``layout`` says.

    Whatever follows the record is ignored: a ring pads payloads with zeroes to a multiple of 8.
    """

    layout: ClassVar[struct.Struct]

    @classmethod
    def size(cls) -> int:
        """Return the bytes the record takes."""
        return cls.layout.size

    def to_bytes(self) -> bytes:
        """Return the record as it lies in memory. EINVAL: a value does not fit its field."""
        values = [getattr(self, item.name) for item in fields(self)]
        try:
            return self.layout.pack(*values)
        except struct.error as error:
            raise IrqError(errno.EINVAL, f"{type(self).__name__}{tuple(values)}: {error} (EINVAL)") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the record at the beginning of ``data``.

        Raises:
            PayloadError: fewer bytes than the record has, or values that no such record has.
        """
        if len(data) < cls.layout.size:
            raise PayloadError(f"{cls.__name__}: {len(data)} bytes, it has {cls.layout.size}")
        record = cls._of(cls.layout.unpack_from(data))
        record.check()
        return record

    @classmethod
    def _of(cls, values: tuple[Any, ...]) -> Self:
        return cls(*values)

    def check(self) -> None:
        """Raise PayloadError if the values, each legal by itself, make no sense together."""
