"""What is asked becomes one configuration; what cannot be is refused by name."""

import pytest

import hetmem
from hetmem.errors import CapacityError, ConfigError, ConfigErrors, UnknownNameError, UnsupportedError
from hetmem.hardware.config import machine
from hetmem.policy.batching import ContinuousBatch, StaticBatch
from hetmem.study.scenario import POLICIES, scenario, unstructured
from hetmem.system import SYSTEMS, system_class
from hetmem.workload import fixed

SMALL = fixed(8, 2, 2)


def asked(system="resident", **options):
    return scenario(system, **{"model": "opt-6.7b", "workload_": SMALL, **options})


def test_defaults():
    found = asked()
    assert (found.assumptions, found.dimm_preset, found.seed, found.truncate) == ("fair", None, 0, False)
    assert found.labels() == {
        "system": "resident", "assumptions": "fair", "dimm_preset": None, "model": "opt-6.7b",
        "workload": SMALL.name,
    }  # fmt: skip
    config = found.configuration()
    assert (config.serving.batch, config.serving.token_budget) == (2, None)
    assert config.machine.gpu.name == "a100-sxm-80gb"


def test_names_match_whatever_their_case_and_punctuation():
    assert asked("NDP DIMM").system.name == "ndp-dimm"
    assert asked(model="OPT 6.7B").model.id == "opt-6.7b"
    assert all(system_class(cls.name) is cls for cls in SYSTEMS)


def test_only_systems_with_dimms_have_a_preset_of_them():
    assert asked(dimm_preset="paper-fit").dimm_preset is None
    assert asked("ndp-dimm").dimm_preset == "datasheet"
    assert asked("ndp-dimm", dimm_preset="paper-fit").dimm_preset == "paper-fit"


def test_arrivals_turn_batching_continuous_with_a_token_budget():
    assert not asked().arrivals
    found = asked(rate=3.0)
    assert (found.arrivals, found.batching(), found.configuration().serving.token_budget) == (True, "continuous", 2048)
    chosen = asked(rate=3.0, policies={"batching": "static"})
    assert (chosen.batching(), chosen.configuration().serving.token_budget) == ("static", None)
    own = asked(policies={"batching": ContinuousBatch(3)})
    assert own.batching() == ""


def test_the_machine_is_changed_by_short_names_and_by_paths():
    config = asked("ndp-dimm", dimms=4, multipliers=64, gpu="t4").configuration()
    assert (config.machine.dimm.count, config.machine.dimm.multipliers, config.machine.gpu.name) == (4, 64, "t4")
    config = asked("ndp-dimm", settings={"machine.dimm.count": "4", "serving.kv_share": 0.5}).configuration()
    assert (config.machine.dimm.count, config.serving.kv_share) == (4, 0.5)
    given = machine("ndp", "fair", dimms=3)
    assert asked("ndp-dimm", machine=given).configuration().machine == given


def test_a_configuration_is_plain_values_for_a_manifest():
    import json

    plain = unstructured(asked("ndp-dimm").configuration())
    assert json.loads(json.dumps(plain))["machine"]["dimm"]["count"] == 8


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"system": "residnet"}, UnknownNameError, "unknown system 'residnet'; did you mean 'resident'?"),
        ({"model": "lama2-70b"}, UnknownNameError, "unknown model 'lama2-70b'; did you mean 'llama2-70b'?"),
        ({"assumptions": "fiar"}, UnknownNameError, "unknown assumption set 'fiar'; did you mean 'fair'?"),
        ({"dimm_preset": "paper"}, UnknownNameError, "unknown DIMM preset 'paper'"),
        ({"batch": 0}, ConfigError, "batch: expected a whole number of at least 1, not 0"),
        ({"batch": True}, ConfigError, "batch: expected a whole number of at least 1, not True"),
        ({"requests": 2.5}, ConfigError, "requests: expected a whole number of at least 1, not 2.5"),
        ({"gpus": -1}, ConfigError, "gpus: expected a whole number of at least 1, not -1"),
        ({"dimms": 0}, ConfigError, "dimms: expected a whole number of at least 1, not 0"),
        ({"multipliers": 0}, ConfigError, "multipliers: expected a whole number of at least 1"),
        ({"rate": -1.0}, ConfigError, "rate: expected requests per second above 0, not -1.0"),
        ({"rate": float("nan")}, ConfigError, "rate: expected requests per second above 0, not nan"),
        ({"policies": {"batchin": "static"}}, UnknownNameError, "unknown policy role of resident 'batchin'; did you"),
        (
            {"policies": {"batching": "sttic"}},
            UnknownNameError,
            "unknown batching policy 'sttic'; did you mean 'static'",
        ),
        ({"workload_": "cht"}, UnknownNameError, "unknown workload 'cht'; did you mean 'chat'?"),
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(options, error, says):
    with pytest.raises(error) as caught:
        asked(**options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpu": "rtx-4091"}, "unknown gpu 'rtx-4091'; did you mean 'rtx-4090'"),
        ({"dimms": 4}, "dimms: machine resident has no NDP-DIMMs"),
        ({"settings": {"machine.gpu.tdp_ww": 3}}, "machine.gpu.tdp_ww: unknown field 'tdp_ww'; did you mean 'tdp_w'?"),
        ({"settings": {"serving.batch": 0}}, "serving.batch: 'batch' must be >= 1: 0"),
        ({"settings": {"serving.kv_share": 1.5}}, "serving.kv_share: 'kv_share' must be <= 1: 1.5"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, says):
    with pytest.raises(hetmem.HetmemError) as caught:
        asked(**options).configuration()
    assert says in str(caught.value)


def test_several_wrong_settings_are_a_line_each():
    with pytest.raises(ConfigErrors) as caught:
        asked(settings={"machine.gpuu.tdp_w": 1, "serving.batch": "x"}).configuration()
    assert len(str(caught.value).splitlines()) == 2


def test_a_policy_of_ones_own_is_used():
    class OneByOne:
        def decide(self, view):
            return 1 if view.running == 0 and view.waiting else 0

    run = hetmem.simulate("resident", model="opt-6.7b", workload=fixed(8, 2, 3), policies={"batching": OneByOne()})
    assert run.steps.column("running").max() == 1
    assert run.counters["steps"] == 6


@pytest.mark.parametrize("name", POLICIES["batching"])
@pytest.mark.parametrize("order", POLICIES["admission"])
def test_every_policy_runs_by_name(name, order):
    run = hetmem.simulate(
        "resident", model="opt-6.7b", workload=fixed(8, 2, 3), policies={"batching": name, "admission": order}
    )
    assert run.summary()["requests"] == {"in": 3, "done": 3, "dropped": 0}


def test_the_size_of_a_batch_reaches_the_policy():
    for policy, cls in (("static", StaticBatch), ("continuous", ContinuousBatch)):
        assert POLICIES["batching"][policy] is cls
        run = hetmem.simulate(
            "resident", model="opt-6.7b", workload=fixed(8, 2, 5), batch=2, policies={"batching": policy}
        )
        assert run.steps.column("running").max() == 2


def test_a_model_that_does_not_fit_says_what_was_needed_and_what_there_was():
    with pytest.raises(CapacityError, match=r"gpu0: 137\.\d\d GB asked, .* GB free of .* GB \(holds nothing\)"):
        hetmem.simulate("resident", model="llama2-70b", workload=SMALL, gpu="rtx-4090", gpus=1)


def test_a_batch_that_does_not_fit_is_refused_rather_than_run_smaller():
    with pytest.raises(CapacityError, match=r"gpu0: .* asked"):
        hetmem.simulate("resident", model="opt-6.7b", workload=fixed(1000, 1000, 900))


def test_requests_that_never_fit_leave_nothing_to_report():
    blocks = {"serving.kv_blocks": 1}
    with pytest.raises(UnsupportedError, match="resident: no request fits in the KV cache of 16 tokens"):
        hetmem.simulate("resident", model="opt-6.7b", workload=fixed(100, 2, 2), rate=5.0, settings=blocks)
    with pytest.raises(UnsupportedError, match=r"every request exceeds the context of opt-6.7b, 2048 tokens"):
        hetmem.simulate("resident", model="opt-6.7b", workload=fixed(3000, 2, 2))
