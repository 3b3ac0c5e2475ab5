"""The activity of a run as data: which neurons there are, how often they fire, and in what units they are handled."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from attrs import evolve, field, frozen
from attrs.validators import ge, in_, optional
from numpy.typing import NDArray

from hetmem.errors import ConfigError
from hetmem.model.activation import (
    ActivitySource,
    GeneratedActivity,
    NeuronBlock,
    activation_model,
)  # fmt: skip
from hetmem.model.activity_trace import correlated_units, read_activity
from hetmem.model.bits import unpack
from hetmem.model.sparsity import BlockSparsity, block_sparsity, sparsity_anchors
from hetmem.model.spec import ModelSpec

BLOCKS = ("qkv", "mlp")
DENSITIES = ("untuned", "calibrated")
MISSES = ("dropped", "late")


@frozen(kw_only=True)
class ActivityConfig:
    """Which neurons fire, and what happens to those that a predictor misses.

    Attributes
    ----------
    qkv, mlp
        The statistics of the two kinds of block.
    densities
        ``untuned`` takes the densities of ``qkv`` and ``mlp``; ``calibrated`` those fitted to the throughput
        that Hermes printed, which then validates nothing.
    calibrated_qkv, calibrated_mlp
        These densities; None where the model has none.
    mlp_predictor_share
        The size of trained predictors, for systems that use such, as a share of the model's weights.
    group
        Neurons that are generated, predicted, copied and moved as one.
    partition_group
        Neurons of like frequency that the offline partition places as one; a multiple of ``group``.
    misses
        A neuron that fires though it was not predicted is computed ``late``, after the others, or ``dropped``,
        which costs accuracy and no time. Both count it.
    trace
        An ``.npz`` of recorded activity instead of the synthetic one; see :mod:`hetmem.model.activity_trace`.
    """

    qkv: BlockSparsity
    mlp: BlockSparsity
    densities: str = field(default="untuned", validator=in_(DENSITIES))
    calibrated_qkv: float | None = field(default=None, validator=optional(ge(0)))
    calibrated_mlp: float | None = field(default=None, validator=optional(ge(0)))
    mlp_predictor_share: float = field(validator=ge(0))
    group: int = field(default=4, validator=ge(1))
    partition_group: int = field(default=64, validator=ge(1))
    misses: str = field(default="dropped", validator=in_(MISSES))
    trace: str | None = None

    def block(self, name: str) -> BlockSparsity:
        """Return the statistics of ``"qkv"`` or ``"mlp"`` with the densities in force."""
        given = self.qkv if name == "qkv" else self.mlp
        fitted = self.calibrated_qkv if name == "qkv" else self.calibrated_mlp
        return given if self.densities == "untuned" or fitted is None else evolve(given, density=fitted)


def activity_config(model: str) -> ActivityConfig:
    """Return the activity of the catalogue's ``model``.

    Raises
    ------
    UnknownNameError
        When no activation sparsity is known of it.
    """
    anchors = sparsity_anchors(model)
    return ActivityConfig(
        qkv=block_sparsity(anchors, "qkv"), mlp=block_sparsity(anchors, "mlp"),
        calibrated_qkv=anchors.calibrated_qkv_density, calibrated_mlp=anchors.calibrated_mlp_density,
        mlp_predictor_share=anchors.mlp_predictor_share,
    )  # fmt: skip


@frozen(eq=False)
class Neurons:
    """The units of a model, and what is known of them beforehand; arrays are read-only, by kind of block.

    ``n_units`` of one layer, ``frequency[layer, unit]`` over the corpus, ``parents[unit, 2]`` the two units of the
    layer before that say most about each, with an axis of layers before where layers differ. ``source(number)``
    begins the activity of a sequence.
    """

    n_layers: int
    n_units: Mapping[str, int]
    frequency: Mapping[str, NDArray[np.floating]]
    parents: Mapping[str, NDArray[np.integer]]
    source: Callable[[int], ActivitySource]


_model = lru_cache(maxsize=8)(activation_model)


def neuron_counts(model: ModelSpec) -> dict[str, int]:
    """Return the neurons of one layer: input channels of QKV, channels of the MLP."""
    return {"qkv": model.d_model, "mlp": model.d_ff}


def neurons(config: ActivityConfig, model: ModelSpec, seed: int) -> Neurons:
    """Return the units of ``model`` under ``config``.

    Raises
    ------
    ConfigError, WorkloadError
        When the statistics exclude each other, a group does not divide a layer, or a trace does not fit the model.
    """
    counts = neuron_counts(model)
    if config.partition_group % config.group:
        raise ConfigError(
            "activity.partition_group", f"{config.partition_group} is no multiple of group, {config.group}"
        )
    if config.densities == "calibrated" and (config.calibrated_qkv is None or config.calibrated_mlp is None):
        raise ConfigError("activity.densities", f"{model.id} has no calibrated densities")
    for block, n in counts.items():
        if n % config.partition_group:
            raise ConfigError(
                "activity.partition_group", f"{config.partition_group} does not divide {n} {block} neurons"
            )
    if config.trace is not None:
        return _recorded(config.trace, config.group, counts, model.n_layers)
    models = tuple(
        _model(NeuronBlock(config.block(block), model.n_layers, n, config.group), seed) for block, n in counts.items()
    )
    return Neurons(
        model.n_layers,
        {m.block.name: m.block.n_units for m in models},
        {m.block.name: m.frequency for m in models},
        {m.block.name: m.parents for m in models},
        lambda number: GeneratedActivity(models, seed, number),
    )


def _recorded(path: str, group: int, counts: Mapping[str, int], n_layers: int) -> Neurons:
    """Return the units of a trace: the whole of it is the corpus, and sequences start at different tokens of it."""
    first = read_activity(Path(path), group, repeat=True)
    found = {block: n * group for block, n in first.n_units.items()}
    tokens = [first.next_token() for _ in range(first.n_tokens)]
    layers = {words.shape[0] for words in tokens[0].values()}
    if found != dict(counts) or layers != {n_layers}:
        raise ConfigError(
            "activity.trace", f"expected {n_layers} layers of {dict(counts)} neurons, not {sorted(layers)} of {found}"
        )
    fired = {b: np.stack([unpack(token[b], n) for token in tokens]) for b, n in first.n_units.items()}

    def source(number: int) -> ActivitySource:
        recorded = read_activity(Path(path), group, repeat=True)
        for _ in range(math.floor(number * 0.618034 * first.n_tokens) % first.n_tokens):  # spread evenly
            recorded.next_token()
        return recorded

    return Neurons(
        n_layers, first.n_units, {b: bits.mean(axis=0, dtype=np.float32) for b, bits in fired.items()},
        {b: correlated_units(bits) for b, bits in fired.items()}, source,
    )  # fmt: skip
