"""What ``hetmem reproduce papi`` prints: every row that the paper allows to gate is met, the others say why not."""

import pytest

from hetmem.study import reproduce_papi as study
from hetmem.study.reproduce import reproductions

EXPECTED = {
    "papi-over-a100-attacc", "papi-over-a100-hbm-pim", "papi-over-attacc-only", "attacc-only-over-a100-attacc",
    "runs-against-closed-forms", "crossing-4p1b-limit", "crossing-4p1b-nolimit", "crossing-1p1b-limit",
    "crossing-1p1b-nolimit", "fc-4p1b-over-1p1b", "attention-1p2b-over-1p1b", "communication-share", "dram-share",
    "sensitivity",
}  # fmt: skip


def test_it_is_registered():
    assert reproductions()["papi"] is study.papi
    assert "attacc" in reproductions()


def test_the_kernels_measured_on_runs():
    (fc,) = study._fc()
    assert fc.as_published == pytest.approx(2.9, rel=0.15)
    assert fc.fair == pytest.approx(2.9, rel=0.15)
    assert [row.verdict for row in study._attention()] == ["match"] * 3
    assert [row.verdict for row in study._dram_share()] == ["match"] * 2


def test_the_bound_on_the_gain_over_attacc_only_is_far_below_the_published_one():
    assert 4 < study.bound() < 5
    assert f"{study.bound():.1f}" in study._bound_note()
    for point in (("llama-65b", 4, 1), ("gpt3-175b", 64, 4)):
        assert study.gain("attacc-only", "time", point, 2) < study.bound()


def test_several_crossings_are_named():
    first = next(row for row in study._crossings() if row.metric == "tile law")
    assert (first.quantity, first.model, first.as_published) == ("crossing-4p1b-limit", "llama-65b", 52)
    assert "3 crossings, the GPUs are faster at 37-48" in first.note


def test_the_law_and_the_run_of_a_seed_are_the_same_batch():
    for system in ("papi", "attacc-only"):
        point = (system, "llama-65b", 16, 2)
        assert study.by_run(system, "as-published", *point[1:], 3) == pytest.approx(study.by_law(*point, 3), rel=1e-6)


@pytest.mark.slow
def test_every_gated_row_is_met():
    rows = study.papi()
    assert {row.quantity for row in rows} == EXPECTED
    for row in rows:
        assert row.note, row
        if row.tolerance is not None:
            assert row.verdict == "match", row
        else:
            assert row.verdict == "not-reproducible", row
    points = [row for row in rows if row.model is not None and row.quantity.startswith("papi-over")]
    assert len(points) == 2 * 3 * 27
    assert all(row.fair is not None for row in points)
