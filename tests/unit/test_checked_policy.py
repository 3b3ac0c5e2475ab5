"""What a user's own policy may answer, and a comparison of one."""

import numpy as np
import pytest

import hetmem
from hetmem.errors import ConfigError
from hetmem.study.compare import compare
from hetmem.system.resident import Resident
from hetmem.workload import fixed

SMALL = fixed(8, 3, 2)


class Answer:
    """Answers the same to everything."""

    def __init__(self, answer):
        self.answer = answer

    def decide(self, *_):
        return self.answer


def run(**policies):
    return hetmem.simulate("resident", model="opt-6.7b", workload=SMALL, policies=policies)


@pytest.mark.parametrize("answer", [None, 2.5, -1, True, "2"])
def test_a_batching_policy_must_answer_a_count(answer):
    with pytest.raises(ConfigError, match=r"policies\.batching: Answer\.decide returned .*; expected a whole number"):
        run(batching=Answer(answer))


@pytest.mark.parametrize("answer", [None, 3, (1,), (1, 2.5), (1, 2, 3), "ab"])
def test_an_admission_policy_must_answer_a_pair(answer):
    with pytest.raises(ConfigError, match=r"policies\.admission: Answer\.decide returned .*; expected a pair"):
        run(admission=Answer(answer))


def test_a_policy_of_ones_own_runs_as_the_built_in_does():
    plain = run(batching="static")
    own = run(batching=Answer(np.int64(2)), admission=Answer((0, 0)))
    assert own.summary()["requests"] == {"in": 2, "done": 2, "dropped": 0}
    assert own.elapsed_ps == plain.elapsed_ps


@pytest.mark.parametrize("role", ["batching", "admission", "speculation"])
@pytest.mark.parametrize(("chosen", "problem"), [(Answer, "not the class Answer"), (5, r"with decide\(\), not 5")])
def test_what_is_no_policy_is_refused(role, chosen, problem):
    with pytest.raises(ConfigError, match=rf"policies\.{role}: .*{problem}"):
        run(**{role: chosen})


@pytest.mark.parametrize("system", ["resident", Resident, ["resident"]])
def test_one_name_is_a_list_of_one(system):
    result = compare(system, model="opt-6.7b", workload=SMALL, assumptions="fair", dimm_presets="datasheet")
    (row,) = result.rows
    assert (row["system"], row["assumptions"]) == ("resident", "fair")


def test_a_policy_goes_to_the_systems_that_have_its_role():
    asked = {"model": "opt-30b", "workload": fixed(64, 2, 8), "assumptions": "fair"}
    decided = {}
    for attention in ("cpu", "gpu"):
        accelerate, flexgen = compare(["accelerate", "flexgen"], policies={"attention": attention}, **asked).runs
        decided[attention] = (dict(accelerate.scenario.policies), flexgen.configuration["decisions"]["attention"])
    assert decided == {"cpu": ({}, "cpu"), "gpu": ({}, "gpu")}


def test_a_run_is_shown_in_a_line():
    text = repr(run())
    assert text.startswith("<Run of resident, fair, opt-6.7b, fixed-8-3: 2 of 2 requests, ")
    assert len(text) < 120
