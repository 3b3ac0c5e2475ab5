"""What holds for every placement that the linear program finds."""

import itertools

import pytest
from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hetmem.policy.placement import Choice, LinearPlacement, PlacementView

PLACES = ("gpu", "host", "disk")
STREAMS = ("h2d", "ssd", "kernels")
GRID = [(a / 4, b / 4, (4 - a - b) / 4) for a in range(5) for b in range(5 - a)]

seconds = st.floats(0.0, 10.0).map(lambda s: round(s, 3))
gigabytes = st.floats(0.5, 200.0).map(lambda n: round(n, 2) * 1e9)


@st.composite
def choices(draw):
    n_bytes = draw(gigabytes)
    buffer = n_bytes * draw(st.floats(0.0, 0.1))
    return {
        "gpu": Choice({"gpu": n_bytes}, {"kernels": draw(seconds)}),
        "host": Choice({"host": n_bytes, "gpu": buffer}, {"h2d": draw(seconds)}),
        "disk": Choice({"host": buffer, "gpu": buffer}, {"h2d": draw(seconds), "ssd": draw(seconds)}),
    }


@st.composite
def views(draw):
    kinds = draw(st.integers(1, 3))
    return PlacementView(
        {f"kind{k}": draw(choices()) for k in range(kinds)},
        {"gpu": draw(gigabytes), "host": draw(gigabytes)},
        {stream: draw(seconds) for stream in STREAMS},
    )


def fits(view, fractions):
    return all(n <= view.capacity_bytes[memory] for memory, n in view.used_bytes(fractions).items())


@settings(max_examples=60, deadline=None)
@given(views())
def test_fractions_are_whole_and_fit(view):
    found = LinearPlacement().decide(view)
    assume(found is not None)
    for shares in found.fractions.values():
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-12)
        assert all(0.0 <= share <= 1.0 for share in shares.values())
    assert fits(view, found.fractions)
    assert found.layer_s == max(view.stream_s(found.fractions).values())


@settings(max_examples=40, deadline=None)
@given(views(), st.floats(1.0, 4.0))
def test_more_gpu_memory_is_never_slower(view, factor):
    found = LinearPlacement().decide(view)
    assume(found is not None)
    larger = evolve(view, capacity_bytes=view.capacity_bytes | {"gpu": view.capacity_bytes["gpu"] * factor})
    roomier = LinearPlacement().decide(larger)
    assert roomier is not None
    assert roomier.layer_s <= found.layer_s * (1 + 1e-5) + 1e-9


@settings(max_examples=25, deadline=None)
@given(views())
def test_no_point_of_a_grid_is_faster(view):
    found = LinearPlacement().decide(view)
    # The headroom that the program leaves in each capacity is taken from the grid's as well.
    tight = evolve(view, capacity_bytes={m: n * (1 - 2e-5) for m, n in view.capacity_bytes.items()})
    points = itertools.product(GRID, repeat=len(view.choices))
    fitting = [
        fractions
        for point in points
        if fits(
            tight, fractions := {k: dict(zip(PLACES, p, strict=True)) for k, p in zip(view.choices, point, strict=True)}
        )
    ]
    if found is None:
        assert not fitting
    else:
        fastest = min((view.layer_s(fractions) for fractions in fitting), default=float("inf"))
        assert found.layer_s <= fastest * (1 + 1e-6) + 1e-9


@settings(max_examples=20, deadline=None)
@given(views())
def test_equal_views_get_equal_placements(view):
    assert LinearPlacement().decide(view) == LinearPlacement().decide(evolve(view))
