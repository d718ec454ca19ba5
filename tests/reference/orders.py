"""An independent model of races: small programs, the kernel's rules of who may run, and all orders by brute force.

A program is a few actors, each with a list of operations on counters and locks. Nothing here is shared with the
explorer: who may go follows from the kernel's rules (Documentation/kernel-hacking/locking.rst, v6.10) and not from its
steps, and which orders are the same is found by playing both orders of every pair of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

Op = tuple[str, ...]
Order = tuple[str, ...]
State = tuple[tuple[int, ...], tuple[int, ...]]  # the counters; where each actor stands

REST, OVER = -1, -2
SPINS = {"raw": True, "spin": True, "mutex": False, "mutex_shared": False, "stop": True}
RANK = {"task": 0, "softirq": 1, "hardirq": 2}


@dataclass(frozen=True)
class Doer:
    """An actor.

    Attributes:
        ops: ``("add", v)``, ``("set", v, text of a number)``, ``("copy", to, from)``, ``("lock", l)``,
            ``("unlock", l)``, ``("wait", v)`` until v is not 0.
        trigger: it begins while that counter is not 0, which its beginning does not change; empty: it begins once.
    """

    name: str
    ops: tuple[Op, ...]
    cpu: int | None = None
    context: str = "task"
    trigger: str = ""
    whole: bool = False
    last: bool = False


def of_op(op: Op) -> frozenset[str]:
    """Return the counters that an operation reads or writes."""
    if op[0] in ("lock", "unlock"):
        return frozenset()
    return frozenset(op[1:2] if op[0] == "set" else op[1:])


@dataclass(frozen=True)
class Program:
    """Actors, and the counters they share."""

    doers: tuple[Doer, ...]
    counters: tuple[tuple[str, int], ...]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: place for place, (name, _) in enumerate(self.counters)}

    @cached_property
    def _number(self) -> dict[str, int]:
        return {doer.name: number for number, doer in enumerate(self.doers)}

    @property
    def start(self) -> State:
        """Everybody at rest."""
        return tuple(value for _, value in self.counters), (REST,) * len(self.doers)

    # ---- who may go

    def held(self, state: State, number: int) -> list[str]:
        """Return the locks that an actor holds."""
        locks: list[str] = []
        for op in self.doers[number].ops[: max(state[1][number], 0)]:
            if op[0] == "lock":
                locks.append(op[1])
            elif op[0] == "unlock":
                locks.remove(op[1])
        return locks

    def _next(self, state: State, number: int) -> Op:
        at = state[1][number]
        return self.doers[number].ops[at] if at >= 0 else ("begin",)

    def _has_lock(self, state: State, number: int, lock: str) -> bool:
        """Whether somebody holds what excludes this lock."""
        excludes = {"mutex": ("mutex", "mutex_shared"), "mutex_shared": ("mutex",)}.get(lock, (lock,))
        return any(held in excludes for held in self.held(state, number))

    def _has_cpu(self, state: State, number: int, context: str) -> bool:
        """Whether an actor that is under way lets nobody of such a context onto its CPU."""
        doer, locks = self.doers[number], self.held(state, number)
        spins = any(SPINS[lock] for lock in locks)
        if doer.context == "task" and not spins and self._next(state, number)[0] == "wait":
            return False  # it sleeps
        if doer.context == "hardirq" or "raw" in locks or "stop" in locks:
            return True  # interrupts are off
        if RANK[context] > RANK[doer.context]:
            return False
        return RANK[context] < RANK[doer.context] or doer.context != "task" or spins

    def _atomic(self, state: State, number: int) -> bool:
        return self.doers[number].context != "task" or any(SPINS[lock] for lock in self.held(state, number))

    def _may_go(self, state: State, number: int) -> bool:
        doer, at = self.doers[number], state[1][number]
        under_way = [other for other, place in enumerate(state[1]) if other != number and place >= 0]
        if at == OVER or (at == REST and doer.trigger and not state[0][self._place[doer.trigger]]):
            return False
        op = self._next(state, number)
        if op[0] == "wait" and not state[0][self._place[op[1]]]:
            return False
        if op[0] == "lock" and any(self._has_lock(state, other, op[1]) for other in (*under_way, number)):
            return False
        on_cpus = [other for other in under_way if self.doers[other].cpu is not None]
        if op == ("lock", "stop") and any(self._atomic(state, other) for other in on_cpus):
            return False
        if doer.cpu is None:
            return True
        if any("stop" in self.held(state, other) for other in under_way):
            return False
        return not any(self._has_cpu(state, o, doer.context) for o in on_cpus if self.doers[o].cpu == doer.cpu)

    def able(self, state: State) -> list[str]:
        """Return who can go."""
        able = [doer for number, doer in enumerate(self.doers) if self._may_go(state, number)]
        return [doer.name for doer in able if not doer.last] or [doer.name for doer in able]

    # ---- what comes of it

    def after(self, state: State, name: str) -> State:
        """Return the state after a step of one actor."""
        number = self._number[name]
        doer, counters, at = self.doers[number], list(state[0]), state[1][number]
        for op in doer.ops if doer.whole else doer.ops[max(at, 0) : at + 1]:
            self._do(op, counters)
        at = len(doer.ops) if doer.whole else at + 1
        if at == len(doer.ops):
            at = REST if doer.trigger else OVER
        places = list(state[1])
        places[number] = at
        return tuple(counters), tuple(places)

    def _do(self, op: Op, counters: list[int]) -> None:
        place = self._place
        if op[0] == "set":
            counters[place[op[1]]] = int(op[2])
        elif op[0] == "add":
            counters[place[op[1]]] += 1
        elif op[0] == "copy":
            counters[place[op[1]]] = counters[place[op[2]]]

    # ---- all orders

    def orders(self, most: int) -> dict[Order, tuple[State, ...]] | None:
        """Return all complete orders, each with the states it goes through; None: there are more than ``most``."""
        found: dict[Order, tuple[State, ...]] = {}
        for order, states in self._walk((), (self.start,)):
            found[order] = states
            if len(found) > most:
                return None
        return found

    def _walk(self, order: Order, states: tuple[State, ...]) -> Iterator[tuple[Order, tuple[State, ...]]]:
        able = self.able(states[-1])
        if not able or len(order) > 40:
            yield order, states
        for name in able:
            yield from self._walk((*order, name), (*states, self.after(states[-1], name)))

    def preemptions(self, order: Order, states: tuple[State, ...]) -> int:
        """Return how often another actor went although the one before could have gone on."""
        pairs = zip(order, order[1:], states[1:], strict=False)
        return sum(before != name and before in self.able(state) for before, name, state in pairs)

    # ---- which orders are the same

    def commute(self, state: State, first: str, second: str) -> bool:
        """Whether two that can go do the same in both orders, and neither keeps the other from going: by trying."""
        one, other = self.after(state, first), self.after(state, second)
        if second not in self.able(one) or first not in self.able(other):
            return False
        return self.after(one, second) == self.after(other, first)

    def independent(self, state: State, first: str, second: str) -> bool:
        """Whether what two that can go touch says that they commute: counters, locks, and their CPU."""
        a, b = (self.doers[self._number[name]] for name in (first, second))
        one, other = (self._next(state, self._number[doer.name]) for doer in (a, b))
        if a.last or b.last or ("lock", "stop") in (one, other) or self._touched(a, one) & self._touched(b, other):
            return False
        return a.cpu is None or a.cpu != b.cpu or not (self._may_keep_off(a, one) or self._may_keep_off(b, other))

    @staticmethod
    def _touched(doer: Doer, op: Op) -> frozenset[str]:
        if op == ("begin",):
            own = frozenset({doer.trigger} - {""})
            return own.union(*map(of_op, doer.ops)) if doer.whole else own
        if op[0] == "lock":
            return frozenset({"lock of " + op[1].removesuffix("_shared")})
        return of_op(op)

    @staticmethod
    def _may_keep_off(doer: Doer, op: Op) -> bool:
        return not doer.whole and (doer.context != "task" or (op[0] == "lock" and SPINS[op[1]]))


def classes(program: Program, orders: dict[Order, tuple[State, ...]], *, by_trying: bool) -> dict[Order, Order]:
    """Return the class of each order: those that come of one another by swapping neighbours that commute.

    Args:
        program: whose.
        orders: all of them.
        by_trying: swap whatever commutes in that very state; else only what touches nothing in common.
    """
    same = program.commute if by_trying else program.independent
    chief = {order: order for order in orders}

    def find(order: Order) -> Order:
        while chief[order] != order:
            chief[order] = chief[chief[order]]
            order = chief[order]
        return order

    for order, states in orders.items():
        for at, (first, second) in enumerate(zip(order, order[1:], strict=False)):
            if first != second and second in program.able(states[at]) and same(states[at], first, second):
                swapped = (*order[:at], second, first, *order[at + 2 :])
                if swapped in orders:
                    chief[find(order)] = find(swapped)
    return {order: find(order) for order in orders}
