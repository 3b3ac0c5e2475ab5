"""Hermes (HPCA'25) against the paper's figures, by the tolerances that the reproduction states; minutes long."""

import pytest

from hetmem.model.activity_stats import MeasuredSparsity
from hetmem.study import reproduce_hermes
from hetmem.study.hermes_activity import Shown
from hetmem.study.hermes_cases import Measured, Migration
from hetmem.study.reproduce import Row, as_json, reproduce, within


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return reproduce("hermes")


def of(rows: list[Row], quantity: str, **names: object) -> list[Row]:
    found = [r for r in rows if r.quantity == quantity and all(getattr(r, k) == v for k, v in names.items())]
    assert found, quantity
    return found


@pytest.mark.slow
def test_the_two_readings_of_the_dimm_bracket_the_paper(rows: list[Row]) -> None:
    for model in ("llama2-70b", "opt-66b"):
        low, high = (of(rows, "hermes-untuned", model=model, preset=p)[0] for p in ("paper-fit", "datasheet"))
        assert low.as_published < low.paper < high.as_published
        assert {low.verdict, high.verdict} == {"match"}


@pytest.mark.slow
def test_batch_one_is_within_the_stated_tolerances(rows: list[Row]) -> None:
    (kept,) = of(rows, "hermes-untuned-prefill-of-the-rest", model="llama2-70b")
    assert within(kept.as_published, 13.75, 0.15)
    for model, paper, limit in (("llama2-70b", 13.75, 0.15), ("opt-66b", 20.37, 0.20)):
        (row,) = of(rows, "hermes", model=model, batch=1)
        assert within(row.as_published, paper, limit)
        assert row.verdict == "calibrated"
    (host,) = of(rows, "powerinfer", model="llama2-70b", batch=1)
    assert within(host.as_published, 1.97, 0.15)


@pytest.mark.slow
def test_misses_carry_a_reason_and_the_sweep_is_whole(rows: list[Row]) -> None:
    sweep = of(rows, "hermes")
    assert [(r.model, r.batch) for r in sweep] == [(m, b) for m in ("llama2-70b", "opt-66b") for b in (1, 2, 4, 8, 16)]
    assert all(row.as_published and row.fair and row.note for row in sweep)
    assert all("scale better with the batch" in row.note for row in sweep if row.verdict == "miss")


@pytest.mark.slow
def test_the_order_of_the_systems_is_the_printed_one_and_fair_turns_one_over(rows: list[Row]) -> None:
    orders = {row.model: row for row in of(rows, "order-of-systems")}
    assert [orders[m].as_published for m in ("opt-66b", "llama2-70b")] == [1.0, 1.0]
    assert orders["llama2-70b"].fair == 0.0
    assert "ndp-dimm" in orders["llama2-70b"].note


@pytest.mark.slow
def test_remapping_levels_what_starts_uneven(rows: list[Row]) -> None:
    (window,) = of(rows, "imbalance-window", model="llama2-70b")
    (none,) = of(rows, "imbalance-none", model="llama2-70b")
    assert window.as_published <= 1.10
    assert 1.2 <= none.as_published <= 2.5
    (moved,) = of(rows, "moved-bytes", model="llama2-70b")
    assert 0 < moved.as_published < 4 * 3.6e6


@pytest.mark.slow
def test_the_lead_over_streaming_systems_shrinks_under_fair_links(rows: list[Row]) -> None:
    for other in ("flexgen", "deja-vu", "accelerate"):
        for row in of(rows, f"hermes-over-{other}", model="opt-66b"):
            assert row.fair < 0.4 * row.as_published


@pytest.mark.slow
def test_prefill_and_flatness(rows: list[Row]) -> None:
    (share,) = of(rows, "prefill-of-printed-time", model="opt-66b")
    assert share.verdict == "match"
    (flat,) = of(rows, "deja-vu-step-time")
    assert flat.verdict == "match"


@pytest.mark.slow
def test_moves_hide_behind_projections_and_would_take_some_percent_through_the_host(rows: list[Row]) -> None:
    (links,) = of(rows, "migration-exposed", model="opt-66b")
    (host,) = of(rows, "migration-via-host", model="opt-66b")
    assert links.verdict == host.verdict == "match"
    assert links.fair < 0.002
    assert 0.01 < host.as_published < 0.053  # all of it in the open, and still below the printed share
    (ratio,) = of(rows, "migration-links-over-host")
    assert ratio.as_published < 62 / 10
    assert ratio.verdict == "not-reproducible"


@pytest.mark.slow
def test_the_anchors_of_the_activity_are_met_together_in_every_model(rows: list[Row]) -> None:
    for name in ("similarity-adjacent", "similarity-distant", "block-share", "model-share"):
        found = of(rows, f"activity-{name}")
        assert len(found) == 6
        assert {row.verdict for row in found} == {"calibrated"}


def test_rows_are_built_from_what_was_measured_with_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"fired": 10.0, "predicted": 9.0, "missed": 2.0, "copied_bytes": 1.0, "moved_bytes": 48.0, "steps": 3.0,
              "units": 100.0, "group": 1.0}  # fmt: skip
    fake = Measured(12.0, 2.0, 10.0, {}, dict.fromkeys(("qkv", "mlp"), counts), (1.5, *[1.1] * 15), 1.0,
                    Migration(n_bytes=96.0, link_s=0.5, late_s=0.01))  # fmt: skip
    like = MeasuredSparsity(0.2, 0.43, 0.20, {1: 0.9, 12: 0.7}, 0.9)
    asked: list[object] = []
    monkeypatch.setattr(reproduce_hermes, "measure_all", asked.extend)
    monkeypatch.setattr(reproduce_hermes, "measured", lambda case: fake)
    monkeypatch.setattr(reproduce_hermes, "throughput", lambda case: 12.0)
    monkeypatch.setattr(reproduce_hermes, "baseline_tokens_per_s", lambda *_: 3.0)
    monkeypatch.setattr(reproduce_hermes, "in_parallel", lambda function, models: [function(m) for m in models])
    monkeypatch.setattr(reproduce_hermes, "shown", lambda model: Shown(model, like, {"qkv": 0.44, "mlp": 0.3}))
    rows = reproduce_hermes.hermes()
    assert len(set(asked)) > 80
    assert all(row["verdict"] in ("match", "miss", "calibrated", "not-reproducible") for row in as_json(rows)["rows"])
    assert of(rows, "predictor-recall")[0].as_published == pytest.approx(0.8)
    assert of(rows, "predictor-precision")[0].as_published == pytest.approx(8 / 9)
    assert of(rows, "predictor-accuracy")[0].as_published == pytest.approx(0.97)
    assert of(rows, "moved-bytes")[0].as_published == pytest.approx(1.0)
    assert {row.metric for row in of(rows, "predictor-recall")} == {"single mlp neurons", "single qkv neurons"}
    (late,) = of(rows, "migration-exposed")
    assert (late.as_published, late.fair, late.verdict) == (0.001, 0.001, "match")
    assert "5.0% of the run" in late.note
    (through,) = of(rows, "migration-via-host")
    assert through.as_published == pytest.approx(2 * 96 / 102.4e9 / 10)
    assert through.fair > through.as_published
    (faster,) = of(rows, "migration-links-over-host")
    assert faster.as_published == pytest.approx(2 * 96 / 102.4e9 / 0.5)
    verdicts = {q: of(rows, q, model="llama2-70b")[0].verdict for q in ("activity-block-share", "activity-model-share")}
    assert verdicts == {"activity-block-share": "calibrated", "activity-model-share": "miss"}
    assert [row.verdict for row in of(rows, "hot-drift", model="llama2-70b")] == ["match", "miss"]
