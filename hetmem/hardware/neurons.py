"""Parameters of systems that keep feed-forward neurons outside the GPU: activity, formats, caches, storage.

A neuron is row ``i`` of the first feed-forward matrices with column ``i`` of the last. What the constants are and
where they come from stands in ``neurons.toml``; what is done with them in :mod:`hetmem.system.neuron_offload`.
"""

from typing import Any

import attrs
from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, optional

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.policy.layer_cache import FIXED_MODES
from hetmem.policy.precision_split import STORAGE_LAYOUTS, PrecisionSplit

SSD_UNITS = ("layer", "missing")


@frozen(kw_only=True)
class NeuronConfig:
    """How neurons are activated, predicted, stored, cached and moved.

    Attributes
    ----------
    active_fraction, persistence, zipf
        The synthetic source of active sets; see :class:`hetmem.model.active_sets.MarkovSwap`.
    walked_layers
        Layers whose sets are drawn; the others, statistically alike, take theirs in turn.
    mixed_precision
        Whether active neurons are predicted and moved in mixed formats; otherwise the dense FP16 matrices are
        streamed for every token.
    fp16_share, int8_share
        Shares of the active set by score; the rest is INT4.
    cache_capacity, window
        Slots of a layer's unit in active sets, and the tokens of a sliding window.
    predict_ahead, fetch_mispredicted, on_demand_gbs
        Layers ahead at which copies are predicted; whether neurons that a prediction missed are fetched on demand
        (otherwise they are dropped and counted), and the SSD's rate for that.
    overhead_s, eager_layer_s
        The host's time per layer for prediction and cache management; the least time of a layer on the GPU where
        the host launches its kernels one by one.
    overlap_copy
        Whether the next layer is copied while one computes; otherwise everything is in series.
    neuron_gbs, neuron_efficiency
        Rate of neuron-sized copies to the GPU; None for a fraction of the link's pinned rate.
    use_ssd, storage_layout, ssd_unit, ssd_gbs, preload_window
        Whether there is an SSD; what is stored of a neuron; what a read brings; its rate (None: the SSD's own) and
        how many layers ahead it is issued.
    fixed_bytes, fixed_mode
        DRAM for layers that are never evicted (None: as much as there is), and which layers these are.
    resident_bits
        Bits of attention, embedding and head, which stay in GPU memory.
    """

    name: str
    active_fraction: float = field(validator=[gt(0), le(1)])
    persistence: float = field(validator=[ge(0), le(1)])
    zipf: float = field(validator=ge(0))
    walked_layers: int = field(validator=ge(1))
    mixed_precision: bool
    fp16_share: float = field(validator=[ge(0), le(1)])
    int8_share: float = field(validator=[ge(0), le(1)])
    cache_capacity: float = field(validator=gt(0))
    window: int = field(validator=ge(1))
    predict_ahead: int = field(validator=ge(0))
    fetch_mispredicted: bool
    on_demand_gbs: float = field(validator=gt(0))
    overhead_s: float = field(validator=ge(0))
    eager_layer_s: float = field(default=0.0, validator=ge(0))
    overlap_copy: bool = True
    neuron_gbs: float | None = field(default=None, validator=optional(gt(0)))
    neuron_efficiency: float = field(validator=[gt(0), le(1)])
    use_ssd: bool
    storage_layout: str = field(validator=in_(STORAGE_LAYOUTS))
    ssd_unit: str = field(validator=in_(SSD_UNITS))
    ssd_gbs: float | None = field(default=None, validator=optional(gt(0)))
    preload_window: int = field(validator=ge(0))
    fixed_bytes: int | None = field(default=None, validator=optional(ge(0)))
    fixed_mode: str = field(validator=in_(FIXED_MODES))
    resident_bits: int = field(validator=in_((4, 8, 16)))

    def __attrs_post_init__(self) -> None:
        if self.fp16_share + self.int8_share > 1 + 1e-9:
            raise ValueError("fp16_share and int8_share add up to more than 1")

    @property
    def split(self) -> PrecisionSplit:
        """The formats of the active set by score."""
        return PrecisionSplit(
            shares=(self.fp16_share, self.int8_share, max(0.0, 1 - self.fp16_share - self.int8_share))
        )


@frozen(kw_only=True)
class _NeuronPreset(NeuronConfig):
    """An entry of the catalogue: the configuration, and the rates that hold as published only."""

    published_neuron_gbs: float | None = None
    published_ssd_gbs: float | None = None
    published_eager_layer_s: float = 0.0


def neurons(name: str, *, published: bool) -> NeuronConfig:
    """Return the catalogue's parameters ``name``: in series and at the rates its paper implies when ``published``.

    Raises
    ------
    UnknownNameError, ConfigError
        When there is no such entry, or it cannot be used.
    """
    preset = structure(_NeuronPreset, catalog.whole(catalog.entry("neurons", name)))
    values: dict[str, Any] = {a.name: getattr(preset, a.name) for a in attrs.fields(NeuronConfig)}
    values["overlap_copy"] = not published
    if published:
        values |= {
            "neuron_gbs": preset.published_neuron_gbs,
            "ssd_gbs": preset.published_ssd_gbs,
            "eager_layer_s": preset.published_eager_layer_s,
        }
    return NeuronConfig(**values)
