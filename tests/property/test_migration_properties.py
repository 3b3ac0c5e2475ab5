"""Migration over random placements: every page ends where it belongs, and memory is never over-full on the way."""

from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from hetmem.errors import CapacityError
from hetmem.policy.kernel_mapping import SUBLAYERS
from hetmem.system.migration import change, units_of

UNIT = 7


@st.composite
def moves(draw: Any) -> tuple[Any, ...]:
    """Two splits of the same three tensors, of which attention may shrink and grow."""
    sizes = {name: draw(st.integers(0, 60)) for name in SUBLAYERS}
    kept_size = {**sizes, "attention": draw(st.integers(0, sizes["attention"]))}
    new_size = {**kept_size, "attention": kept_size["attention"] + draw(st.integers(0, 30))}
    parts = {name: (draw(st.integers(0, 4)), draw(st.integers(0, 4))) for name in SUBLAYERS}

    def split(size: dict[str, int], which: int) -> dict[str, tuple[int, int]]:
        fast = {name: size[name] * parts[name][which] // 4 for name in SUBLAYERS}
        return {name: (fast[name], size[name] - fast[name]) for name in SUBLAYERS}

    return split(sizes, 0), split(kept_size, 0), split(kept_size, 1), split(new_size, 1), draw(st.integers(1, 4))


def _total(placement: Any, side: int, layers: int) -> int:
    return layers * sum(pair[side] for pair in units_of(placement, UNIT).values())


@given(moves(), st.integers(0, 20), st.integers(0, 20))
def test_memory_is_never_over_full_and_every_copy_can_begin(case: Any, spare_fast: int, spare_slow: int) -> None:
    held, kept, moved, new, layers = case
    capacity = tuple(
        max(_total(held, side, layers), _total(new, side, layers)) + spare
        for side, spare in ((0, spare_fast), (1, spare_slow))
    )
    try:
        todo = change(
            held, kept, moved, new, layers=layers, unit_bytes=UNIT, capacity=(capacity[0], capacity[1]), fixed=(0, 0),
            copies=True, names=("fast", "slow"),
        )  # fmt: skip
    except CapacityError:
        event("both memories too full to begin")
        return
    for side in (0, 1):
        was = _total(held, side, layers)
        assert todo.units[side] == _total(new, side, layers)
        assert was + todo.reserved[side] - todo.released[side] == todo.units[side]
        assert was + todo.reserved[side] <= capacity[side]
    _run(case, capacity, todo)


def _run(case: Any, capacity: Any, todo: Any) -> None:
    """Play the copies: pages are taken when their waits are over and freed when a copy has ended."""
    _, kept, _, new, layers = case
    base, after = units_of(kept, UNIT), units_of(new, UNIT)
    used = [
        layers * sum(
            base[n][s] if after[n][s] >= base[n][s] or (n, 1 - s) in todo.copied else after[n][s] for n in SUBLAYERS
        )
        for s in (0, 1)
    ]  # fmt: skip
    waiting = [
        (layer, name, side, after[name][side] - base[name][side])
        for layer in range(layers) for name in SUBLAYERS for side in (0, 1) if after[name][side] > base[name][side]
    ]  # fmt: skip
    leaving = {
        (layer, name, side): base[name][side] - after[name][side]
        for layer in range(layers) for name, to in todo.copied for side in (1 - to,)
    }  # fmt: skip
    ended: set[tuple[int, str, int]] = set()
    event("waits for frames" if todo.waits else "no waits")
    taken: set[tuple[int, str, int]] = set()
    for _ in range(2 * len(waiting) + len(leaving) + 1):
        for layer, name, side, pages in waiting:
            tensor = (layer, name, side)
            if tensor not in taken and (tensor not in todo.waits or todo.waits[tensor] in ended):
                taken.add(tensor)
                used[side] += pages
                assert used[side] <= capacity[side]
        for (layer, name, side), pages in leaving.items():
            arrives = (layer, name, 1 - side)
            landed = arrives in taken or after[name][1 - side] <= base[name][1 - side]
            if (layer, name, side) not in ended and landed:
                ended.add((layer, name, side))
                used[side] -= max(0, pages)
                break  # one at a time, so that waits count
    assert len(taken) == len(waiting)
    assert ended == set(leaving)
