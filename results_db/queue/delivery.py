"""What Redis must be told so that its list is the database's: pure, so that every schedule of it can be tried."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Delivery:
    """One step of the relay."""

    #: what the list must hold afterwards, the most urgent first
    order: tuple[str, ...]
    #: of those, what it does not hold yet
    send: tuple[str, ...]


@dataclass(slots=True)
class Doorman:
    """Remembers which attempts are on their way to a worker, and since when.

    An attempt that was taken from the list is claimed within moments. One that is not claimed after ``unclaimed_s``
    seconds met a worker that died before it could claim: it is sent again, which is harmless if the worker lives.
    """

    unclaimed_s: float = 15.0
    _since: dict[str, float] = field(default_factory=dict)

    def plan(self, due: Sequence[str], listed: Sequence[str], taken: Collection[str], now_s: float) -> Delivery:
        """Compare.

        Args:
            due: the attempts that workers may take, as the database orders them.
            listed: what the list holds, next first.
            taken: what workers took from the list and RQ does not know to have ended.
            now_s: of a clock that only goes forward, seconds.
        """
        held = set(listed)
        on_the_way = {id_ for id_ in due if id_ in taken and id_ not in held}
        self._since = {id_: self._since.get(id_, now_s) for id_ in on_the_way}
        lost = {id_ for id_ in on_the_way if now_s - self._since[id_] >= self.unclaimed_s}
        for id_ in lost:
            del self._since[id_]
        order = tuple(id_ for id_ in due if id_ not in on_the_way or id_ in lost)
        return Delivery(order, tuple(id_ for id_ in order if id_ not in held))
