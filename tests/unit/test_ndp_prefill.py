"""Prefills beside NDP-DIMMs: their buffers are held, their keys and values overlap with later layers."""

import pytest

import hetmem
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.ndp import ndp_dimms
from hetmem.study.scenario import scenario
from hetmem.system import Setup
from hetmem.system.ndp_dimm import NdpDimm


def placed(assumptions, **settings):
    """Return the system, and its ledger after placement, of four sequences of 256 tokens."""
    config = scenario("ndp-dimm", model="llama2-70b", workload_=hetmem.fixed(128, 128, 4), assumptions=assumptions,
                      settings=settings).configuration()  # fmt: skip
    system = NdpDimm(Setup(config.model, config.precision, config.machine, assumptions, 4, 256, 16, {}))
    ledger = Ledger({memory.name: memory.capacity_bytes for memory in system.machine().memories})
    system.place(ledger)
    return system, ledger


def test_buffers_of_two_layers_and_their_cache_are_held_beside_the_weights():
    system, ledger = placed("fair")
    spec = system.model
    layer_kv = 4 * 256 * spec.kv_bytes_per_token() // spec.n_layers
    assert ledger.held_bytes("weight-buffer", "gpu0") == 2 * sum(spec.layer_bytes().values())
    assert ledger.held_bytes("kv-buffer", "gpu0") == 2 * layer_kv
    assert 0 <= ledger.free_bytes("gpu0") < max(system.group_bytes.values())


@pytest.mark.parametrize("streams_all", [True, False])
def test_buffers_lie_beside_the_published_share_of_weights(streams_all):
    system, ledger = placed("as-published", **{"machine.prefill_streams_all": streams_all})
    held = ledger.held_bytes("weights", "gpu0")
    assert held <= 20e9 < held + max(system.group_bytes.values())
    assert ledger.held_bytes("weight-buffer", "gpu0") == 2 * system.layer_bytes
    assert ledger.capacities["gpu0"] == 24e9


def test_buffers_take_of_a_limit_what_the_memory_lacks():
    system, ledger = placed("fair", **{"machine.gpu_weight_bytes": 20e9})
    assert ledger.held_bytes("weight-buffer", "gpu0") == 2 * system.layer_bytes
    assert ledger.held_bytes("weights", "gpu0") <= 0.9 * 24e9 - sum(system.buffer_bytes().values()) < 20e9


def test_keys_and_values_are_written_back_while_later_layers_compute():
    done = hetmem.simulate("ndp-dimm", model="opt-66b", workload=hetmem.fixed(256, 1, 4), trace=True)
    tasks = done.tasks.to_pandas()
    writes = tasks[(tasks["task"] == "kv.write") & (tasks["server"] == "pcie.d2h")].sort_values("start_ps")
    layers = tasks[(tasks["task"] == "prefill.layer") & (tasks["server"] == "gpu0")].sort_values("start_ps")
    assert len(writes) == len(layers) == 64
    assert (writes["start_ps"].to_numpy() >= layers["end_ps"].to_numpy()).all()
    assert (writes["start_ps"].to_numpy()[:-1] < layers["end_ps"].to_numpy()[1:]).all()
    assert (writes["end_ps"].to_numpy()[:-1] < tasks["end_ps"].max()).all()
    ranks = tasks[(tasks["task"] == "kv.write") & (tasks["server"] == "dimm7.dram")]
    assert ranks["bytes"].sum() == pytest.approx(writes["bytes"].sum() / 8, rel=1e-6)


def test_a_chunk_that_attends_to_more_takes_longer():
    def steps(prompt):
        done = hetmem.simulate(
            "ndp-dimm", model="opt-66b", workload=hetmem.fixed(prompt, 1, 1), trace=True,
            policies={"batching": "continuous"}, settings={"serving.token_budget": 256},
        )  # fmt: skip
        tasks = done.tasks.to_pandas()
        reads = tasks[(tasks["task"] == "kv.read") & (tasks["server"] == "pcie.h2d")].groupby("step")["bytes"].sum()
        return reads.to_dict()

    per_token = hetmem.load_model("opt-66b").kv_bytes_per_token()
    assert steps(1024) == {1: 256 * per_token, 2: 512 * per_token, 3: 768 * per_token}
    assert steps(256) == {}


def test_writing_costs_the_energy_of_writes_and_the_rate_of_the_device():
    pool = ndp_dimms("datasheet")
    bits, rows = 8e9, 1e9 / pool.dram.row_bytes
    ranks_j = bits * pool.dram.write_pj_per_bit * 1e-12 + rows * pool.dram.activate_nj * 1e-9
    assert pool.write_fj(1e9) == pytest.approx((ranks_j + 1e9 * pool.buffer_pj_per_byte * 1e-12) * 1e15, rel=1e-6)
    assert 0 < pool.write_bytes_per_s(256) <= pool.read_gbs * 1e9
    assert ndp_dimms("paper-fit").write_bytes_per_s(256) == 58e9
