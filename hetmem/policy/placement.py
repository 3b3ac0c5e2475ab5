"""Where each kind of data goes: the fractions over the memories that make a layer fastest, by a linear program.

FlexGen's offline placement (Sheng et al., ICML 2023, section 4.3): variables are the fractions of each kind in
each place, capacities bound the bytes, and the time of a layer is that of the stream that is busy longest,
which an auxiliary variable above all streams makes linear. Solved with HiGHS. Of the placements that are
equally fast, the one whose streams work least is returned.
Ignored: that tensors are whole (a fraction may cut one), and how the work of a stream is ordered.
"""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

Fractions = Mapping[str, Mapping[str, float]]

#: Fractions below are solver noise and become zero; the headroom left in every capacity pays for it.
NOISE = 1e-7
HEADROOM = 1e-5
SOLVER_TOLERANCE = 1e-9
SAME_TIME = 1 + 1e-7


@frozen
class Choice:
    """One place for a kind of data, if all of it is there.

    ``bytes`` it takes in each memory (its own, and buffers in others), ``seconds`` that it keeps each stream
    busy per layer.
    """

    bytes: Mapping[str, float]
    seconds: Mapping[str, float]


@frozen
class PlacementView:
    """What the placement may know.

    Attributes
    ----------
    choices
        For each kind of data, its possible places.
    capacity_bytes
        Bytes of each memory; one that is not named is large enough.
    base_s
        Seconds per layer that each stream is busy wherever the data is; all streams are named here.
    """

    choices: Mapping[str, Mapping[str, Choice]]
    capacity_bytes: Mapping[str, float]
    base_s: Mapping[str, float]

    def used_bytes(self, fractions: Fractions) -> dict[str, float]:
        """Return the bytes that a placement takes in each memory with a capacity."""
        held = [(share, choice.bytes) for share, choice in self._chosen(fractions)]
        return {m: sum(share * taken.get(m, 0.0) for share, taken in held) for m in self.capacity_bytes}

    def stream_s(self, fractions: Fractions) -> dict[str, float]:
        """Return the seconds per layer that each stream is busy under a placement."""
        busy = [(share, choice.seconds) for share, choice in self._chosen(fractions)]
        return {s: base + sum(share * added.get(s, 0.0) for share, added in busy) for s, base in self.base_s.items()}

    def layer_s(self, fractions: Fractions) -> float:
        """Return the seconds per layer of a placement: those of its busiest stream."""
        return max(self.stream_s(fractions).values())

    def least_bytes(self, memory: str) -> float:
        """Return the bytes that any placement takes in ``memory``."""
        return sum(min(c.bytes.get(memory, 0.0) for c in places.values()) for places in self.choices.values())

    def _chosen(self, fractions: Fractions) -> list[tuple[float, Choice]]:
        return [
            (share, self.choices[kind][place]) for kind, shares in fractions.items() for place, share in shares.items()
        ]


@frozen
class Placement:
    """The fraction of each kind of data in each of its places, and the seconds per layer that follow."""

    fractions: Fractions
    layer_s: float


@frozen
class LinearPlacement:
    """The placement that makes a layer fastest."""

    def decide(self, view: PlacementView) -> Placement | None:
        """Return the best placement, or None when no placement fits."""
        import numpy as np
        from scipy.optimize import linprog

        columns = [(kind, place) for kind, places in view.choices.items() for place in places]
        picked = [view.choices[kind][place] for kind, place in columns]
        base = np.array(list(view.base_s.values()))
        seconds = np.array([[c.seconds.get(stream, 0.0) for c in picked] for stream in view.base_s])
        # Rows near one, whatever the units: the solver's tolerances are absolute.
        scale = max(float(base.max()), float(seconds.max()), 1e-12)
        base, seconds = base / scale, seconds / scale
        streams = np.hstack([seconds, -np.ones((len(base), 1))])
        capacities = {m: n * (1 - HEADROOM) for m, n in view.capacity_bytes.items()}
        if any(view.least_bytes(m) > n for m, n in capacities.items()):
            return None
        units = {m: max(n, 1.0) for m, n in capacities.items()}
        room = [[c.bytes.get(m, 0.0) / units[m] for c in picked] + [0.0] for m in capacities]
        limits = np.vstack([streams, *room])
        bounds = np.array([*-base, *(n / units[m] for m, n in capacities.items())])
        whole = np.array([[float(kind == k) for k, _ in columns] + [0.0] for kind in view.choices])

        def solve(costs: Any, above: float | None) -> Any:
            return linprog(
                costs, limits, bounds, whole, np.ones(len(whole)), [(0, 1)] * len(columns) + [(0, above)],
                method="highs",
                options={"primal_feasibility_tolerance": SOLVER_TOLERANCE,
                         "dual_feasibility_tolerance": SOLVER_TOLERANCE},
            )  # fmt: skip

        fastest = solve(np.eye(len(columns) + 1)[-1], None)
        if not fastest.success:
            return None
        # The same time with the least work: the time becomes a bound, the sum over all streams the objective.
        quiet = solve(np.append(seconds.sum(axis=0), 0.0), float(fastest.x[-1]) * SAME_TIME)
        shares = (quiet if quiet.success else fastest).x[:-1]
        fractions = _cleaned({column: float(share) for column, share in zip(columns, shares, strict=True)})
        return Placement(fractions, view.layer_s(fractions))


def _cleaned(shares: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Return the shares by kind without noise; those of a kind sum to one."""
    fractions: dict[str, dict[str, float]] = {}
    for (kind, place), share in shares.items():
        fractions.setdefault(kind, {})[place] = share if share > NOISE else 0.0
    return {
        kind: {place: share / sum(places.values()) for place, share in places.items()}
        for kind, places in fractions.items()
    }
