"""Which units of a layer will fire: the state table of Hermes, and its ablations.

Hermes (HPCA'25, section IV-C): a 4-bit state per unit rises by 4 when the unit fires and falls by 1 when not;
a unit is predicted active when ``state + 6 * s2 > 15``, ``s2`` being how many of its two most correlated
units of the previous layer fire; a unit is *hot* when its state exceeds 10. Where the paper is silent we
take: the previous layer is the same kind of block one layer up; the first layer has ``s2 = 1``; the
token-wise variant predicts on ``state >= 10`` (the same rule at ``s2 = 1``), the layer-wise one on ``s2 >=
1``; initial states between the two published ends are linear in the frequency seen during prefill. Ignored:
the cost of predicting.

What is true of one layer is computed for all at once: arrays may have axes before that of the units.

Accuracy says little where few units fire: :class:`PredictionScore` gives precision and recall beside it, and
the accuracy of predicting nothing.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from hetmem.errors import ConfigError
from hetmem.rng import stream

Bits = NDArray[np.bool_]
States = NDArray[np.uint8]
MAX_STATE = 15
STATE_BITS = 4
_COLD_FREQUENCY, _HOT_FREQUENCY = 0.02, 0.90  # ends of the published initialisation
_RUNS = 8  # of an index, up to which slices beat a gather
MODES = ("both", "token", "layer")


def initial_states(frequency: NDArray[np.floating]) -> States:
    """Return the states of units that fired with ``frequency`` (0 to 1) during prefill."""
    inner = (frequency - _COLD_FREQUENCY) / (_HOT_FREQUENCY - _COLD_FREQUENCY)
    bins = 1 + np.minimum(13, (14 * np.clip(inner, 0.0, 1.0)).astype(np.uint8))
    states = np.where(frequency > _HOT_FREQUENCY, MAX_STATE, np.where(frequency < _COLD_FREQUENCY, 0, bins))
    # exactly the upper end belongs to the last inner bin
    return states.astype(np.uint8)


def updated_states(states: States, fired: Bits, rise: int = 4, fall: int = 1) -> States:
    """Return the states after one token: up by ``rise`` where fired, else down by ``fall``, in 0..15."""
    # Raised by ``fall`` meanwhile, so that no byte is below 0; bounds are rows, because numpy is slow with a scalar.
    moved = fired.view(np.uint8) * np.uint8(rise + fall)
    moved += states
    np.minimum(moved, np.full(states.shape[-1:], MAX_STATE + fall, dtype=np.uint8), out=moved)
    np.maximum(moved, np.full(states.shape[-1:], fall, dtype=np.uint8), out=moved)
    moved -= np.uint8(fall)
    return moved


def correlated_firings(previous: Bits, parents: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return ``s2``: how many of each unit's two ``parents`` fire in ``previous[..., unit]``.

    ``parents`` is ``[unit, 2]``, or has the further axes of ``previous`` where layers differ.
    """
    fired = previous.view(np.uint8)
    first, second = (_taken(fired, parents[..., k]) for k in range(2))
    return np.asarray(first + second)


def _taken(values: NDArray[np.uint8], index: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Return ``values[..., index]``, by slices where the index is a few runs, which is far faster."""
    if index.ndim > 1:
        return np.take_along_axis(values, index, axis=-1)
    starts = np.flatnonzero(np.diff(index, prepend=index[:1] - 2) != 1)
    if len(starts) > _RUNS:
        return values[..., index]
    runs = [slice(run[0], run[-1] + 1) for run in np.split(index, starts[1:])]
    return np.concatenate([values[..., run] for run in runs], axis=-1)


@frozen(eq=False)
class PredictView:
    """What a predictor sees at one token; arrays are read-only and end with the axis of units.

    A system shows all layers of a block at once, ``[layer, unit]``, from ``layer`` on, which is 0; a view may
    also be of one layer, ``[unit]``. ``states`` are the state tables; ``previous`` is what fired one layer up,
    nothing in the row of the first layer (None in a view of that alone), ``parents[unit, 2]`` the two most
    correlated units there, with an axis of layers before where layers differ. ``truth``, what will fire, is for
    oracles only.
    """

    block: str
    layer: int
    token: int
    states: States
    parents: NDArray[np.integer]
    previous: Bits | None = None
    truth: Bits | None = None


class Predictor(Protocol):
    """The role: which units will fire."""

    def decide(self, view: PredictView) -> Bits:
        """Return the units predicted active, in the shape of ``view.states``."""


@frozen
class StateTable:
    """The state-table predictor; ``mode`` is ``"both"`` terms, ``"token"`` or ``"layer"`` alone."""

    mode: str = field(default="both", validator=validators.in_(MODES))
    weight: int = field(default=6, validator=[validators.ge(0), validators.le(100)])
    threshold: int = field(default=15, validator=[validators.ge(0), validators.le(255)])

    def decide(self, view: PredictView) -> Bits:
        """Return the units predicted active."""
        if self.mode == "token":
            return view.states + np.uint8(self.weight) > self.threshold
        if view.previous is None:
            s2 = np.ones(view.states.shape, dtype=np.uint8)
        else:
            s2 = correlated_firings(view.previous, view.parents)
            if view.layer == 0:
                s2[0] = 1
        if self.mode == "layer":
            return s2 >= 1
        return view.states + s2 * np.uint8(self.weight) > self.threshold


@frozen
class OraclePredictor:
    """Predicts what will fire: the bound for any predictor."""

    def decide(self, view: PredictView) -> Bits:
        """Return the units that will fire."""
        if view.truth is None:
            raise ConfigError("view.truth", "the oracle predictor needs to be told what will fire")
        return view.truth.copy()


@frozen
class RandomPredictor:
    """Predicts each unit with the same probability: the floor for any predictor."""

    density: float = field(validator=[validators.ge(0.0), validators.le(1.0)])
    seed: int = 0

    def decide(self, view: PredictView) -> Bits:
        """Return units drawn at random; the same view gives the same draw."""
        layers = view.states.reshape(-1, view.states.shape[-1])
        drawn = [self._draw(view, layer, units) for layer, units in enumerate(layers, view.layer)]
        return np.stack(drawn).reshape(view.states.shape) < self.density

    def _draw(self, view: PredictView, layer: int, units: States) -> NDArray[np.float64]:
        return stream(self.seed, f"random-predictor/{view.block}/{layer}/{view.token}").random(len(units))


class StateTracker:
    """The state tables of a model, ``[layer, unit]`` by kind of block, moved on by what fires.

    The published parameters are the defaults: ``rise`` and ``fall`` per token, ``hot_above`` the threshold of
    hot.
    """

    def __init__(self, rise: int = 4, fall: int = 1, hot_above: int = 10) -> None:
        for name, value in (("rise", rise), ("fall", fall), ("hot_above", hot_above)):
            if not 0 <= value <= MAX_STATE:
                raise ConfigError(name, f"expected 0 to {MAX_STATE}, not {value}")
        self.rise, self.fall, self.hot_above = rise, fall, hot_above
        self._states: dict[str, States] = {}

    def start(self, frequency: Mapping[str, NDArray[np.floating]]) -> None:
        """Set the states from the firing frequencies of prefill, ``[layer, unit]`` by kind of block."""
        self._states = {block: initial_states(seen) for block, seen in frequency.items()}
        for states in self._states.values():
            states.flags.writeable = False

    def states(self, block: str) -> States:
        """Return the states of ``block``, ``[layer, unit]``, read-only."""
        return self._states[block]

    def hot(self, block: str) -> Bits:
        """Return which units of ``block`` are hot."""
        return self._states[block] > self.hot_above

    def observe(self, fired: Mapping[str, Bits]) -> None:
        """Move the states on by one token, ``fired[block][layer, unit]``."""
        for block, bits in fired.items():
            states = updated_states(self._states[block], bits, self.rise, self.fall)
            states.flags.writeable = False
            self._states[block] = states


def table_bytes(n_units: int) -> int:
    """Return the size of a state table of ``n_units`` units."""
    return -(-n_units * STATE_BITS // 8)


def correlation_table_bytes(n_units: int, units_per_layer: int) -> int:
    """Return the size of two unit numbers per unit, each in as many bytes as a layer needs."""
    return n_units * 2 * -(-max(1, (units_per_layer - 1).bit_length()) // 8)


@frozen
class PredictionScore:
    """Counts of predictions; scores add up."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0
    true_negative: int = 0

    def __add__(self, other: "PredictionScore") -> "PredictionScore":
        return PredictionScore(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.true_negative + other.true_negative,
        )

    @property
    def total(self) -> int:
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    @property
    def accuracy(self) -> float:
        return (self.true_positive + self.true_negative) / self.total

    @property
    def accuracy_of_nothing(self) -> float:
        """The accuracy of predicting that no unit fires."""
        return (self.false_positive + self.true_negative) / self.total

    @property
    def precision(self) -> float:
        """Fired of those predicted; NaN when nothing was predicted."""
        predicted = self.true_positive + self.false_positive
        return self.true_positive / predicted if predicted else float("nan")

    @property
    def recall(self) -> float:
        """Predicted of those that fired; NaN when nothing fired."""
        fired = self.true_positive + self.false_negative
        return self.true_positive / fired if fired else float("nan")


def score(predicted: Bits, fired: Bits) -> PredictionScore:
    """Return the score of a prediction against what fired."""
    both = int(np.count_nonzero(predicted & fired))
    n_predicted, n_fired = int(np.count_nonzero(predicted)), int(np.count_nonzero(fired))
    return PredictionScore(both, n_predicted - both, n_fired - both, predicted.size - n_predicted - n_fired + both)


class HotDrift:
    """Share of the units hot at the start that were not hot at least once since: the drift of the hot set."""

    def __init__(self, hot: Bits) -> None:
        self._initial = hot.copy()
        self._stayed = hot.copy()

    def observe(self, hot: Bits) -> None:
        """Take note of the hot units after one more token."""
        self._stayed &= hot

    @property
    def share(self) -> float:
        """NaN when nothing was hot at the start."""
        initial = np.count_nonzero(self._initial)
        return 1.0 - np.count_nonzero(self._stayed) / initial if initial else float("nan")
