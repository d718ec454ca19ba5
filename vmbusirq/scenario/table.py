"""A TOML table that is read strictly: what is unknown, of a wrong type or out of range is an error with its place."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

__all__ = ["COUNT_MAX", "ScenarioError", "Table"]

T = TypeVar("T")
TICKS_PER_S: Final = 10_000_000
COUNT_MAX: Final = 0xFFFF_FFFF
_TOML_WORDS: Final[dict[type, str]] = {
    str: "a string",
    int: "an integer",
    float: "a float",
    bool: "a boolean",
    list: "an array",
    dict: "a table",
}


class ScenarioError(ValueError):
    """A scenario that cannot be used; the message names the file, the key and what is allowed."""


class Table:
    """A TOML table that knows where it is and complains about what nobody asked for."""

    def __init__(self, where: str, data: Mapping[str, Any]) -> None:
        self.where = where
        self._data = dict(data)
        self._asked: list[str] = []

    def fail(self, key: str, what: str) -> ScenarioError:
        """Return the error that names a key's place."""
        return ScenarioError(f"{self.where}{key}: {what}")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Take a value of one type; without a default it must be there."""
        self._asked.append(key)
        if key not in self._data:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        value = self._data.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fail(key, f"wants {_TOML_WORDS[kind]}, not {_TOML_WORDS.get(type(value), 'a date or time')}")
        return value

    def name(self, key: str, default: str | None = None) -> str:
        """Take one line of printable characters."""
        value = self.take(key, str, default)
        if not value or not value.isprintable():
            raise self.fail(key, f"{value!r} is no name: one line of printable characters")
        return value

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Take an integer of a range."""
        value = self.take(key, int, default)
        if not low <= value <= high:
            raise self.fail(key, f"{value} is out of range; {low} to {high} is allowed")
        return value

    def one_of(self, key: str, choices: Mapping[str, Any] | tuple[str, ...], default: str | None = None) -> str:
        """Take one of several strings."""
        value = self.take(key, str, default)
        if value not in choices:
            raise self.fail(key, f"no {value!r}; choose from {', '.join(choices)}")
        return value

    def ticks(self, key: str, most_s: int) -> int:
        """Take seconds, whole or with a fraction, and return ticks of 100 ns."""
        self._asked.append(key)
        value = self._data.pop(key, None)
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"wants a number of seconds, not {_TOML_WORDS.get(type(value), 'a date or time')}")
        if not 0 <= value <= most_s:  # nor is nan
            raise self.fail(key, f"{value} is out of range; 0 to {most_s} is allowed: the scenario's duration_s")
        return round(value * TICKS_PER_S)

    def given(self, key: str) -> bool:
        """Whether the table has a key that nobody has taken yet."""
        return key in self._data

    def tables(self, key: str) -> list[Table]:
        """Take an array of tables."""
        rows = self.take(key, list, [])
        if not all(isinstance(row, dict) for row in rows):
            raise self.fail(key, f"wants [[{key}]] tables")
        return [Table(f"{self.where}{key}[{i}].", row) for i, row in enumerate(rows)]

    def table(self, key: str) -> Table:
        """Take a table, empty if there is none."""
        return Table(f"{self.where}{key}.", self.take(key, dict, {}))

    def rest(self) -> dict[str, Any]:
        """Take all that is left."""
        rest, self._data = self._data, {}
        return rest

    def counts(self, key: str, value: Any, possible: int) -> tuple[int, ...]:
        """Return a list of counts, filled up with zeros to one per CPU."""
        if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= COUNT_MAX for n in value):
            raise self.fail(key, "wants a list of counts, 0 to 4294967295")
        if len(value) > possible:
            raise self.fail(key, f"has {len(value)} numbers for {possible} CPUs")
        return tuple(value) + (0,) * (possible - len(value))

    def done(self) -> None:
        """Refuse what nobody has taken."""
        for key in self._data:
            near = get_close_matches(key, self._asked, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(self._asked)}"
            raise self.fail(key, f"unknown key{hint}")
