"""Which neurons of a ReLU model fire, and how often: anchors, and the distribution that meets them together.

A *neuron* is the unit of placement of Hermes (HPCA'25): an input channel of the QKV block, or a channel of
the feed-forward (MLP) block. No study publishes per-neuron statistics, so the activity is synthetic. It meets
the published aggregates at once, because each is carried by a parameter of its own:

* the firing frequency of the neuron at relative rank ``x`` of its layer is ``min(1, c * x**-exponent)``; the
  exponent sets which share of one block's neurons carries most of its activations (PowerInfer, SOSP'24,
  Figure 4a);
* the log-odds of a layer's density rise linearly with depth; the slope sets the same share over the whole
  model (Figure 4b), which is smaller than that of a block because layers differ;
* a sequence fires a neuron of corpus frequency ``p`` at a rate of its own, ``q ~ Beta(k p, k (1 - p))``; the
  concentration ``k`` sets the similarity of far-apart tokens (Hermes, Figure 4a), which frequencies alone
  miss;
* from one token to the next a neuron keeps its state with probability ``persistence``, else draws anew from
  ``q``; this lifts the similarity of adjacent tokens and is gone, as ``persistence**d``, within some ten
  tokens.

Similarity at distance ``d`` is ``|A_t and A_t+d| / |A_t|`` over the sets of firing neurons (Hermes defines
none). Ignored: any dependence on the text, on the position, and between the QKV and the MLP block of a layer.
"""

import math
from collections.abc import Callable

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from hetmem.catalog import entry
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError

_BISECTIONS = 60  # halves an interval to below double precision
_NEWTON_STEPS = 12
_QUADRATURE = 512  # ranks of a layer at which sums of squares are taken
_EXPONENTS = (0.05, 20.0)  # from nearly even to nearly all-or-nothing; below, the rank law underflows


def _fraction() -> float:
    return field(validator=[validators.gt(0.0), validators.lt(1.0)])


def _probability() -> float:
    return field(validator=[validators.ge(0.0), validators.le(1.0)])


@frozen
class SparsityAnchors:
    """The published aggregates of one model (all fractions); the entries of ``catalog/sparsity.toml``.

    ``mlp_density`` is the mean share of neurons that fire; the busiest ``mlp_block_share`` of one block's
    neurons and the busiest ``mlp_model_share`` of all layers' carry ``mlp_held`` of the activations; likewise
    ``qkv``. ``layer_link`` of the neurons follow one of the layer before, each token with probability
    ``layer_follow``; ``rate_renewal`` is the probability per token that a neuron draws a new rate (0: a
    sequence keeps its rates). ``hot_drift``, the share of initially hot neurons that cool within a sequence,
    is compared with, not imposed. ``mlp_predictor_share`` is the size of trained predictors, as a share of the model's
    weights. The calibrated densities are those with which Hermes's bars come out best;
    None for models without such bars.
    """

    name: str
    mlp_density: float = _fraction()
    mlp_held: float = _fraction()
    mlp_block_share: float = _fraction()
    mlp_model_share: float = _fraction()
    qkv_density: float = _fraction()
    qkv_held: float = _fraction()
    qkv_block_share: float = _fraction()
    qkv_model_share: float = _fraction()
    adjacent_similarity: float = _fraction()
    distant_similarity: float = _fraction()
    layer_link: float = _probability()
    layer_follow: float = _probability()
    rate_renewal: float = _probability()
    hot_drift: float = _probability()
    mlp_predictor_share: float = _fraction()
    calibrated_qkv_density: float | None = None
    calibrated_mlp_density: float | None = None


def sparsity_anchors(model: str) -> SparsityAnchors:
    """Return the anchors of ``model`` from the catalogue.

    Raises
    ------
    UnknownNameError
        When the catalogue has no activation sparsity for ``model``.
    """
    return structure(SparsityAnchors, entry("sparsity", model))


@frozen
class BlockSparsity:
    """The aggregates of one kind of block; ``layer_densities`` replaces the depth law."""

    name: str
    density: float = _fraction()
    held: float = _fraction()
    block_share: float = _fraction()
    model_share: float = _fraction()
    adjacent: float = _fraction()
    distant: float = _fraction()
    link: float = _probability()
    follow: float = _probability()
    renewal: float = _probability()
    layer_densities: tuple[float, ...] | None = None

    def __attrs_post_init__(self) -> None:
        if self.adjacent < self.distant:
            raise ConfigError(
                f"{self.name}.adjacent",
                f"{self.adjacent} is below the similarity of distant tokens, {self.distant}",
            )
        for layer, density in enumerate(self.layer_densities or ()):
            if not 0.0 < density < 1.0:
                raise ConfigError(f"{self.name}.layer_densities[{layer}]", f"expected in (0, 1), not {density}")


def block_sparsity(anchors: SparsityAnchors, block: str) -> BlockSparsity:
    """Return the part of ``anchors`` about ``block``, ``"qkv"`` or ``"mlp"``."""
    if block not in ("qkv", "mlp"):
        raise ConfigError("block", f"expected 'qkv' or 'mlp', not {block!r}")
    density, held, block_share, model_share = (
        getattr(anchors, f"{block}_{key}") for key in ("density", "held", "block_share", "model_share")
    )
    return BlockSparsity(
        block,
        density,
        held,
        block_share,
        model_share,
        anchors.adjacent_similarity,
        anchors.distant_similarity,
        anchors.layer_link,
        anchors.layer_follow,
        anchors.rate_renewal,
    )


@frozen
class FiringLaw:
    """The fitted parameters of one kind of block.

    ``exponent`` is that of the rank law, ``slope`` the rise of the log-odds of density from the first layer
    to the last, ``densities`` the density per layer, ``knees`` the relative rank below which neurons of a
    layer always fire, ``concentration`` the ``k`` of the Beta distribution (infinite: every sequence has the
    corpus rates), ``persistence`` the probability of keeping a state from one token to the next.
    """

    exponent: float
    slope: float
    densities: tuple[float, ...]
    knees: tuple[float, ...]
    concentration: float
    persistence: float

    def frequencies(self, layer: int, n: int) -> NDArray[np.float64]:
        """Return the frequencies of ``n`` neurons of ``layer``, busiest first; their mean is exact."""
        edges = np.arange(n + 1) / n
        return np.diff(_activations_up_to(edges, self.knees[layer], self.exponent)) * n


def fit_firing_law(sparsity: BlockSparsity, n_layers: int) -> FiringLaw:
    """Return the law that meets ``sparsity`` over ``n_layers`` layers.

    The share of one block is met by the median layer, that of the model by all layers together.

    Raises
    ------
    ConfigError
        When the anchors exclude each other, such as a share that would need frequencies above 1.
    """
    if sparsity.layer_densities is not None:
        if len(sparsity.layer_densities) != n_layers:
            raise ConfigError(
                f"{sparsity.name}.layer_densities",
                f"expected {n_layers}, one a layer, not {len(sparsity.layer_densities)}",
            )
        slope, densities = math.nan, np.array(sparsity.layer_densities)
    else:
        slope = _fit_slope(sparsity, n_layers)
        densities = _depth_law(slope, sparsity.density, n_layers)
    exponent = _fit_exponent(sparsity, densities)
    knees = _knees(densities, exponent)
    edges = np.arange(_QUADRATURE + 1) / _QUADRATURE
    frequencies = np.diff([_activations_up_to(edges, knee, exponent) for knee in knees]) * _QUADRATURE
    floor = float((frequencies**2).sum() / frequencies.sum())
    # E[q^2] = p^2 + p (1 - p) / (k + 1): tokens far apart are alike by floor + (1 - floor) / (k + 1)
    spread = (sparsity.distant - floor) / (1.0 - floor)
    concentration = 1.0 / spread - 1.0 if spread > 0 else math.inf
    reached = max(sparsity.distant, floor)
    persistence = max(0.0, (sparsity.adjacent - reached) / (1.0 - reached))
    return FiringLaw(exponent, slope, tuple(densities.tolist()), tuple(knees.tolist()), concentration, persistence)


def neuron_share(frequencies: NDArray[np.floating], held: float) -> float:
    """Return the smallest share of neurons that carries the fraction ``held`` of all activations."""
    ordered = np.sort(np.asarray(frequencies, dtype=np.float64), axis=None)[::-1]
    carried = np.cumsum(ordered)
    return float(np.searchsorted(carried, held * carried[-1]) + 1) / ordered.size


def _fit_slope(sparsity: BlockSparsity, n_layers: int) -> float:
    if sparsity.model_share > sparsity.block_share:
        raise ConfigError(
            f"{sparsity.name}.model_share",
            f"{sparsity.model_share} is above the share of one block, {sparsity.block_share}: "
            "layers taken together cannot be less skewed than one",
        )
    if sparsity.model_share == sparsity.block_share or n_layers == 1:
        return 0.0

    def pooled(slope: float) -> float:
        densities = _depth_law(slope, sparsity.density, n_layers)
        return _pooled_share(densities, _fit_exponent(sparsity, densities), sparsity.held)

    steepest = 12.0  # the last layer a hundred thousand times as dense as the first
    return _root(pooled, sparsity.model_share, 0.0, steepest, f"{sparsity.name}.model_share")


def _fit_exponent(sparsity: BlockSparsity, densities: NDArray[np.float64]) -> float:
    def median(exponent: float) -> float:
        return float(np.median(_block_shares(densities, exponent, sparsity.held)))

    return _root(median, sparsity.block_share, *_EXPONENTS, f"{sparsity.name}.block_share")


def _root(falling: Callable[[float], float], target: float, low: float, high: float, path: str) -> float:
    """Return where the falling function meets ``target``, by false position (Illinois variant)."""
    above, below = falling(low) - target, falling(high) - target
    if not below <= 0.0 <= above:
        raise ConfigError(
            path,
            f"{target} cannot be met: the other anchors allow {below + target:.3f} to {above + target:.3f}",
        )
    kept_low = kept_high = False
    while high - low > 1e-9:
        middle = (low * -below + high * above) / (above - below)
        value = falling(middle) - target
        if abs(value) < 1e-12:
            return middle
        if value > 0:
            low, above, below = middle, value, below / 2 if kept_high else below
        else:
            high, below, above = middle, value, above / 2 if kept_low else above
        kept_low, kept_high = value <= 0, value > 0
    return (low + high) / 2


def _depth_law(slope: float, mean: float, n_layers: int) -> NDArray[np.float64]:
    """Return densities of the given mean whose log-odds rise by ``slope`` from first to last."""
    rise = slope * np.linspace(-0.5, 0.5, n_layers)
    low, high = -60.0, 60.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        densities = 1.0 / (1.0 + np.exp(-(rise + middle)))
        low, high = (middle, high) if densities.mean() < mean else (low, middle)
    return densities


def _activations_up_to(
    x: NDArray[np.float64], knee: float | NDArray[np.float64], exponent: float
) -> NDArray[np.float64]:
    """Return the integral of ``min(1, (t / knee) ** -exponent)`` from 0 to ``x``."""
    flat = np.minimum(x, knee)
    ratio = np.log(np.maximum(x, knee) / knee)
    rest = 1.0 - exponent
    tail = ratio if abs(rest) < 1e-9 else np.expm1(rest * ratio) / rest
    return np.asarray(flat + knee * tail)


def _rank_of(activations: NDArray[np.float64], knee: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Return the ``x`` of which :func:`_activations_up_to` gives ``activations``."""
    tail = np.maximum(activations - knee, 0.0) / knee
    rest = 1.0 - exponent
    ratio = tail if abs(rest) < 1e-9 else np.log1p(np.maximum(rest * tail, -1 + 1e-15)) / rest
    return np.where(activations <= knee, activations, knee * np.exp(np.minimum(ratio, 700.0)))


def _knees(densities: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """Return the relative rank up to which frequency is 1, so that the mean frequency is the density.

    The logarithm of the mean is a concave function of that of the knee, so Newton's method cannot fail.
    """
    log_knee = np.log(densities)
    for _ in range(_NEWTON_STEPS):
        knee = np.exp(log_knee)
        mean = _activations_up_to(np.ones(()), knee, exponent)
        slope = exponent * (mean - knee) / mean
        log_knee -= np.log(mean / densities) / slope
    return np.exp(log_knee)


def _block_shares(densities: NDArray[np.float64], exponent: float, held: float) -> NDArray[np.float64]:
    return _rank_of(held * densities, _knees(densities, exponent), exponent)


def _pooled_share(densities: NDArray[np.float64], exponent: float, held: float) -> float:
    knees = _knees(densities, exponent)
    low, high = 1e-12, 1.0  # the frequency above which neurons count
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        ranks = np.minimum(1.0, knees * middle ** (-1.0 / exponent))
        carried = _activations_up_to(ranks, knees, exponent).sum()
        low, high = (middle, high) if carried > held * densities.sum() else (low, middle)
    return float(ranks.mean())
