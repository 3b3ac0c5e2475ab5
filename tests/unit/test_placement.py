"""The linear program of placement on problems small enough to solve by hand."""

import pytest

from hetmem.policy.placement import Choice, LinearPlacement, PlacementView

CLOSE = 1e-4  # the headroom in every capacity


def decide(choices, capacity_bytes, base_s):
    return LinearPlacement().decide(PlacementView(choices, capacity_bytes, base_s))


def test_what_does_not_fit_on_the_gpu_is_streamed():
    weights = {"gpu": Choice({"gpu": 100.0}, {}), "host": Choice({"host": 100.0}, {"link": 10.0})}
    found = decide({"weights": weights}, {"gpu": 30.0, "host": 1000.0}, {"link": 0.0})
    assert found.fractions["weights"] == pytest.approx({"gpu": 0.3, "host": 0.7}, abs=CLOSE)
    assert found.layer_s == pytest.approx(7.0, rel=CLOSE)


def test_two_streams_are_balanced():
    data = {"host": Choice({}, {"link": 1.0}), "disk": Choice({}, {"ssd": 3.0})}
    found = decide({"data": data}, {}, {"link": 0.0, "ssd": 0.0})
    assert found.fractions["data"] == pytest.approx({"host": 0.75, "disk": 0.25})
    assert found.layer_s == pytest.approx(0.75)


def test_what_a_stream_does_anyhow_counts():
    data = {"host": Choice({}, {"link": 1.0}), "disk": Choice({}, {"ssd": 3.0})}
    found = decide({"data": data}, {}, {"link": 1.0, "ssd": 0.0})
    assert found.fractions["data"] == pytest.approx({"host": 0.5, "disk": 0.5})
    assert found.layer_s == pytest.approx(1.5)


def test_memory_goes_to_the_kind_that_gains_most_by_it():
    def kind(seconds):
        return {"gpu": Choice({"gpu": 10.0}, {}), "host": Choice({}, {"link": seconds})}

    found = decide({"cold": kind(1.0), "hot": kind(5.0)}, {"gpu": 10.0}, {"link": 0.0})
    assert found.fractions["hot"]["gpu"] == pytest.approx(1.0, abs=CLOSE)
    assert found.fractions["cold"]["gpu"] == pytest.approx(0.0, abs=CLOSE)


def test_of_equally_fast_placements_the_one_with_least_work_is_taken():
    data = {"near": Choice({}, {"link": 1.0}), "far": Choice({}, {"link": 2.0, "ssd": 2.0})}
    found = decide({"data": data}, {}, {"kernels": 10.0, "link": 0.0, "ssd": 0.0})
    assert found.layer_s == pytest.approx(10.0)
    assert found.fractions["data"] == {"near": 1.0, "far": 0.0}


def test_buffers_in_another_memory_take_room_too():
    weights = {"gpu": Choice({"gpu": 100.0}, {}), "host": Choice({"host": 100.0, "gpu": 20.0}, {"link": 10.0})}
    found = decide({"weights": weights}, {"gpu": 60.0}, {"link": 0.0})
    assert found.fractions["weights"]["gpu"] == pytest.approx(0.5, abs=CLOSE)


def test_nothing_is_returned_when_nothing_fits():
    weights = {"gpu": Choice({"gpu": 100.0}, {}), "host": Choice({"host": 100.0}, {"link": 10.0})}
    assert decide({"weights": weights}, {"gpu": 30.0, "host": 60.0}, {"link": 0.0}) is None
    assert decide({"weights": {"gpu": Choice({"gpu": 1.0}, {})}}, {"gpu": 0.0}, {"link": 0.0}) is None


def test_an_empty_memory_is_left_empty():
    weights = {"gpu": Choice({"gpu": 100.0}, {}), "host": Choice({"host": 100.0}, {"link": 10.0})}
    found = decide({"weights": weights}, {"gpu": 0.0, "host": 200.0}, {"link": 0.0})
    assert found.fractions["weights"] == {"gpu": 0.0, "host": 1.0}


def test_microseconds_and_terabytes_do_not_upset_the_solver():
    weights = {"gpu": Choice({"gpu": 1e12}, {}), "host": Choice({"host": 1e12}, {"link": 1e-6})}
    found = decide({"weights": weights}, {"gpu": 2e10, "host": 2e12}, {"link": 0.0})
    assert found.fractions["weights"]["gpu"] == pytest.approx(0.02, abs=CLOSE)
    assert found.layer_s == pytest.approx(0.98e-6, rel=CLOSE)
