"""The layer cache in DRAM: a fixed area that is never evicted and a FIFO ring for the layers ahead.

Modelled: M2Cache's two-level DRAM cache (arXiv 2410.14740). The published fixed area is the first n layers;
spreading the same number over the model (``interleaved``) leaves the SSD no long pause and is offered beside
it.

Ignored: what a read brings of a layer, and when it lands; the system holds back the reuse of a slot until the
layer in it has been computed.
"""

from attrs import Factory, define, field, frozen

from hetmem.errors import ConfigError

FIXED_MODES = ("contiguous", "interleaved")


def fixed_layers(n_layers: int, n_fixed: int, mode: str) -> tuple[int, ...]:
    """Return the layers of the fixed area, ascending: exactly ``n_fixed`` of them.

    ``contiguous`` takes the first; ``interleaved`` takes layer 0 and every l at which ``l * n_fixed //
    n_layers`` advances, so that no two gaps differ by more than one layer.

    Raises
    ------
    ConfigError
        When the number does not fit the model or the mode is unknown.
    """
    if not 0 <= n_fixed <= n_layers:
        raise ConfigError("n_fixed", f"expected 0 to {n_layers} layers, not {n_fixed}")
    if mode == "contiguous":
        return tuple(range(n_fixed))
    if mode == "interleaved":
        return tuple(
            layer for layer in range(n_layers) if layer * n_fixed // n_layers != (layer - 1) * n_fixed // n_layers
        )
    raise ConfigError("mode", f"expected one of {', '.join(FIXED_MODES)}, not {mode!r}")


@frozen
class LayerView:
    """What the layer cache sees: the layers that must be in DRAM next, in the order of their need."""

    wanted: tuple[int, ...]


@frozen
class LayerDecision:
    """Layers found and to be read, in the order of need; ``ring`` afterwards, oldest first.

    ``evicts`` pairs with the loads that overwrite a slot, in the order of the overwriting.
    """

    hits: tuple[int, ...]
    loads: tuple[int, ...]
    evicts: tuple[int, ...]
    ring: tuple[int, ...]


@define
class LayerCache:
    """Fixed layers plus a FIFO ring: ``decide`` is repeatable, ``commit`` makes it so.

    Parameters
    ----------
    n_layers, n_fixed : int
        Layers of the model and of the fixed area.
    ring_slots : int
        Layers that the dynamic area holds; at least 1 unless every layer is fixed.
    mode : str
        One of :data:`FIXED_MODES`.
    """

    n_layers: int
    n_fixed: int
    ring_slots: int
    mode: str = "contiguous"
    _fixed: frozenset[int] = field(init=False, repr=False)
    _ring: tuple[int, ...] = field(init=False, repr=False, default=Factory(tuple))

    def __attrs_post_init__(self) -> None:
        self._fixed = frozenset(fixed_layers(self.n_layers, self.n_fixed, self.mode))
        if self.ring_slots < (1 if self.n_fixed < self.n_layers else 0):
            raise ConfigError("ring_slots", f"expected a slot for the layers that are not fixed, not {self.ring_slots}")

    def decide(self, view: LayerView) -> LayerDecision:
        """Return which of the wanted layers must be read and what they overwrite.

        Raises
        ------
        ConfigError
            When a layer is not one of the model's.
        """
        ring = list(self._ring)
        hits, loads, evicts = [], [], []
        for layer in view.wanted:
            if not 0 <= layer < self.n_layers:
                raise ConfigError("wanted", f"expected layers 0 to {self.n_layers - 1}, not {layer}")
            if layer in self._fixed or layer in ring:
                hits.append(layer)
                continue
            if len(ring) == self.ring_slots:
                evicts.append(ring.pop(0))
            ring.append(layer)
            loads.append(layer)
        return LayerDecision(tuple(hits), tuple(loads), tuple(evicts), tuple(ring))

    def commit(self, decision: LayerDecision) -> None:
        """Apply ``decision``, made by :meth:`decide` on the present state."""
        self._ring = decision.ring
