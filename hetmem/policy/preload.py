"""SSD preloading: which layer to ask for when compute reaches one, and what that can hide at best.

Modelled: M2Cache's preloader (arXiv 2410.14740), layer-wise and W layers ahead, running on across tokens.
Positions count layers since the first token: ``token * n_layers + layer``.

Ignored: the size and the time of a read (the SSD's affair).
"""

from attrs import field, frozen, validators


@frozen
class PreloadView:
    """What the preloader sees: the position compute has just reached, 0 at the start of a run."""

    position: int


@frozen
class LayersAhead:
    """Ask for the layer ``window`` positions ahead; at position 0 for all up to it.

    Every position is thus asked for exactly once, in order. A window of 0 reads a layer only when it is
    needed.
    """

    window: int = field(default=2, validator=validators.ge(0))

    def decide(self, view: PreloadView) -> tuple[int, ...]:
        """Return the positions to ask for now."""
        if view.position == 0:
            return tuple(range(self.window + 1))
        return (view.position + self.window,)


def slowdown_bound(read_ratio: float, n_layers: int, n_fixed: int) -> float:
    """Return the least steady-state slow-down, whatever the window: ``max(1, rho (1 - n/L))``.

    ``read_ratio`` rho is the time to read one layer by the time to compute one. Per token the SSD must
    deliver the layers that are not fixed, and reading further ahead does not lessen that.
    """
    return max(1.0, read_ratio * (1 - n_fixed / n_layers))
