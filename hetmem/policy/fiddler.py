"""Fiddler: each expert's tokens run on the CPU where its weights lie, or on the GPU after copying them.

Modelled: the execution decision and the placement of Fiddler (ICLR 2025, arXiv 2402.07033). The most popular
experts are pinned in GPU memory; for every other expert the CPU's compute time for its number of tokens is
compared with the copy plus the GPU's compute time, expert by expert.

Ignored, as in the decision it models: that experts on one side wait for each other, and prefetching.
"""

from collections.abc import Callable, Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from hetmem.errors import ConfigError


@frozen(eq=False)
class ExpertView:
    """One layer's experts: tokens of each, compute times for them, copy time, and which are pinned."""

    tokens: NDArray[np.int64]
    cpu_s: NDArray[np.float64]
    gpu_s: NDArray[np.float64]
    load_s: float
    pinned: NDArray[np.bool_]

    def __attrs_post_init__(self) -> None:
        if not self.tokens.shape == self.cpu_s.shape == self.gpu_s.shape == self.pinned.shape:
            raise ConfigError("tokens", "expected tokens, cpu_s, gpu_s and pinned of equal length")


@frozen(eq=False)
class ExpertDecision:
    """Where each expert with tokens runs; ``copied`` are those of ``on_gpu`` that are not pinned."""

    on_cpu: NDArray[np.bool_]
    on_gpu: NDArray[np.bool_]
    copied: NDArray[np.bool_]


@frozen
class CpuOrGpu:
    """Fiddler's rule: the CPU where it is strictly faster than the GPU, the copy included."""

    def decide(self, view: ExpertView) -> ExpertDecision:
        """Return the side of each expert that has tokens."""
        busy = view.tokens > 0
        copy_s = np.where(view.pinned, 0.0, view.load_s)
        on_cpu = busy & (view.cpu_s < copy_s + view.gpu_s)
        on_gpu = busy & ~on_cpu
        return ExpertDecision(on_cpu, on_gpu, on_gpu & ~view.pinned)


def crossover_tokens(
    cpu_s: Callable[[int], float], gpu_s: Callable[[int], float], load_s: float, most: int
) -> int | None:
    """Return the fewest tokens, up to ``most``, that send an unpinned expert to the GPU; else None."""
    return next((n for n in range(1, most + 1) if cpu_s(n) >= load_s + gpu_s(n)), None)


def pin_popular(popularity: Sequence[float], slots: int) -> tuple[int, ...]:
    """Return the ``slots`` most popular experts, ascending; of equals the lower index.

    Raises
    ------
    ConfigError
        When there are fewer experts than slots, or slots are negative.
    """
    if not 0 <= slots <= len(popularity):
        raise ConfigError("slots", f"expected 0 to {len(popularity)} experts, not {slots}")
    ranked = sorted(range(len(popularity)), key=lambda expert: (-popularity[expert], expert))
    return tuple(sorted(ranked[:slots]))
