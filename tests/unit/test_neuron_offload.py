"""Systems that fetch single neurons: what is copied, cached, read ahead, dropped and refused."""

import attrs
import pytest

from hetmem import fixed, simulate
from hetmem.errors import CapacityError, ConfigError, UnsupportedError
from hetmem.hardware.config import machine
from hetmem.model import load_model
from hetmem.policy.neuron_cache import AtomicLru

MODEL = attrs.evolve(load_model("llama2-7b"), n_layers=6, d_ff=1000, vocab=64)
LAYER = (MODEL.layer_params["up"] + MODEL.layer_params["down"]) * 2  # FP16 bytes of a layer's neurons
ACTIVE, OUTPUT = 700, 9


def run(settings=None, *, system="m2cache", policies=None, assumptions="as-published", batch=1, output=OUTPUT, **more):
    given = {f"machine.neurons.{key}": value for key, value in (settings or {}).items()}
    return simulate(
        system, model=MODEL, workload=fixed(8, output, batch), assumptions=assumptions, settings=given,
        policies=policies or {}, **more,
    )  # fmt: skip


def decode_s(found):
    return float(found.latencies_s()["tpot_s"].mean())


def hits(found):
    return found.counters["neuron_hits"] / found.counters["neuron_accesses"]


def test_hit_ratio_of_adjacent_token_update_is_the_overlap_of_the_sets():
    found = run()
    assert found.counters["neuron_accesses"] == (OUTPUT - 1) * 6 * ACTIVE
    assert hits(found) == pytest.approx(0.8, abs=1e-12)
    assert found.counters["neuron_accesses"] == found.counters["neuron_hits"] + found.counters["neuron_fetches"]


@pytest.mark.parametrize("persistence", [0.6, 0.9, 1.0])
def test_hit_ratio_follows_the_activations(persistence):
    assert hits(run({"persistence": persistence})) == pytest.approx(persistence, abs=1e-3)


def test_caches_differ_as_their_policies_do():
    ratio = {name: hits(run({"cache_capacity": 1.2}, policies={"neuron_cache": name}))
             for name in ("atu", "lru", "lfu", "sliding-window", "lru-per-access", "none")}  # fmt: skip
    assert ratio["none"] == 0
    assert ratio["lru"] > ratio["atu"] == pytest.approx(0.8)
    assert ratio["lru-per-access"] < ratio["lru"]
    assert min(ratio["lfu"], ratio["sliding-window"]) >= ratio["atu"]


def test_a_cache_object_takes_the_role():
    assert hits(run(policies={"neuron_cache": AtomicLru(1000, 1000)})) > 0.9


def test_the_next_tokens_copies_are_the_missing_neurons_in_the_formats_of_the_split():
    found, more = run(), run(output=OUTPUT + 1)
    copied = more.counters["neuron_bytes"] - found.counters["neuron_bytes"]
    assert copied == pytest.approx(6 * 0.2 * ACTIVE * LAYER / 1000 * 0.714, rel=0.01)


def test_a_step_is_the_sum_of_its_parts_in_series():
    copy_s = 0.2 * ACTIVE / 1000 * LAYER * 0.714 / 20.35e9
    assert decode_s(run()) == pytest.approx(6 * (2.23e-3 + 1.0625e-3 + copy_s), rel=2e-3)


def test_overlap_hides_the_shorter_of_copies_and_layers():
    slow = {"neuron_gbs": 0.002}
    serial, overlapped = run(slow), run({**slow, "overlap_copy": True})
    copy_s = decode_s(serial) - 6 * (2.23e-3 + 1.0625e-3)
    assert decode_s(overlapped) == pytest.approx(copy_s, rel=0.2)
    assert decode_s(run({"overlap_copy": True})) == pytest.approx(6 * (2.23e-3 + 1.0625e-3), rel=0.02)


def test_without_mixed_precision_the_dense_matrices_are_streamed_and_no_host_time_is_taken():
    found = run({"mixed_precision": False})
    assert decode_s(found) == pytest.approx(6 * (1.0625e-3 + LAYER / 20.35e9), rel=2e-3)
    assert found.busy_ps["cpu"] == 0
    assert found.counters["neuron_accesses"] == 0


@pytest.mark.parametrize("layers", [1, 2, 6])
def test_unrolled_layers_take_the_same_time(layers):
    whole, single = run({"walked_layers": layers}), simulate(
        "m2cache", model=MODEL, workload=fixed(8, OUTPUT, 1), assumptions="as-published",
        settings={"machine.neurons.walked_layers": layers, "serving.unroll_layers": True},
    )  # fmt: skip
    # Durations are rounded up once per task: a tick per layer and leg at most.
    assert abs(whole.elapsed_ps - single.elapsed_ps) <= 6 * 3 * OUTPUT
    assert dict(whole.counters)["neuron_fetches"] == single.counters["neuron_fetches"]


def test_a_run_repeats_and_the_seed_matters_only_where_sets_do():
    lru = {"policies": {"neuron_cache": "lru"}, "settings": {"cache_capacity": 1.2}}
    assert run(**lru).elapsed_ps == run(**lru).elapsed_ps
    assert run(**lru, seed=1).counters["neuron_hits"] != run(**lru).counters["neuron_hits"]
    assert run(seed=1).elapsed_ps == run().elapsed_ps


# -- SSD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "stored"), [("fp16_master", 1.0), ("multi_copy", 1.75), ("static_mixed", 0.714)])
def test_a_read_brings_a_stored_layer(layout, stored):
    settings = {"fixed_bytes": 0, "storage_layout": layout, "preload_window": 0}
    found, more = run(settings), run(settings, output=OUTPUT + 1)
    read = more.counters["ssd_bytes_read"] - found.counters["ssd_bytes_read"]
    assert read == pytest.approx(6 * stored * LAYER, rel=1e-3)
    assert found.counters["ssd_bytes_written"] == 0
    assert found.footprint.ssd["endurance_share"] == 0


def test_a_read_of_missing_neurons_brings_only_them():
    settings = {"fixed_bytes": 0, "ssd_unit": "missing", "preload_window": 1}
    found, more = run(settings), run(settings, output=OUTPUT + 1)
    read = more.counters["ssd_bytes_read"] - found.counters["ssd_bytes_read"]
    assert read == pytest.approx(6 * 0.2 * ACTIVE / 1000 * 0.714 * LAYER, rel=0.01)


def test_fixed_layers_are_never_read():
    found = run({"fixed_bytes": 4 * LAYER, "preload_window": 1})
    assert found.configuration["decisions"]["fixed_layers"] == 4
    whole = run({"fixed_bytes": 0, "preload_window": 1})
    assert found.counters["ssd_bytes_read"] == pytest.approx(whole.counters["ssd_bytes_read"] / 3, rel=0.1)
    assert run({"fixed_bytes": 6 * LAYER}).counters["ssd_bytes_read"] == 0


def test_reads_ahead_run_beside_compute_and_across_steps():
    """Reads shorter than a layer hide behind it; without a window they stand before it."""
    fast = {"fixed_bytes": 0, "overhead_s": 0.0, "ssd_gbs": LAYER / 5e-4 / 1e9}  # 0.5 ms a layer, that takes 1.1 ms
    hidden = decode_s(run({**fast, "preload_window": 2}))
    assert hidden == pytest.approx(decode_s(run({"overhead_s": 0.0})), rel=0.01)
    assert decode_s(run({**fast, "preload_window": 0})) == pytest.approx(hidden + 6 * 5e-4, rel=0.01)


def test_mispredicted_neurons_are_dropped_and_counted_or_fetched():
    ahead = {"predict_ahead": 2}
    dropped = run(ahead)
    assert dropped.counters["neurons_missed"] == (OUTPUT - 1) * 6 * round(0.2 * ACTIVE)
    fetched = run({**ahead, "fetch_mispredicted": True})
    assert fetched.counters["neurons_missed"] == dropped.counters["neurons_missed"]
    assert decode_s(fetched) > decode_s(dropped)
    assert run({"predict_ahead": 1}).counters["neurons_missed"] == 0


def test_what_was_missed_two_layers_ahead_is_fetched_from_the_ssd_one_by_one():
    settings = {"fixed_bytes": 0, "ssd_unit": "missing", "preload_window": 2}
    dropped, fetched = run(settings), run({**settings, "fetch_mispredicted": True})
    assert fetched.counters["ssd_bytes_read"] > dropped.counters["ssd_bytes_read"]
    slower = run({**settings, "fetch_mispredicted": True, "on_demand_gbs": 0.1})
    assert decode_s(slower) > decode_s(fetched) > decode_s(dropped)


def test_a_flash_window_loads_little_and_reads_when_needed():
    found = simulate("llm-in-a-flash", model="opt-6.7b", workload=fixed(8, 12, 1))
    loaded = found.counters["neuron_fetches"] / (11 * 32 * 16384)
    assert loaded == pytest.approx(0.024, rel=0.1)
    assert found.summary()["bound"] == "ssd"


# -- what is refused -----------------------------------------------------------------------------------------------


def test_fp16_attention_of_70b_is_refused_with_the_bytes_and_int8_fits():
    with pytest.raises(CapacityError, match=r"gpu0: 25\.21 GB asked, 21\.60 GB free"):
        simulate("m2cache", model="llama2-70b", workload=fixed(8, 2, 1))
    found = simulate("m2cache", model="llama2-70b", workload=fixed(8, 2, 1), machine="m2cache-70b")
    assert found.output_tokens == 2


def test_experts_and_machines_without_parameters_are_refused():
    with pytest.raises(UnsupportedError, match="mixtral-8x7b has experts"):
        simulate("m2cache", model="mixtral-8x7b", workload=fixed(8, 2, 1))
    with pytest.raises(ConfigError, match=r"machine\.neurons"):
        simulate("m2cache", model="llama2-7b", workload=fixed(8, 2, 1), machine="offload")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("storage_layout", "fp8", "storage_layout"),
        ("fp16_share", 0.9, "add up to more"),
        ("resident_bits", 12, "resident"),
    ],
)
def test_wrong_parameters_are_named(key, value, match):
    with pytest.raises(ConfigError, match=match):
        run({key: value})


def test_layers_that_neither_dram_nor_a_missing_ssd_holds_are_refused():
    config = attrs.evolve(machine("m2cache", "fair"), ssd=None)
    small = attrs.evolve(config, host=attrs.evolve(config.host, capacity_bytes=1_000_000))
    with pytest.raises(CapacityError, match="host"):
        run(machine=small, assumptions="fair")


def test_a_batch_needs_the_union_of_its_sets():
    one, four = run(), run(batch=4)
    assert four.counters["neuron_accesses"] > one.counters["neuron_accesses"]
    assert four.output_tokens == 4 * OUTPUT
