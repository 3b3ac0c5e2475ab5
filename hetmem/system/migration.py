"""What changes when one placement of tensors over two sides replaces another: copies, frames, and who waits.

A placement gives, for each sub-layer and side, the bytes of the tensor of one layer; all layers are alike. Memory is
counted in *units*: pages, or bytes where memory is not paged. Pages that a tensor gains need free frames: where the
side has too few, they wait for frames of pages on their way out, in the order of layers. Pure.
From: H2M2, arXiv 2504.14893, memory abstraction; which copy waits for which is ours.
"""

from collections.abc import Mapping

from attrs import frozen

from hetmem.errors import CapacityError
from hetmem.policy.kernel_mapping import SIDES, SUBLAYERS

#: Bytes of one layer's tensor on the fast and on the slow side, by sub-layer.
Placement = Mapping[str, tuple[int, int]]
#: A tensor of one side: layer, sub-layer, side.
Tensor = tuple[int, str, int]


@frozen
class Change:
    """What one step has to do before its kernels find their pages.

    Attributes
    ----------
    copied
        Units that each layer copies, by (sub-layer, side that they go to); only those that are.
    waits
        Tensors whose new pages wait for frames, and the tensor (of the same side) whose copy away frees them.
    entries
        Table entries written on both sides.
    reserved, released
        Units of each side taken at the start of the step, and given back at its end.
    units
        Units of each side in the end.
    """

    copied: Mapping[tuple[str, int], int]
    waits: Mapping[Tensor, Tensor]
    entries: int
    reserved: tuple[int, int]
    released: tuple[int, int]
    units: tuple[int, int]


def units_of(placement: Placement, unit_bytes: int) -> dict[str, tuple[int, int]]:
    """Return the units of one layer's tensors."""
    return {name: (-(-fast // unit_bytes), -(-slow // unit_bytes)) for name, (fast, slow) in placement.items()}


def change(
    held: Placement, kept: Placement, moved: Placement, new: Placement, *, layers: int, unit_bytes: int,
    capacity: tuple[int, int], fixed: tuple[int, int], copies: bool, names: tuple[str, str],
) -> Change:  # fmt: skip
    """Return what turns one placement into another.

    Parameters
    ----------
    held
        The placement of the step before.
    kept
        What of it is still wanted, where it is: without the sequences that have left.
    moved
        The same bytes where the new mapping wants them.
    new
        The new placement, with what this step appends.
    layers, unit_bytes
        Layers, and the size of a unit.
    capacity, fixed
        Units of each side, and those that never move.
    copies
        Whether what changes sides is copied; otherwise it is there at once.
    names
        Names of the two memories, for errors.

    Raises
    ------
    CapacityError
        When both sides lack frames, so that no copy can begin.
    """
    before, after = units_of(held, unit_bytes), units_of(new, unit_bytes)
    base = units_of(kept, unit_bytes)
    copied = {}
    for name in SUBLAYERS if copies else ():
        gained = moved[name][0] - kept[name][0]
        if gained:
            copied[name, 0 if gained > 0 else 1] = -(-abs(gained) // unit_bytes)
    reserved, released, totals, short, entries = [], [], [], [], 0
    waits: dict[Tensor, Tensor] = {}
    for side in range(len(SIDES)):
        was = total = left = fixed[side]
        wanted = 0
        gains: dict[str, int] = {}
        leaving: dict[str, int] = {}
        for name in SUBLAYERS:
            here, stays = after[name][side], base[name][side]
            gains[name] = gain = here - stays
            was += layers * before[name][side]
            total += layers * here
            entries += layers * abs(here - before[name][side])
            if gain > 0:
                wanted += layers * gain
            elif gain < 0 and (name, 1 - side) in copied:
                leaving[name] = -gain
            left += layers * (stays if gain > 0 or name in leaving else here)
        peak = max(total, min(capacity[side], left + wanted))
        free = capacity[side] - left
        if wanted > free:
            short.append((names[side], wanted * unit_bytes, free * unit_bytes, capacity[side] * unit_bytes))
            waits |= _frame_waits(gains, leaving, layers, free, side)
        reserved.append(max(0, peak - was))
        released.append(was + reserved[side] - total)
        totals.append(total)
    if len(short) == len(SIDES):
        raise CapacityError(*short[0], ())
    return Change(
        copied, waits, entries, (reserved[0], reserved[1]), (released[0], released[1]), (totals[0], totals[1])
    )


def _frame_waits(
    gains: Mapping[str, int], leaving: Mapping[str, int], layers: int, free: int, side: int
) -> dict[Tensor, Tensor]:
    """Return for each tensor that finds too few free frames the one whose leaving gives it enough."""
    exits = [(layer, name, pages) for layer in range(layers) for name, pages in leaving.items()]
    waits: dict[Tensor, Tensor] = {}
    wanted, freed, at = 0, free, -1
    for layer in range(layers):
        for name, gain in gains.items():
            if gain <= 0:
                continue
            wanted += gain
            while wanted > freed and at + 1 < len(exits):
                at += 1
                freed += exits[at][2]
            if at >= 0:
                waits[layer, name, side] = (exits[at][0], exits[at][1], side)
    return waits
