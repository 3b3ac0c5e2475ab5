"""Speculative decoding in the decode loop: where every token goes, KV blocks, policies and drafts."""

import numpy as np
import pytest
from attrs import frozen

import hetmem as hm
from hetmem.errors import ConfigError, UnknownNameError, UnsupportedError
from hetmem.policy.speculation import FixedLength, LevelTokens, SpeculationView
from hetmem.workload.lognormal import lognormal

COLUMNS = ("steps", "drafted", "accepted", "rejected", "discarded", "cut", "emitted")


def run(system="papi", tlp=4, acceptance="vicuna-7b-sps", workload=None, **options):
    settings = {"serving.tlp": tlp, "serving.acceptance": acceptance} | options.pop("settings", {})
    options = {"model": "llama-7b", "assumptions": "as-published"} | options
    return hm.simulate(system, workload=workload or lognormal(40, 60, 0.8, 16), settings=settings, **options)


def check_tokens(done):
    table = done.tables["speculation"]
    count = {name: table.column(name) for name in COLUMNS}
    np.testing.assert_array_equal(count["emitted"], count["accepted"] + count["steps"] - count["cut"])
    np.testing.assert_array_equal(count["drafted"], count["accepted"] + count["rejected"] + count["discarded"])
    lengths = dict(zip(done.requests.column("id"), done.requests.column("output_tokens"), strict=True))
    return {name: dict(zip(table.column("id"), column, strict=True)) for name, column in count.items()}, lengths


@pytest.mark.parametrize("acceptance", ["all", "vicuna-7b-sps", "vicuna-7b-eagle2"])
@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_tokens_of_every_request_are_conserved(acceptance, batching):
    done = run(acceptance=acceptance, policies={"batching": batching}, batch=5)
    count, lengths = check_tokens(done)
    for request, output in lengths.items():
        if output > 1:  # a request of one token never decodes
            assert count["emitted"][request] == output - 1  # the prefill emits the first
    assert done.output_tokens == sum(lengths.values())
    if acceptance != "all":
        assert sum(count["rejected"].values()) > 0
    assert sum(count["discarded"].values()) > 0
    assert sum(count["cut"].values()) > 0


def test_tokens_are_conserved_through_preemption():
    done = run(settings={"serving.kv_blocks": 40}, policies={"batching": "continuous"}, batch=16)
    assert done.counters["preemptions"] > 0
    count, lengths = check_tokens(done)
    assert (done.requests.column("status") == "done").all()
    assert done.output_tokens == sum(lengths.values())
    again = done.requests.column("preemptions")
    for request, times in zip(done.requests.column("id"), again, strict=True):
        if lengths[request] > 1:  # each recomputed prompt emits a token, too
            assert lengths[request] - 1 - times <= count["emitted"].get(request, 0) <= lengths[request] - 1


def test_one_token_per_step_equals_plain_decoding():
    plain = run(tlp=1, acceptance=None)
    for options in ({"acceptance": "all"}, {"acceptance": "vicuna-7b-sps"}):
        one = run(tlp=1, policies={"speculation": FixedLength(1)}, **options)
        assert one.makespan_s == plain.makespan_s
        assert one.counters["kv_blocks_peak"] == plain.counters["kv_blocks_peak"]
        for name in ("start_ps", "end_ps", "emitted_tokens", "kv_blocks"):
            np.testing.assert_array_equal(one.steps.column(name), plain.steps.column(name))


def test_a_request_too_long_for_its_drafts_is_dropped_not_retried_forever():
    done = run(tlp=8, acceptance="all", workload=lognormal(40, 20, 0.3, 3), settings={"serving.kv_blocks": 4})
    assert set(done.requests.column("status")) <= {"done", "dropped: kv-capacity"}
    assert done.counters["kv_blocks_held"] == 0


def test_acceptance_has_the_mean_of_its_table():
    done = run(tlp=30, workload=hm.fixed(40, 2000, 4))  # so many drafts that the limit does not matter
    count, _ = check_tokens(done)
    per_step = sum(count["emitted"].values()) / sum(count["steps"].values())
    assert per_step == pytest.approx(2.28, rel=0.05)  # Spec-Bench: Vicuna-7B, SpS


@frozen
class Late:
    """A longer draft once few sequences are left."""

    def decide(self, view: SpeculationView) -> int:
        return 4 if view.decoding <= 6 else 1


def test_the_length_may_change_at_run_time():
    done = run(tlp=1, acceptance="all", policies={"speculation": Late()})
    table = done.tables["iterations"]
    rlp, tlp = table.column("rlp"), table.column("tlp")
    np.testing.assert_array_equal(tlp, np.where(rlp <= 6, 4, 1))
    assert set(tlp) == {1, 4}


def test_level_tokens_lengthen_drafts_as_requests_leave():
    done = run(tlp=2, acceptance="all", policies={"speculation": "level"})
    table = done.tables["iterations"]
    rlp, tlp = table.column("rlp"), table.column("tlp")
    np.testing.assert_array_equal(tlp, np.clip(32 // rlp, 1, 8))
    assert [LevelTokens(32, 8).decide(SpeculationView(n)) for n in (0, 1, 5, 16, 33)] == [8, 8, 6, 2, 1]


@frozen
class Never:
    def decide(self, view: SpeculationView) -> int:
        return 0


def test_a_policy_that_verifies_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        run(policies={"speculation": Never()})


@pytest.mark.parametrize("system", ["papi", "dgx", "dgx-attacc"])
def test_a_draft_model_costs_time_energy_and_memory(system):
    free, drafted = (
        run(system, model="llama-65b", settings={} if model is None else {"serving.draft_model": model})
        for model in (None, "llama-7b")
    )
    assert drafted.makespan_s > 1.1 * free.makespan_s
    assert drafted.energy.total_j > free.energy.total_j
    assert drafted.counters["kv_blocks_total"] <= free.counters["kv_blocks_total"]
    np.testing.assert_array_equal(  # the same drafts are accepted
        drafted.tables["speculation"].column("accepted"), free.tables["speculation"].column("accepted")
    )


def test_other_systems_verify_drafts_but_run_no_draft_model():
    done = run("resident", acceptance="all")
    check_tokens(done)
    assert done.makespan_s < run("resident", tlp=1, acceptance=None).makespan_s
    with pytest.raises(UnsupportedError, match="resident: has no place to run a draft model"):
        run("resident", settings={"serving.draft_model": "llama-7b"})


def test_fair_assumptions_must_be_told_what_is_accepted_and_what_drafts():
    with pytest.raises(ConfigError, match=r"serving\.acceptance: fair assumptions need a measured pair"):
        run(acceptance=None, assumptions="fair")
    with pytest.raises(ConfigError, match=r"serving\.draft_model: fair assumptions need the model that drafts"):
        run(assumptions="fair")
    with pytest.raises(UnknownNameError, match="did you mean 'vicuna-7b-sps'"):
        run(acceptance="vicuna-7b-sp")
    with pytest.raises(ConfigError, match=r"serving\.draft_model: needs serving\.tlp above 1"):
        run(tlp=1, acceptance=None, settings={"serving.draft_model": "llama-7b"})
