"""The pictures, read back from their artists: what is drawn is what was simulated."""

import json
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

import hetmem
from hetmem import plot
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.study.compare import compare

mpl.use("Agg")
import matplotlib.pyplot as plt

WORK = {"model": "opt-13b", "workload": hetmem.fixed(64, 4, 2)}


@pytest.fixture(scope="module")
def comparison():
    return compare(["resident", "ndp-dimm"], gpus=1, **WORK)


@pytest.fixture(scope="module")
def run():
    return hetmem.simulate("ndp-dimm", **WORK)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def row(system="a", assumptions="fair", preset=None, model="m", workload="w", speed=1.0, refused=None, tpot=0.1):
    measured = refused is None
    spread = {p: tpot and tpot * k for k, p in enumerate(("p50", "p90", "p99"), 1)}
    return {
        "system": system, "assumptions": assumptions, "dimm_preset": preset, "model": model, "workload": workload,
        "tokens_per_s": speed if measured else None, "tpot_s": spread if measured else None, "refused": refused,
    }  # fmt: skip


def dots(ax):
    """The points of each line, by y."""
    return {float(line.get_ydata()[0]): np.asarray(line.get_xdata(), float).tolist() for line in ax.lines}


def labels(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def notes(ax):
    return [text.get_text() for text in ax.texts]


def rendered_overlaps(ax):
    """Draw, and return the pairs of visible texts whose boxes overlap."""
    figure = ax.figure
    figure.draw_without_rendering()
    texts = [t for axes in figure.axes for t in axes.findobj(mpl.text.Text) if t.get_visible() and t.get_text()]
    ticks = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    drawn = {id(t.label1) for axis in ticks for t in axis._update_ticks()}
    every = {id(t.label1) for axis in ticks for t in (*axis.majorTicks, *axis.minorTicks)}
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if id(t) in drawn or id(t) not in every]
    return [
        (a, b)
        for k, (a, one) in enumerate(boxes)
        for b, other in boxes[k + 1 :]
        if one.overlaps(other) and min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]  # fmt: skip


@pytest.mark.parametrize(
    "draw",
    [
        lambda c, ax: plot.throughput(c.rows, ax=ax),
        lambda c, ax: plot.latency_percentiles(c.rows, "ttft_s", ax=ax),
        lambda c, ax: plot.energy([run for run in c.runs if run], ax=ax),
        lambda c, ax: plot.energy([run for run in c.runs if run], share=True, ax=ax),
        lambda c, ax: plot.utilization(c.runs[-1], ax=ax),
        lambda c, ax: plot.throughput_against_batch({2: c.rows, 4: c.rows}, ax=ax),
    ],
    ids=["throughput", "latency", "energy", "energy-share", "utilization", "batch"],
)
def test_every_picture_takes_an_ax_or_makes_one_and_leaves_the_rc_parameters(comparison, draw):
    before = dict(mpl.rcParams)
    given = plt.subplots()[1]
    assert draw(comparison, given) is given
    made = draw(comparison, None)
    assert made.figure is not given.figure
    assert made.get_xlabel()
    assert rendered_overlaps(made) == []
    assert dict(mpl.rcParams) == before


def test_throughput_draws_the_value_of_each_run_or_row(comparison):
    rows = comparison.rows
    ax = plot.throughput(rows)
    assert dots(ax) == {k: [one["tokens_per_s"]] for k, one in enumerate(rows)}
    assert notes(ax) == [f"{one['tokens_per_s']:.3g}" for one in rows]
    runs = plot.throughput(comparison.runs)
    assert dots(runs) == dots(ax)
    assert labels(runs) == labels(ax)


def test_rows_read_back_from_json_draw_the_same(comparison):
    read = json.loads(json.dumps(comparison.as_json()))["rows"]
    assert dots(plot.latency_percentiles(read, "tpot_s")) == dots(plot.latency_percentiles(comparison.rows, "tpot_s"))


def test_first_result_is_at_the_top():
    ax = plot.throughput([row("a"), row("b")])
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("a"), row("b")], ["a", "b"]),
        ([row("a", "fair"), row("a", "as-published")], ["a, fair", "a, as-published"]),
        ([row("a"), row("b", preset="datasheet")], ["a", "b"]),
        ([row("a", preset="paper-fit"), row("a", preset="datasheet")], ["a, paper-fit", "a, datasheet"]),
        ([row(model="m"), row(model="n")], ["a, m", "a, n"]),
        ([row(workload="chat"), row(workload="summarize")], ["a, chat", "a, summarize"]),
    ],
)
def test_labels_name_only_what_differs(rows, expected):
    assert labels(plot.throughput(rows)) == expected


def test_a_system_keeps_one_colour():
    ax = plot.throughput([row("a", "fair"), row("b"), row("a", "as-published")])
    first, second, third = (line.get_color() for line in ax.lines)
    assert first == third != second


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (13.06, "13.1"), (1124.2, "1,120"), (99999, "100,000")]
)
def test_values_are_written_to_three_digits_without_exponent(value, text):
    assert notes(plot.throughput([row(speed=value)])) == [text]


def test_refused_rows_keep_their_place():
    rows = [row("a", refused="no room"), row("b", speed=7.0)]
    for ax in (plot.throughput(rows), plot.latency_percentiles(rows, "tpot_s")):
        assert labels(ax) == ["a", "b"]
        assert notes(ax)[-1] == "refused"
        assert set(dots(ax)) == {1.0}


def test_percentiles_are_those_of_the_row_and_a_missing_latency_says_so():
    ax = plot.latency_percentiles([row("a", tpot=0.5), row("b", tpot=None)], "tpot_s")
    line, *marks = ax.lines
    assert line.get_xdata().tolist() == pytest.approx([0.5, 1.0, 1.5])
    assert [mark.get_xdata()[0] for mark in marks] == pytest.approx([0.5, 1.0, 1.5])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["p50", "p90", "p99"]
    assert notes(ax) == ["no value"]
    assert ax.get_xlabel() == "time per output token (s)"


def test_percentiles_of_a_metric_that_is_not_there():
    with pytest.raises(UnknownNameError, match="did you mean 'ttft_s'"):
        plot.latency_percentiles([row()], "ttft")


def test_throughput_against_batch_draws_a_line_per_series():
    points = {
        4: [row("a", speed=4.0), row("b", "as-published", "paper-fit", speed=40.0)],
        1: [row("a", speed=1.0), row("b", "as-published", "paper-fit", speed=10.0)],
    }
    ax = plot.throughput_against_batch(points)
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines] == [
        ([1, 4], [1.0, 4.0]),
        ([1, 4], [10.0, 40.0]),
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a, fair", "b, as-published"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "4"]
    one, other = ax.lines
    assert one.get_color() != other.get_color()
    assert one.get_linestyle() != other.get_linestyle()
    assert one.get_marker() != other.get_marker()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("batch (sequences)", "throughput (tokens/s)")


def test_refusals_are_marked_below_the_scale():
    points = {1: [row("a", speed=2.0)], 8: [row("a", speed=9.0)], 64: [row("a", refused="no room")]}
    ax = plot.throughput_against("DIMMs", points)
    line, cross = ax.lines
    assert line.get_xdata().tolist() == [1, 8]
    assert cross.get_xdata().tolist() == [64]
    strip = ax.patches[0].get_height()
    assert 0 < cross.get_ydata()[0] < strip
    # All data and all labelled ticks are above the strip.
    top_of_strip = ax.transData.inverted().transform(ax.transAxes.transform((0, strip)))[1]
    assert min(line.get_ydata()) > top_of_strip
    assert all(tick >= top_of_strip * (1 - 1e-9) for tick in ax.get_yticks())
    assert rendered_overlaps(ax) == []


def test_refusals_of_one_system_share_a_cross_and_those_of_two_are_apart():
    points = {2: [row("a", "fair", refused="x"), row("a", "as-published", refused="x"), row("b", refused="x")]}
    crosses = [line for line in plot.throughput_against("n", points).lines if line.get_marker() == "x"]
    assert len(crosses) == 2
    assert crosses[0].get_ydata()[0] != crosses[1].get_ydata()[0]


def test_everything_refused_is_still_a_picture():
    ax = plot.throughput_against("n", {1: [row(refused="x")], 2: [row(refused="x")]})
    assert rendered_overlaps(ax) == []
    plot.throughput([row(refused="x")]).figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ({}, "at least one value"),
        ({1: []}, "at least one run or row"),
        ({0: [row()]}, "above 0, not 0"),
        ({2: [row(), row()]}, "two results at 2"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(points, problem):
    with pytest.raises(ConfigError, match=problem):
        plot.throughput_against("n", points)


@pytest.mark.parametrize("draw", [plot.throughput, plot.latency_percentiles, plot.energy])
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ConfigError, match="at least one run or row"):
        draw([])


def shares(ax):
    return np.asarray(ax.collections[0].get_array()) / 100


def edges(ax):
    return np.asarray(ax.collections[0].get_coordinates())[0, :, 0]


def test_utilization_of_a_short_run_is_step_by_step(run):
    ax = plot.utilization(run, servers=["gpu0", "pcie.h2d"])
    ends = run.utilization.column("end_ps")
    spans = np.diff(np.concatenate([[0], ends]))
    assert edges(ax) == pytest.approx(np.concatenate([[0], ends]) * 1e-12)
    for drawn, name in zip(shares(ax), ("gpu0", "pcie.h2d"), strict=True):
        assert drawn == pytest.approx(run.utilization.column(name) / spans)
    assert labels(ax) == ["gpu0", "pcie.h2d"]


@pytest.mark.parametrize("bins", [1, 2, 3])
def test_binned_utilization_keeps_the_busy_ticks(run, bins):
    ax = plot.utilization(run, servers=["gpu0.hbm"], bins=bins)
    assert shares(ax).shape == (1, bins)
    assert (shares(ax)[0] * np.diff(edges(ax))).sum() == pytest.approx(run.utilization.column("gpu0.hbm").sum() * 1e-12)
    assert 0 <= shares(ax).min() <= shares(ax).max() <= 1 + 1e-9


def test_servers_that_were_busy_alike_share_a_band(run):
    found = labels(plot.utilization(run))
    assert found[:2] == ["gpu0", "gpu0.hbm"]
    assert found[-2:] == ["dimm0-7.dram", "dimm0-7.core"]


def test_servers_that_were_not_busy_alike_do_not():
    same, other = np.array([1, 2]), np.array([1, 3])
    busy = {"d0.x": same, "d1.x": other, "d2.x": same, "d3.x": same, "e0.x": same, "d0.y": same, "cpu": same}
    assert list(plot._bands(busy)) == ["d0,2,3.x", "d1.x", "e0.x", "d0.y", "cpu"]
    assert list(plot._bands({"d9": same, "d10": same, "d11": same})) == ["d9-11"]


def test_utilization_refuses_an_unknown_server_and_no_bins(run):
    with pytest.raises(UnknownNameError, match="did you mean 'gpu0'"):
        plot.utilization(run, servers=["gpuO"])
    with pytest.raises(ConfigError, match="bins"):
        plot.utilization(run, bins=0)


def bars(ax):
    """Width by component and row."""
    return {box.get_label(): [bar.get_width() for bar in box.patches] for box in ax.containers}


def test_energy_stacks_the_components_per_token(comparison):
    runs = [one for one in comparison.runs if one]
    ax = plot.energy(runs)
    drawn = bars(ax)
    for k, one in enumerate(runs):
        for component, joules in one.energy.component_j().items():
            assert drawn.get(component, [0.0] * len(runs))[k] == pytest.approx(joules / one.output_tokens)
        total = one.energy.total_j / one.output_tokens
        assert sum(widths[k] for widths in drawn.values()) == pytest.approx(total)
        assert notes(ax)[k] == f"{plot._short(total)} J"
    for missing in {name for one in runs for name in one.energy.not_counted}:
        assert missing in ax.get_xlabel().split("not counted: ")[1]


def test_energy_shares_fill_the_bar(comparison):
    runs = [one for one in comparison.runs if one]
    drawn = bars(plot.energy(runs, share=True))
    assert [sum(widths) for widths in zip(*drawn.values(), strict=True)] == pytest.approx([100.0] * len(runs))


def test_style_is_undone_and_keeps_what_a_backend_made_of_interactive_mode():
    size = mpl.rcParams["axes.spines.top"]
    with plot.style():
        assert mpl.rcParams["axes.spines.top"] is False
        plt.ion()
    try:
        assert mpl.rcParams["axes.spines.top"] == size
        assert plt.isinteractive()
    finally:
        plt.ioff()
    with pytest.raises(ZeroDivisionError), plot.style():
        raise ZeroDivisionError
    assert mpl.rcParams["axes.spines.top"] == size


def test_colours_stay_apart_for_colour_blind_readers():
    """Under simulated deuteranopia and protanopia (Machado, Oliveira and Fernandes, 2009) no two colours meet."""
    simulated = {
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
    }
    with plot.style():
        colours = np.array([mpl.colors.to_rgb(name) for name in plot._palette()])
    assert len(colours) == 8
    for matrix in simulated.values():
        seen = np.clip((colours**2.2) @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(len(seen), 1)]
        assert apart.min() > 0.12


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, hetmem.plot; print(sorted({'matplotlib', 'pandas'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
