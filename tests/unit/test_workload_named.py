"""The built-in workloads: lookup, fidelity to the traces they stand for, and sampling within a context."""

import json

import attrs
import numpy as np
import pytest

from hetmem import catalog, rng
from hetmem.errors import ConfigError, UnknownNameError, WorkloadError
from hetmem.workload import Distribution, JointQuantiles, fixed, from_file, workload, workload_ids
from hetmem.workload.lengths import cosine_grid

SOURCES = {"chat": "traces/azure2023_conv.csv.gz", "summarize": "traces/arxiv_summ_lengths.csv"}


@pytest.fixture(params=sorted(SOURCES))
def named(request, shared_data):
    """Return a built-in workload and the prompt and output lengths of its source."""
    source = from_file(shared_data(SOURCES[request.param])).trace.table
    return workload(request.param), source.prompt_tokens, source.output_tokens


def _drawn(found, n=100_000, max_context=None):
    table = found.requests(max_context=max_context, n=n, seed=11)
    return table.prompt_tokens, table.output_tokens


def test_the_shipped_tables_are_the_fit_of_their_source(named):
    found, prompt, output = named
    assert found.lengths == JointQuantiles.fit(prompt, output)


@pytest.mark.parametrize("max_context", [None, 4096])
def test_means_percentiles_and_correlation_are_those_of_the_source(named, max_context):
    found, prompt, output = named
    fits = prompt + output <= (max_context or np.inf)
    drawn = _drawn(found, max_context=max_context)
    # inside a band prompt and output are independent: conditioning on their sum costs accuracy
    mean_rel = 0.015 if max_context is None else 0.04
    for model, real in zip(drawn, (prompt[fits], output[fits]), strict=True):
        assert model.mean() == pytest.approx(real.mean(), rel=mean_rel)
        p5, p50, p95 = np.quantile(model, (0.05, 0.5, 0.95))
        real_p5, real_p50, real_p95 = np.quantile(real, (0.05, 0.5, 0.95))
        assert p5 == pytest.approx(real_p5, rel=0.08)
        assert p50 == pytest.approx(real_p50, rel=0.03)
        assert p95 == pytest.approx(real_p95, rel=0.09)
    real_r = np.corrcoef(prompt[fits], output[fits])[0, 1]
    model_r = np.corrcoef(*drawn)[0, 1]
    assert np.sign(model_r) == np.sign(real_r)
    assert model_r == pytest.approx(real_r, abs=0.09)


def test_the_output_given_a_long_or_short_prompt_is_that_of_the_source(named):
    found, prompt, output = named
    drawn_prompt, drawn_output = _drawn(found)
    for low, high in ((0.0, 0.1), (0.2, 0.3), (0.45, 0.55), (0.7, 0.8), (0.95, 1.0)):
        edges = np.quantile(prompt, (low, high))
        real = output[(prompt >= edges[0]) & (prompt <= edges[1])].mean()
        model = drawn_output[(drawn_prompt >= edges[0]) & (drawn_prompt <= edges[1])].mean()
        assert model == pytest.approx(real, rel=0.25)


def test_marginals_alone_would_lose_the_correlation(named):
    found, prompt, output = named
    one_band = JointQuantiles.fit(prompt, output, bands=1)
    alone = np.corrcoef(*one_band.sample(100_000, rng.stream(0, "test")))[0, 1]
    real, banded = np.corrcoef(prompt, output)[0, 1], np.corrcoef(*_drawn(found))[0, 1]
    assert abs(alone) < 0.02
    assert abs(banded - real) < 0.2 * abs(alone - real)


def test_sharegpt_like_lengths_from_a_table(shared_data):
    source = from_file(shared_data("traces/sharegpt_10k_lengths.csv")).trace.table
    fitted = Distribution("sharegpt", JointQuantiles.fit(source.prompt_tokens, source.output_tokens))
    prompt, output = _drawn(fitted)
    assert prompt.mean() == pytest.approx(source.prompt_tokens.mean(), rel=0.03)
    assert output.mean() == pytest.approx(source.output_tokens.mean(), rel=0.02)
    assert np.quantile(prompt, 0.5) == pytest.approx(35, abs=2)


def test_names_ignore_case_and_punctuation():
    assert workload_ids() == ("chat", "summarize")
    assert workload("Chat") == workload("chat") == workload("-CHAT-")
    assert hash(workload("chat")) == hash(workload("chat"))


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"^unknown workload 'summarise'; did you mean 'summarize'\?$"):
        workload("summarise")
    with pytest.raises(UnknownNameError, match=r"^unknown workload 'zzz'; known: chat, summarize$"):
        workload("zzz")


def test_a_file_by_path_and_by_bare_name(tmp_path, monkeypatch):
    for name in ("chat", "mine", "pairs.csv"):
        (tmp_path / name).write_text("in_tokens,out_tokens\n3,4\n")
    monkeypatch.chdir(tmp_path)
    assert workload("chat").name == "chat"
    assert isinstance(workload("chat"), Distribution)
    for file in ("./chat", "mine", "pairs.csv", tmp_path / "chat"):
        assert workload(file).requests(max_context=None, seed=0).prompt_tokens.tolist() == [3]
    with pytest.raises(WorkloadError, match=r"pear\.csv: cannot be read"):
        workload("pear.csv")


def test_a_description_is_returned_as_it_is():
    batch = fixed(1, 2, 3)
    assert workload(batch) is batch


def test_the_description_names_source_licence_and_every_number():
    about = json.loads(json.dumps(workload("chat").describe()))
    assert about["grade"] == "measured"
    assert "Splitwise" in about["source"]
    assert "CC-BY" in about["licence"]
    assert about["prompt_tokens"]["p50"] == pytest.approx(1020, abs=2)
    assert about["prompt_tokens"]["max"] == about["prompt_quantiles"][-1] == 14050
    assert about["output_tokens"]["max"] == 1000
    assert len(about["output_quantiles"]) == 12


def test_equal_seeds_equal_draws_and_longer_draws_begin_with_shorter_ones():
    chat = workload("chat")
    eight = chat.requests(max_context=4096, n=8, seed=3)
    assert eight == chat.requests(max_context=4096, n=8, seed=3)
    assert eight == chat.requests(max_context=4096, n=500, seed=3).head(8)
    assert eight != chat.requests(max_context=4096, n=8, seed=4)


def test_arrivals_do_not_shift_the_lengths():
    chat = workload("chat")
    start, spread = (chat.requests(max_context=4096, n=20, rate=rate, seed=3) for rate in (None, 2.0))
    assert start.prompt_tokens.tolist() == spread.prompt_tokens.tolist()
    assert start.arrival_ps.tolist() == [0] * 20
    assert spread.arrival_ps[0] > 0


@pytest.mark.parametrize("name", ["chat", "summarize"])
@pytest.mark.parametrize("max_context", [512, 2048, 4096, 131_072])
def test_draws_fit_in_the_context(name, max_context):
    table = workload(name).requests(max_context=max_context, n=2000, seed=0)
    assert len(table) == 2000
    assert table.dropped == ()
    assert (table.prompt_tokens + table.output_tokens).max() <= max_context


def test_a_context_that_nothing_fits_in_is_refused():
    with pytest.raises(WorkloadError, match=r"^chat: fewer than one request in 1000 fits in a context of 12 tokens$"):
        workload("chat").requests(max_context=12, n=4, seed=0)
    with pytest.raises(ConfigError, match=r"^max_context: "):
        workload("chat").requests(max_context=1, n=4, seed=0)


def test_a_distribution_needs_a_number_of_requests():
    with pytest.raises(ConfigError, match=r"^requests: expected a number of requests: chat has no end"):
        workload("chat").requests(max_context=4096, seed=0)


def test_interpolation_between_table_entries_by_hand():
    joint = JointQuantiles([10, 20, 50], [[1, 1], [100, 200]])  # probabilities 0, 1/2, 1
    prompt, output = joint.lengths([0.0, 0.25, 0.5, 0.75, 1.0], [0.5, 0.5, 0.0, 0.5, 1.0])
    assert prompt.tolist() == [10, 15, 20, 35, 50]
    assert output.tolist() == [1, 1, 100, 150, 200]


def test_the_grid_is_symmetric_and_dense_at_the_ends():
    grid = np.array(cosine_grid(41))
    assert (grid[0], grid[20], grid[40]) == (0.0, pytest.approx(0.5), 1.0)
    assert np.allclose(grid + grid[::-1], 1.0)
    assert np.diff(grid)[0] == pytest.approx(np.diff(grid).min())
    assert np.diff(grid)[0] < 0.0016


@pytest.mark.parametrize(
    ("prompt", "bands"),
    [([5], [[1, 2]]), ([0, 5], [[1, 2]]), ([5, 4], [[1, 2]]), ([1, float("nan")], [[1, 2]]),
     ([1, 2], []), ([1, 2], [[3]]), ([1, 2], [[1, 2], [2, 1]])],
)  # fmt: skip
def test_unsound_tables_are_refused(prompt, bands):
    with pytest.raises(WorkloadError, match=r"^quantiles: expected"):
        JointQuantiles(prompt, bands)


def test_too_few_pairs_for_the_bands_are_refused():
    with pytest.raises(WorkloadError, match="3 requests are too few for 12 bands"):
        JointQuantiles.fit([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("key", ["prompt_quantiles", "output_quantiles"])
def test_each_table_of_the_catalogue_matters(key):
    before = workload("chat").requests(max_context=4096, n=50, seed=0)
    raised = np.array(catalog.entry("workloads", "chat")[key]) * 1.1
    with catalog.patched("workloads", "chat", key, raised.tolist()):
        assert workload("chat").requests(max_context=4096, n=50, seed=0) != before
    assert workload("chat").requests(max_context=4096, n=50, seed=0) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "prompt_quantiles",
            7,
            r"^workloads\.chat\.prompt_quantiles: expected a list of token counts, not 7",
        ),
        (
            "prompt_quantiles",
            [1, "x"],
            r"^workloads\.chat\.prompt_quantiles: expected a token count, not 'x'",
        ),
        ("prompt_quantiles", [[1, 2]], r"^workloads\.chat\.prompt_quantiles: expected a token count"),
        ("output_quantiles", [1, 2], r"^workloads\.chat\.output_quantiles: expected a list of token counts"),
        (
            "output_quantiles",
            [[1, True]],
            r"^workloads\.chat\.output_quantiles: expected a token count, not True",
        ),
        ("prompt_quantiles", [9, 3], r"^workloads\.chat: expected .* never fall"),
    ],
)
def test_an_unsound_entry_names_its_key(key, value, message):
    with catalog.patched("workloads", "chat", key, value), pytest.raises(ConfigError, match=message):
        workload("chat")


def test_an_unknown_or_missing_key_is_named(monkeypatch):
    entry = catalog.entry("workloads", "chat")
    facts = dict(entry.facts)
    found = {"chat": attrs.evolve(entry, facts=facts | {"prompt_quantile": facts["prompt_quantiles"]})}
    monkeypatch.setitem(catalog._loaded, "workloads", found)
    with pytest.raises(ConfigError, match=r"^workloads\.chat\.prompt_quantile: unknown key; did you mean"):
        workload("chat")
    found["chat"] = attrs.evolve(entry, facts={key: fact for key, fact in facts.items() if key != "licence"})
    with pytest.raises(ConfigError, match=r"^workloads\.chat\.licence: is missing$"):
        workload("chat")
