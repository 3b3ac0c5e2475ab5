"""Whole runs under speculation: tokens, blocks and requests are conserved whatever is drafted and preempted."""

from hypothesis import given, settings
from hypothesis import strategies as st

import hetmem as hm
from hetmem.policy.speculation import FixedLength, LevelTokens
from hetmem.workload.lognormal import lognormal


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 9),
    places=st.integers(1, 6),
    mean=st.floats(1, 60),
    policy=st.one_of(
        st.builds(FixedLength, st.integers(1, 12)), st.builds(LevelTokens, st.integers(1, 40), st.integers(1, 12))
    ),
    acceptance=st.sampled_from(["all", "vicuna-7b-sps", "vicuna-7b-samd-eagle2"]),
    batching=st.sampled_from(["static", "continuous"]),
    blocks=st.one_of(st.none(), st.integers(4, 40)),
    block_tokens=st.sampled_from([1, 2, 16]),
    seed=st.integers(0, 2**32),
)
def test_runs_are_conserved(batch, places, mean, policy, acceptance, batching, blocks, block_tokens, seed):
    try:
        done = hm.simulate(
            "papi", model="llama-7b", workload=lognormal(4, mean, 0.8, batch), assumptions="as-published", batch=places,
            policies={"speculation": policy, "batching": batching}, seed=seed, truncate=True,
            settings={"serving.acceptance": acceptance, "serving.block_tokens": block_tokens}
            | ({} if blocks is None else {"serving.kv_blocks": -(-blocks * 16 // block_tokens)}),
        )  # fmt: skip
    except hm.UnsupportedError as error:
        assert "no request fits in the KV cache" in str(error)  # noqa: PT017 - both ends are right
        return
    served = done.requests.column("status") == "done"
    assert done.output_tokens == done.requests.column("output_tokens")[served].sum()
    table = done.tables["speculation"]
    count = {name: table.column(name) for name in table.columns}
    assert (count["emitted"] == count["accepted"] + count["steps"] - count["cut"]).all()
    assert (count["drafted"] == count["accepted"] + count["rejected"] + count["discarded"]).all()
    assert done.counters["kv_blocks_held"] == 0
    assert done.counters["kv_blocks_allocated"] == done.counters["kv_blocks_freed"]
    assert done.counters["kv_blocks_peak"] <= done.counters["kv_blocks_total"]
    iterations = done.tables["iterations"]
    assert (iterations.column("tlp") >= 1).all()
    assert (iterations.column("rlp") <= places).all()
