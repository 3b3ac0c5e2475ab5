"""Who may join: plain functions of a view, without a simulator."""

import subprocess
import sys

import pytest

from hetmem.policy.batching import BatchView, ContinuousBatch, FirstComeFirstServed, ShortestPromptFirst, StaticBatch


def test_policies_need_no_simulator():
    code = """if True:
        import sys
        from hetmem.policy.batching import BatchView, ContinuousBatch, StaticBatch
        assert StaticBatch(4).decide(BatchView(0, 9)) == ContinuousBatch(4).decide(BatchView(0, 9)) == 4
        sys.exit("simpy" in sys.modules)
    """
    # The package itself brings the simulator in; its policies must not.
    stub = "import sys, types; p = types.ModuleType('hetmem'); p.__path__ = [sys.argv[1]]; sys.modules['hetmem'] = p\n"
    import hetmem

    done = subprocess.run([sys.executable, "-c", stub + code, hetmem.__path__[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("running", "waiting", "joins"), [(0, 0, 0), (0, 3, 3), (0, 9, 4), (1, 9, 0), (4, 9, 0), (2, 0, 0)]
)
def test_a_static_batch_starts_together(running, waiting, joins):
    assert StaticBatch(4).decide(BatchView(running, waiting)) == joins


@pytest.mark.parametrize(
    ("running", "waiting", "joins"), [(0, 0, 0), (0, 3, 3), (0, 9, 4), (1, 9, 3), (4, 9, 0), (6, 9, 0), (2, 1, 1)]
)
def test_a_continuous_batch_is_filled_up(running, waiting, joins):
    assert ContinuousBatch(4).decide(BatchView(running, waiting)) == joins


@pytest.mark.parametrize("policy", [StaticBatch, ContinuousBatch])
@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_sequence(policy, size):
    with pytest.raises(ValueError, match="'size' must be >= 1"):
        policy(size)


def test_the_order_of_waiting():
    prompts = [30, 10, 20, 10]
    arrivals = range(len(prompts))

    def order(policy):
        return sorted(arrivals, key=lambda k: policy.decide(prompts[k], k))

    assert order(FirstComeFirstServed()) == [0, 1, 2, 3]
    assert order(ShortestPromptFirst()) == [1, 3, 2, 0]
