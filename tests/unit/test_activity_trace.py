"""Recorded activity: both file forms, groups, the end of a trace, and every refusal by name."""

import numpy as np
import pytest

from hetmem.errors import WorkloadError
from hetmem.model.activity_trace import RecordedActivity, read_activity
from hetmem.model.bits import unpack


@pytest.fixture
def bits():
    return np.random.default_rng(3).random((6, 2, 70)) < 0.2


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_booleans_and_packed_bits_read_alike(tmp_path, bits):
    plain = read_activity(write(tmp_path / "a.npz", mlp=bits))
    packed = np.packbits(bits, axis=-1, bitorder="little")
    other = read_activity(write(tmp_path / "b.npz", mlp=packed, mlp_neurons=70))
    for token in range(6):
        words = plain.next_token()["mlp"]
        assert np.array_equal(words, other.next_token()["mlp"])
        assert np.array_equal(unpack(words, 70), bits[token])
    assert plain.n_units == {"mlp": 70}


def test_a_group_fires_when_any_of_it_does(bits):
    source = RecordedActivity("trace", {"mlp": bits}, group=10)
    assert np.array_equal(unpack(source.next_token()["mlp"], 7), bits[0].reshape(2, 7, 10).any(axis=-1))


def test_end_of_trace_is_an_error_unless_it_repeats(bits):
    once, again = (
        RecordedActivity("trace", {"mlp": bits}),
        RecordedActivity("trace", {"mlp": bits}, repeat=True),
    )
    for _ in range(6):
        once.next_token()
        first = again.next_token()
    with pytest.raises(WorkloadError, match="trace: has 6 tokens"):
        once.next_token()
    again.next_token()
    assert first is not None
    assert np.array_equal(unpack(again.next_token()["mlp"], 70), bits[1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds no activity"),
        ({"mlp": np.zeros((2, 3), bool)}, r"mlp: expected \[token, layer, neuron\], not 2 dimensions"),
        ({"mlp": np.zeros((2, 3, 8))}, "mlp: expected booleans, or uint8 packed bits, not float64"),
        ({"mlp": np.zeros((2, 3, 8), np.uint8)}, "mlp: packed bits need an integer scalar mlp_neurons"),
        ({"mlp": np.zeros((2, 3, 8), np.uint8), "mlp_neurons": 70}, "mlp: 8 bytes cannot hold 70 neurons"),
        ({"mlp": np.zeros((0, 3, 8), bool)}, "holds no token"),
        ({"mlp": np.zeros((2, 3, 0), bool)}, "mlp: 0 neurons cannot be taken"),
        ({"mlp": np.zeros((2, 3, 8), bool), "qkv": np.zeros((3, 3, 8), bool)}, "blocks differ in tokens"),
        ({"mlp": np.zeros((2, 3, 8), bool), "qkv_neurons": 8}, "qkv_neurons: has no array"),
    ],
)
def test_bad_traces_are_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(WorkloadError, match=message):
        read_activity(write(tmp_path / "t.npz", **arrays))


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "t.npz").write_text("tokens")
    np.save(tmp_path / "t.npy", np.zeros(3))
    for name in ("t.npz", "t.npy", "absent.npz"):
        with pytest.raises(WorkloadError, match=name):
            read_activity(tmp_path / name)
