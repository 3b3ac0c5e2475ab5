"""PAPI's systems in closed form: terms, sides, options and batches."""

import pytest
from attrs import evolve

from hetmem import rng
from hetmem.errors import ConfigError, ConservationError, UnknownNameError, UnsupportedError
from hetmem.hardware import pim_attention
from hetmem.hardware.pim import pim_stack
from hetmem.policy.reschedule import Oracle, Side, Static, Threshold
from hetmem.system import papi_law as law
from hetmem.system.decoder_shape import DecoderShape
from hetmem.system.iteration_cost import TIME_TERMS, IterationCost, mean
from hetmem.workload.speculation import Geometric, static_batch

LLAMA = DecoderShape(80, 8192, 64, 64, 128, 22016, True, 9)
GROUPED = DecoderShape(80, 8192, 64, 8, 128, 28672, True, 9)
FLAT = {"fc_law": "flat", "attention_law": "flat"}
WEIGHTS = LLAMA.weight_bytes
GPU_BYTES_PER_S = 6 * 3352e9 * 0.85
PIM_BYTES_PER_S = 30 * 9 * 670.4e9


def step(name, batch, tlp, side, **options):
    return law.iteration(law.papi_machine(name, **options), LLAMA, [150] * batch, tlp, Side(side))


@pytest.mark.parametrize(
    ("batch", "tlp", "gpu_ms", "pim_1p1b_ms", "papi_ms"),
    # Worked by hand from the flat closed form: LLaMA-65B, feed-forward 8/3 d (0.5 % less), context 150.
    [
        (4, 1, 14.24, 9.56, 7.66),
        (4, 4, 14.53, 18.39, 10.81),
        (64, 1, 15.68, 53.7, 15.77),
        (64, 4, 34.8, 195, 35.1),
    ],
)
def test_worked_example_of_the_flat_law(batch, tlp, gpu_ms, pim_1p1b_ms, papi_ms):
    def milliseconds(name, side):
        cost = step(name, batch, tlp, side, **FLAT)
        # The example takes 22.03 us a layer for activation and norms, whatever their size.
        kernels_s = cost.activation_s + cost.norm_s + cost.decision_s
        return (cost.time_s - kernels_s + 80 * 22.03e-6) * 1e3

    assert milliseconds("a100-attacc", "gpu") == pytest.approx(gpu_ms, rel=0.008)
    assert milliseconds("attacc-only", "pim") == pytest.approx(pim_1p1b_ms, rel=0.008)
    assert milliseconds("papi", "pim" if batch * tlp <= 28 else "gpu") == pytest.approx(papi_ms, rel=0.008)


@pytest.mark.parametrize("tokens", [1, 4, 5, 87, 256])
def test_flat_fc_on_both_sides(tokens):
    machine = law.papi_machine("papi", **FLAT)
    gpu, pim = (law.fc(machine, LLAMA, tokens, side).fc_s for side in (Side.GPU, Side.PIM))
    assert gpu == pytest.approx(max(WEIGHTS / GPU_BYTES_PER_S, WEIGHTS * tokens / (6 * 312e12 * 0.8)))
    assert pim == pytest.approx(WEIGHTS * -(-tokens // 4) / (0.75 * PIM_BYTES_PER_S))


def test_four_units_per_bank_beat_one_threefold_at_multiples_of_four():
    four, one = law.papi_machine("papi-pim-only"), law.papi_machine("attacc-only")
    for tokens in (4, 16, 64):
        ratio = law.fc(one, LLAMA, tokens, Side.PIM).fc_s / law.fc(four, LLAMA, tokens, Side.PIM).fc_s
        assert ratio == pytest.approx(3.0)


def test_the_link_decides_the_transfer():
    own, shared, fabric = (step("papi", 4, 1, "pim", link=link).transfer_s for link in ("nvlink3", "pcie4", "cxl"))
    moved = 80 * 4 * 8192 * 4 * 2
    assert own == pytest.approx(moved / (6 * 300e9))
    assert shared == pytest.approx(moved / 32e9)
    assert fabric == pytest.approx(moved / (6 * 63e9) + 80 * 2 * 250e-9)


def test_overheads_can_be_left_out():
    bare = step("papi", 4, 1, "pim", overheads=0.0)
    assert (bare.all_reduce_s, bare.activation_s, bare.norm_s) == (0, 0, 0)
    full = step("papi", 4, 1, "pim")
    assert full.all_reduce_s + full.activation_s + full.norm_s == pytest.approx(6.7e-3, rel=0.01)
    assert full.fc_s == bare.fc_s


def test_only_a_system_that_decides_pays_for_deciding():
    assert step("papi", 4, 1, "pim").decision_s == 10e-6
    assert step("papi-pim-only", 4, 1, "pim").decision_s == 0


def test_a_side_that_the_system_lacks_is_refused():
    with pytest.raises(UnsupportedError, match="a100-attacc: FC never runs on pim"):
        step("a100-attacc", 4, 1, "pim")
    with pytest.raises(ConfigError, match="running requests"):
        law.iteration(law.papi_machine(), LLAMA, [], 1, Side.GPU)


def test_unknown_names_and_laws_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'a100-attacc'"):
        law.papi_machine("a100-atacc")
    with pytest.raises(UnknownNameError, match="nvlink3"):
        law.papi_machine(link="nvlnk3")
    with pytest.raises(ValueError, match="fc_law"):
        law.papi_machine(fc_law="round")


def test_grouped_queries_re_read_their_head_unless_reuse_is_chosen():
    plain, reuse = law.papi_machine("papi"), law.papi_machine("papi", gqa_reuse=True)
    contexts = [512] * 64
    assert law.attention_s(plain, GROUPED, contexts, 1) == law.attention_s(plain, LLAMA, contexts, 1)
    # 1P2B has no second unit at a bank: the group's eight queries still take a pass each, over fewer heads.
    longest = pim_attention.rounds(reuse.attention_stack, 60, 8, contexts)
    one = pim_attention.pass_s(reuse.attention_stack, longest)
    assert law.attention_s(reuse, GROUPED, contexts, 1) == pytest.approx(8 * one * 80)
    shared = evolve(reuse, attention_stack=pim_stack("4P1B"))
    longest = pim_attention.rounds(shared.attention_stack, 60, 8, contexts)
    one = pim_attention.pass_s(shared.attention_stack, longest)
    assert law.attention_s(shared, GROUPED, contexts, 1) == pytest.approx(2 * one * 80)


def test_terms_and_components_add_up():
    cost = step("papi", 16, 2, "gpu")
    assert cost.time_s == pytest.approx(sum(getattr(cost, name) for name in TIME_TERMS))
    row = cost.as_row()
    joules = [value for key, value in row.items() if key.endswith("_j") and key != "energy_j"]
    assert row["energy_j"] == pytest.approx(sum(joules))
    assert row["time_s"] == cost.time_s


def test_mean_of_iterations():
    costs = [IterationCost(qkv_s=1.0), IterationCost(qkv_s=3.0, norm_s=1.0)]
    assert mean(costs) == IterationCost(qkv_s=2.0, norm_s=0.5)
    with pytest.raises(ConfigError, match="no iterations"):
        mean([])


def test_a_batch_costs_the_sum_of_its_iterations():
    machine = law.papi_machine("papi")
    steps = static_batch([40] * 9, [5, 30, 90, 7, 60, 12, 33, 80, 21], 4, Geometric(0.6), rng.stream(7, "spec"))
    run = law.batch_cost(machine, LLAMA, steps, 40, 9, Threshold(20))
    singles = [
        law.iteration(machine, LLAMA, one.contexts, 4, Side.GPU if one.rlp * 4 > 20 else Side.PIM) for one in steps
    ]
    assert run.decode.time_s == pytest.approx(sum(one.time_s for one in singles), rel=1e-12)
    assert run.decode.energy_j == pytest.approx(sum(one.energy_j for one in singles), rel=1e-12)
    assert run.iterations == {
        Side.GPU: sum(one.rlp > 5 for one in steps),
        Side.PIM: sum(one.rlp <= 5 for one in steps),
    }
    assert run.switches == 1
    assert run.time_s == run.prefill.time_s + run.decode.time_s


def test_the_oracle_is_never_slower_than_the_threshold_or_a_side():
    machine = law.papi_machine("papi")
    steps = static_batch([40] * 16, [10 * n for n in range(1, 17)], 4)
    cost = lambda policy: law.batch_cost(machine, LLAMA, steps, 40, 16, policy).decode.time_s  # noqa: E731
    best = cost(Oracle())
    assert best <= min(cost(None), cost(Static("gpu")), cost(Static("pim"))) * (1 + 1e-12)
    assert best < cost(None)  # LLaMA-65B crosses three times: one threshold misses the hole at 37-48


def test_a_batch_that_the_registers_do_not_follow_is_an_error():
    steps = static_batch([40] * 4, [5, 9, 9, 9])
    with pytest.raises(ConservationError, match="the scheduler counts 4, the batch runs 3"):
        law.batch_cost(law.papi_machine(), LLAMA, [steps[0], steps[-1]], 40, 4)


def test_prefill_runs_on_gpus_and_sends_keys_and_values():
    machine = law.papi_machine("attacc-only")
    cost = law.prefill(machine, LLAMA, 4, 40)
    kv = 4 * 80 * 8192 * 4 * 40
    assert cost.transfer_s == pytest.approx(kv / (6 * 300e9))
    assert cost == law.prefill(law.papi_machine("papi-pim-only"), LLAMA, 4, 40)


def test_shapes_are_checked():
    with pytest.raises(ConfigError, match="does not divide"):
        DecoderShape(1, 8, 6, 4, 2, 8, True, 9)
    with pytest.raises(ValueError, match="layers"):
        DecoderShape(0, 8, 6, 3, 2, 8, True, 9)
