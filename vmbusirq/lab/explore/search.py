"""Orders of a race: all of them, or some, and the shortest bad one.

Depth first over recorded choices: each order is played from the beginning, along the choices made so far, and then on
by the first choice that is left. Sleep sets leave out orders that differ from one already played only in steps that
touch nothing in common (Godefroid, Partial-Order Methods for the Verification of Concurrent Systems, 1996): of each
such class exactly one is played to its end. With a bound on preemptions nothing is left out but what is beyond the
bound, since the one order of a class that is played may need more preemptions than another (Musuvathi and Qadeer,
Iterative context bounding, PLDI 2007). An order ends where something is wrong, and so may hide another kind of bug
that would come later; where the reduced search finds nothing wrong, nothing is. Random and PCT orders (Burckhardt et
al., A randomized scheduler with probabilistic guarantees of finding bugs, ASPLOS 2010) are for races too large for
that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from vmbusirq.lab.explore.world import Choice, World

__all__ = ["STEPS_MAX", "Bad", "Explored", "all_orders", "pct_orders", "play", "random_orders", "shortest"]

STEPS_MAX: Final = 2000
"""Steps of one order (ours): a race whose actors wake each other for ever is no race."""
_FOR_EVER: Final = "goes on for ever: its actors wake each other"

Progress = Callable[[float, int], object]
"""Called with the part of the search that is done, 0 to 1, and the orders played."""


@dataclass(frozen=True, slots=True)
class Bad:
    """An order that ends in what must not be.

    Attributes:
        what: it, in words.
        order: the actors, step by step.
        preemptions: how often another actor went although the one before could have gone on.
    """

    what: str
    order: tuple[str, ...]
    preemptions: int

    @property
    def kind(self) -> str:
        """The words without their numbers: what makes two of them the same bug."""
        return re.sub(r"\d+", "", self.what)


@dataclass(slots=True)
class Explored:
    """What a search has found.

    Attributes:
        orders: played to their end, good or bad.
        pruned: prefixes given up because all that could follow was played in another order.
        beyond: choices not made because of the bound on preemptions.
        steps: taken in all, those of replayed prefixes included.
        bad: the first bad order of each kind.
        bad_orders: how many were bad.
        complete: nothing was left out but what cannot differ.
    """

    orders: int = 0
    pruned: int = 0
    beyond: int = 0
    steps: int = 0
    bad: list[Bad] = field(default_factory=list)
    bad_orders: int = 0
    complete: bool = True

    def note(self, bad: Bad) -> None:
        """Add a bad order; of one kind the one with the fewest preemptions, then steps, is kept."""
        self.bad_orders += 1
        for place, known in enumerate(self.bad):
            if known.kind == bad.kind:
                if _length(bad) < _length(known):
                    self.bad[place] = bad
                return
        self.bad.append(bad)


def _length(bad: Bad) -> tuple[int, int]:
    return bad.preemptions, len(bad.order)


class _Node:
    """A state on the way: who could go, who was tried, who need not be.

    Attributes:
        chosen: who goes now.
        sleep: who need not go here, since it went before in an order that cannot differ.
        last: who went before, if it could go on.
        preemptions: used up to here.
        share: the part of the whole search that hangs from one choice.
    """

    __slots__ = ("_left", "_total", "chosen", "last", "preemptions", "share", "sleep")

    def __init__(self, choices: list[Choice], sleep: list[Choice], last: str, preemptions: int, share: float) -> None:
        self._left = choices[::-1]
        self._total = len(choices)
        self.chosen = self._left.pop()
        self.sleep = sleep
        self.last = last
        self.preemptions = preemptions
        self.share = share / self._total

    def next(self, *, reduction: bool) -> bool:
        """Go on to the next choice; False: there is none."""
        if reduction:
            self.sleep.append(self.chosen)
        if not self._left:
            return False
        self.chosen = self._left.pop()
        return True

    @property
    def preemptions_after(self) -> int:
        """With the choice made."""
        return self.preemptions + (self.last not in ("", self.chosen.name))

    @property
    def done(self) -> float:
        """The part of the whole search that earlier choices were."""
        return self.share * (self._total - len(self._left) - 1)


class _Search:
    """Depth first.

    Attributes:
        found: what so far.
        stopped: before all was played: enough orders, or one that goes on for ever.
    """

    def __init__(
        self,
        world: World,
        *,
        reduction: bool = True,
        bound: int | None = None,
        most: int | None = None,
        seek: str = "",
    ) -> None:
        self._world = world
        self._reduction = reduction and bound is None
        self._bound = bound
        self._most = most
        self._seek = seek
        self._best = STEPS_MAX + 1
        self._path: list[_Node] = []
        self.found = Explored()
        self.stopped = False

    def run(self, progress: Progress | None = None) -> Explored:
        """Play all orders."""
        found = self.found
        while True:
            self._world.reset()
            self._play()
            if progress is not None:
                progress(sum(node.done for node in self._path), found.orders)
            while self._path and not self._path[-1].next(reduction=self._reduction):
                self._path.pop()
            if not self._path:
                break
            self.stopped = self.stopped or (self._most is not None and found.orders >= self._most)
            if self.stopped:
                break
        found.complete = not self.stopped and not found.beyond
        if progress is not None and not self.stopped:
            progress(1.0, found.orders)
        return found

    def _play(self) -> None:
        """Follow the path, then go on to the end of an order."""
        found = self.found
        if not all(self._take(node) for node in self._path):
            return
        while choices := self._world.choices():
            node = self._node(choices)
            if node is None:
                found.pruned += 1
                return
            if len(self._path) >= STEPS_MAX:
                self._note(_FOR_EVER)
                found.orders += 1
                self.stopped = True
                return
            if self._seek and len(self._path) + 1 >= self._best:
                found.orders += 1  # given up, but it counts: how many there are bounds the search
                return
            self._path.append(node)
            if not self._take(node):
                return
        found.orders += 1
        if what := self._world.end():
            self._note(what)

    def _take(self, node: _Node) -> bool:
        """Let one actor go; False: that was wrong, and ends the order."""
        self.found.steps += 1
        what = self._world.take(node.chosen.name)
        if what:
            self.found.orders += 1
            self._note(what)
        return not what

    def _note(self, what: str) -> None:
        preemptions = self._path[-1].preemptions_after if self._path else 0
        bad = Bad(what, tuple(self._world.taken), preemptions)
        self.found.note(bad)
        if bad.kind == self._seek:
            self._best = min(self._best, len(bad.order))

    def _node(self, choices: list[Choice]) -> _Node | None:
        """Make the node of a state; None: all that could go is asleep."""
        parent = self._path[-1] if self._path else None
        if parent is None:
            return _Node(choices, [], "", 0, 1.0)
        went = parent.chosen
        sleep = [choice for choice in parent.sleep if not choice.conflicts(went)]
        asleep = {choice.name for choice in sleep}
        awake = [choice for choice in choices if choice.name not in asleep]
        last = went.name if any(choice.name == went.name for choice in choices) else ""
        used = parent.preemptions_after
        if self._bound is not None and last and used >= self._bound:
            self.found.beyond += sum(choice.name != last for choice in awake)
            awake = [choice for choice in awake if choice.name == last]
        awake.sort(key=lambda choice: choice.name != last)  # whoever goes goes on: natural orders come first
        return _Node(awake, sleep, last, used, parent.share) if awake else None


def all_orders(
    world: World,
    *,
    reduction: bool = True,
    preemptions: int | None = None,
    most: int | None = None,
    progress: Progress | None = None,
) -> Explored:
    """Play all orders of a race.

    Args:
        world: the race.
        reduction: leave out orders that cannot differ from one that is played; not with ``preemptions``.
        preemptions: leave out orders in which more often another actor goes although the one before could have gone on.
        most: stop after so many orders.
        progress: hears how far it is.
    """
    return _Search(world, reduction=reduction, bound=preemptions, most=most).run(progress)


def shortest(world: World, known: Bad, *, most: int = 20_000, progress: Progress | None = None) -> tuple[Bad, bool]:
    """Return the shortest order that is bad in the same way, and whether it is known to be.

    Fewer preemptions are shorter, then fewer steps.

    Args:
        world: the race.
        known: a bad order.
        most: stop after so many orders of one bound; what is known by then is returned.
        progress: hears how far it is.
    """
    for bound in range(known.preemptions + 1):
        search = _Search(world, bound=bound, most=most, seek=known.kind)
        same = [bad for bad in search.run(progress).bad if bad.kind == known.kind]
        if same:
            return same[0], not search.stopped or len(same[0].order) == STEPS_MAX
        if search.stopped:
            break
    return known, False


def random_orders(world: World, orders: int, *, seed: int = 0, progress: Progress | None = None) -> Explored:
    """Play so many orders, each choice drawn evenly from who can go."""

    def make(random: Random) -> Callable[[list[Choice], int], Choice]:
        return lambda choices, _step: random.choice(choices)

    return _drawn(world, orders, seed, make, progress)


def pct_orders(
    world: World, orders: int, *, depth: int = 3, seed: int = 0, progress: Progress | None = None
) -> Explored:
    """Play so many orders by drawn priorities, which change at ``depth`` - 1 drawn steps.

    A bug that needs ``depth`` ordered steps among n actors and k steps is met with probability 1 / (n k**(depth-1)) at
    least in each order; k is how long the longest order was so far, since nobody knows the longest of all.
    """
    longest = len(play(world, ()).order)

    def make(random: Random) -> Callable[[list[Choice], int], Choice]:
        nonlocal longest
        longest = max(longest, len(world.taken))  # of the order before
        names = [actor.name for actor in world.scene.actors]
        random.shuffle(names)
        rank = {name: place + depth for place, name in enumerate(names)}
        changes = dict(zip(random.sample(range(max(longest, depth)), depth - 1), range(1, depth), strict=True))

        def pick(choices: list[Choice], step: int) -> Choice:
            first = max(choices, key=lambda choice: rank[choice.name])
            if step in changes:
                rank[first.name] = changes[step]
                first = max(choices, key=lambda choice: rank[choice.name])
            return first

        return pick

    return _drawn(world, orders, seed, make, progress)


def _drawn(
    world: World,
    orders: int,
    seed: int,
    make: Callable[[Random], Callable[[list[Choice], int], Choice]],
    progress: Progress | None,
) -> Explored:
    found = Explored(complete=False)
    for number in range(orders):
        pick = make(Random(f"{seed} {number}"))
        bad = play(world, (), pick)
        found.orders += 1
        found.steps += len(bad.order)
        if bad.what:
            found.note(bad)
        if progress is not None:
            progress((number + 1) / orders, found.orders)
    return found


def play(
    world: World,
    order: Sequence[str],
    pick: Callable[[list[Choice], int], Choice] | None = None,
    heard: Callable[[str], object] | None = None,
) -> Bad:
    """Play one order from the beginning; return it with what is wrong at its end, nothing if nothing is.

    Args:
        world: the race.
        order: who goes first; later steps are picked.
        pick: how, from who can go and the number of the step; by default whoever goes goes on, else the first.
        heard: called before each step with the name of who takes it.
    Raises:
        ValueError: an actor of ``order`` is none, or cannot go then, or nobody can.
    """
    world.reset()
    last, preemptions = "", 0
    for step in range(STEPS_MAX):
        choices = world.choices()
        if not choices and step < len(order):
            raise ValueError(f"step {step + 1}: {order[step]!r} cannot go here; nobody can")
        if not choices:
            return Bad(world.end(), tuple(world.taken), preemptions)
        names = [choice.name for choice in choices]
        if step < len(order):
            name = order[step]
            if name not in names:
                raise ValueError(f"step {step + 1}: {name!r} cannot go here; who can: {', '.join(names)}")
        elif pick is not None:
            name = pick(choices, step).name
        else:
            name = last if last in names else names[0]
        preemptions += last in names and last != name
        if heard is not None:
            heard(name)
        if what := world.take(name):
            return Bad(what, tuple(world.taken), preemptions)
        last = name
    return Bad(_FOR_EVER, tuple(world.taken), preemptions)
