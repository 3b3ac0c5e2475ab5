"""What one placement needs to become another, against small cases worked out by hand."""

from typing import Any

import pytest

from hetmem.errors import CapacityError
from hetmem.system.migration import Change, Placement, change, units_of

NAMES = ("HBM", "LPDDR")


def placed(attention: tuple[int, int], qkv: tuple[int, int] = (0, 0), fc: tuple[int, int] = (0, 0)) -> Placement:
    return {"attention": attention, "qkv": qkv, "fc": fc}


def changed(held: Placement, kept: Placement, moved: Placement, new: Placement, **given: Any) -> Change:
    settings: dict[str, Any] = {
        "layers": 2, "unit_bytes": 10, "capacity": (100, 100), "fixed": (0, 0), "copies": True, "names": NAMES,
    } | given  # fmt: skip
    return change(held, kept, moved, new, **settings)


def test_units_round_up_per_tensor() -> None:
    assert units_of(placed((1, 10), (11, 0)), 10) == {"attention": (1, 1), "qkv": (2, 0), "fc": (0, 0)}


def test_growth_within_the_last_page_changes_nothing() -> None:
    before, after = placed((31, 5)), placed((39, 9))
    todo = changed(before, before, before, after)
    assert todo == Change({}, {}, 0, (0, 0), (0, 0), (8, 2))


def test_growth_takes_pages_of_every_layer_and_writes_their_entries() -> None:
    before, after = placed((31, 5)), placed((41, 15))
    todo = changed(before, before, before, after)
    assert (todo.reserved, todo.released, todo.entries) == ((2, 2), (0, 0), 4)
    assert (todo.copied, todo.waits) == ({}, {})


def test_what_changes_sides_is_reserved_at_once_and_released_after() -> None:
    before = placed((40, 0), fc=(60, 40))
    after = placed((40, 0), fc=(35, 65))
    todo = changed(before, before, after, after)
    assert todo.copied == {("fc", 1): 3}  # 25 bytes in pages of 10
    assert todo.entries == 2 * (2 + 3)
    assert todo.reserved == (0, 2 * 3)
    assert todo.released == (2 * 2, 0)
    assert todo.waits == {}


def test_without_copies_what_changes_sides_is_there_at_once() -> None:
    before, after = placed((40, 0), fc=(60, 40)), placed((40, 0), fc=(35, 65))
    todo = changed(before, before, after, after, copies=False)
    assert todo.copied == {}
    assert todo.units == (2 * (4 + 4), 2 * 7)


def test_pages_of_sequences_that_left_are_free_before_anything_moves() -> None:
    held, kept = placed((80, 0)), placed((40, 0))
    new = placed((50, 0), fc=(40, 0))
    todo = changed(held, kept, placed((40, 0), fc=(40, 0)), new, capacity=(18, 100))
    # 2 x 4 pages survive; 2 x (1 + 4) are wanted of the ten that are then free.
    assert todo.waits == {}
    assert todo.copied == {("fc", 0): 4}
    assert todo.reserved[0] == 18 - 16


def test_new_pages_wait_for_frames_that_leave_in_the_order_of_layers() -> None:
    before = placed((30, 0), fc=(60, 0))
    kept, moved = before, placed((30, 0), fc=(40, 20))
    new = placed((40, 0), fc=(40, 20))
    todo = changed(before, kept, moved, new, capacity=(18, 100))
    # HBM is full with 2 x 9 pages. Each layer's attention wants one page, each copy of FC frees two.
    assert todo.waits == {(0, "attention", 0): (0, "fc", 0), (1, "attention", 0): (0, "fc", 0)}
    assert todo.reserved == (0, 4)
    assert todo.released == (2, 0)


def test_a_tensor_that_finds_free_frames_does_not_wait() -> None:
    before = placed((30, 0), fc=(60, 0))
    new = placed((40, 0), fc=(40, 20))
    todo = changed(before, before, placed((30, 0), fc=(40, 20)), new, capacity=(19, 100))
    assert todo.waits == {(1, "attention", 0): (0, "fc", 0)}


def test_a_swap_goes_out_first_where_the_fast_side_is_full() -> None:
    before, after = placed((0, 0), (50, 0), (0, 50)), placed((0, 0), (0, 50), (50, 0))
    todo = changed(before, before, after, after, capacity=(10, 100))
    assert todo.copied == {("qkv", 1): 5, ("fc", 0): 5}
    assert todo.waits == {(0, "fc", 0): (0, "qkv", 0), (1, "fc", 0): (1, "qkv", 0)}


def test_a_swap_between_two_full_memories_cannot_begin() -> None:
    before, after = placed((0, 0), (50, 0), (0, 50)), placed((0, 0), (0, 50), (50, 0))
    with pytest.raises(CapacityError, match="HBM"):
        changed(before, before, after, after, capacity=(10, 10))


def test_fixed_units_take_room_and_stay() -> None:
    before, after = placed((30, 0)), placed((40, 0))
    todo = changed(before, before, before, after, fixed=(3, 1), capacity=(11, 10))
    assert todo.units == (3 + 8, 1)
    assert todo.reserved == (2, 0)
