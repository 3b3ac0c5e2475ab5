"""A measured serving run replayed, and the kernel laws on measurements that their fit has not seen.

The run: vLLM 0.19 with Llama-3.1-8B on one RTX PRO 6000, 300 requests over 29 s, published with LLMServingSim. The
replay takes its requests, its limits (128 sequences, 2048 tokens a step, 35,913 blocks of 16) and kernel times
measured on that GPU and stack; nothing is fitted on the run. ``paper`` is the measured value; no paper's rates take
part, so ``as_published`` and ``fair`` are the same replay. Both need the data files of
:mod:`hetmem.study.reference_data`.

Assumed: no host time per step, printed beside a constant stated beforehand; attention of prefill and decode as two
kernels (``sum``), printed beside one kernel for both (``mixed``, measured on another GPU of the stack); a KV cache
as large as that of a later run of the same set-up; no sampler.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from hetmem.hardware.device import StatedError, peaks
from hetmem.hardware.kernel_law import Peaks
from hetmem.hardware.link import link
from hetmem.study.kernel_fit import Fit, by_size, error, error_of, fit, naive_seconds
from hetmem.study.kernel_form import Points
from hetmem.study.kernel_table import read
from hetmem.study.reference_data import data_path
from hetmem.study.reference_data import read as read_rows
from hetmem.study.reproduce import Row, Tolerance, verdict
from hetmem.study.run import PERCENTILES, Run
from hetmem.study.simulate import simulate
from hetmem.workload import from_file

REQUESTS = "traces/vllm_measured_requests.csv"
TIMELINE = "traces/vllm_measured_timeseries_rtxpro6000_llama-3.1-8b.csv"
GPU, MODEL, BATCH = "rtx-pro-6000", "llama3.1-8b", 128
SET_UP: Mapping[str, Any] = {
    "gpu": GPU, "model": MODEL, "max_num_seqs": BATCH, "token_budget": 2048, "kv_blocks": 35_913, "block_size": 16,
}  # fmt: skip
HOST_STEP_US = 1000.0
REPLAYS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "host-1ms.": {"host_step_us": HOST_STEP_US},
    "mixed.": {"attention": "mixed"},
    "roofline.": {"stack": "ideal"},
}
NOTES = {
    "": "assumed: host 0, attention as the sum of its kernels, no sampler, KV blocks of a later run; nothing fitted",
    "host-1ms.": "1 ms of host time per step, a round number stated beforehand; printed, not gated",
    "mixed.": "attention of a step as one kernel, its law measured on an RTX 4090; printed, not gated",
    "roofline.": "baseline: peak rates, no launch; printed, not gated",
}
LIMITS = {"ttft_s": 0.25, "tpot_s": 0.10, "latency_s": 0.12, "makespan_s": 0.10}
FULL = 124  # sequences of 128 that count as a full batch
FULL_FROM, FULL_TO = (10.5, 13.5), (44.0, 54.0)
SAMPLED_S = range(5, 65, 5)
LINEAR = {"to_32": (6.0, 15.0), "33_to_256": (10.0, 25.0), "above_256": (8.0, 20.0)}
SIBLINGS = ("llama2-7b", "internlm-20b")
LEAST_S = 1e-5  # rows of the linear profiles are whole microseconds

Array = npt.NDArray[Any]


def serving() -> list[Row]:
    """Return the replay beside the measured run, then the kernel errors."""
    return [*_replays(), *_kernels()]


def plot(path: Path) -> None:
    """Save running sequences over time and the distributions of TTFT and TPOT, measured and replayed."""
    from matplotlib.figure import Figure

    run, timeline, requests = _run(""), read_rows(TIMELINE), _measured()
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    over_time, *spreads = figure.subplots(1, 3)
    seconds = np.array([float(row["t"]) for row in timeline])
    for name, values in (
        ("measured", [float(row["running"]) for row in timeline]),
        ("replayed", _running_at(run, seconds)),
    ):
        over_time.plot(seconds, values, label=name)
    over_time.set(xlabel="time (s)", ylabel="running sequences")
    over_time.legend()
    ours = run.latencies_s()
    for axes, metric, label in zip(
        spreads, ("ttft_s", "tpot_s"), ("time to first token (s)", "time per output token (s)"), strict=True
    ):
        for values in (requests[metric], ours[metric]):
            axes.plot(np.sort(values), (np.arange(len(values)) + 1) / len(values))
        axes.set(xlabel=label, ylabel="share of requests")
    figure.savefig(path)


@cache
def _run(variant: str) -> Run:
    return simulate("resident", workload=from_file(data_path(REQUESTS)), **SET_UP, **REPLAYS[variant])


def _measured() -> dict[str, Array]:
    rows = read_rows(REQUESTS)
    queued, first, last, out = (
        np.array([float(row[name]) for row in rows])
        for name in ("queued_s", "first_token_s", "last_token_s", "out_tokens")
    )
    return {
        "ttft_s": first - queued,
        "tpot_s": (last - first) / (out - 1),
        "latency_s": last - queued,
        "makespan_s": last.max(keepdims=True),
    }


def _replays() -> list[Row]:
    measured, rows = _measured(), []
    for variant, note in NOTES.items():
        run = _run(variant)
        ours = run.latencies_s() | {"makespan_s": np.array([run.makespan_s])}
        for metric, limit in LIMITS.items():
            for name, of in _statistics(metric):
                gated = name in ("mean", "") and not variant
                quantity = f"{variant}{metric}" + (f".{name}" if name else "")
                rows.append(_row(quantity, "s", of(measured[metric]), of(ours[metric]), limit if gated else None, note))
    return rows + _over_time(_run(""))


def _statistics(metric: str) -> list[tuple[str, Any]]:
    if metric == "makespan_s":
        return [("", lambda values: float(values[0]))]
    spread = [(f"p{p}", lambda values, p=p: float(np.percentile(values, p))) for p in PERCENTILES]
    return [("mean", lambda values: float(values.mean())), *spread]


def _over_time(run: Run) -> list[Row]:
    timeline = {float(row["t"]): float(row["running"]) for row in read_rows(TIMELINE)}
    full_s = [t for t, running in timeline.items() if running >= FULL]
    busy = run.steps.column("running") >= FULL
    starts, ends = (run.steps.column(name) * 1e-12 for name in ("start_ps", "end_ps"))
    note = f"at least {FULL} of {BATCH} sequences run"
    rows = [
        _row("full_batch.from_s", "s", min(full_s), float(starts[busy].min()), FULL_FROM, note),
        _row("full_batch.to_s", "s", max(full_s), float(ends[busy].max()), FULL_TO, note),
    ]
    for second, ours in zip(SAMPLED_S, _running_at(run, np.array(SAMPLED_S, dtype=float)), strict=True):
        rows.append(_row(f"running.at_{second}_s", "sequences", timeline[second], float(ours), None, "batch over time"))
    return rows


def _running_at(run: Run, seconds: Array) -> Array:
    """Return the sequences of the step under way at each second; none where there is no step."""
    starts, ends = (run.steps.column(name) * 1e-12 for name in ("start_ps", "end_ps"))
    at = np.searchsorted(starts, seconds, side="right") - 1
    within = (at >= 0) & (seconds < ends[at])
    return np.asarray(np.where(within, run.steps.column("running")[at], 0))


def _row(quantity: str, unit: str, paper: float | None, ours: float, tolerance: Tolerance, note: str) -> Row:
    judged = "not-reproducible" if tolerance is None else verdict(ours, paper, tolerance)
    return Row(
        quantity=quantity, system="resident", model=MODEL, batch=BATCH, metric=quantity, unit=unit, paper=paper,
        as_published=ours, fair=ours, tolerance=tolerance, verdict=judged, note=note,
    )  # fmt: skip


@frozen
class Unseen:
    """Errors of one class on rows that the fit has not seen: of the law and of the naive roofline, and limits in %."""

    gpu: str
    kernel: str
    law: StatedError
    naive: StatedError | None
    limits: tuple[float, float]
    split: str

    def rows(self) -> Iterable[Row]:
        """Yield the median and the 90th percentile."""
        for name, limit in zip(("median_pct", "p90_pct"), self.limits, strict=True):
            value, quantity = getattr(self.law, name), f"kernel.{self.gpu}.{self.kernel}.{name}"
            baseline = "" if self.naive is None else f"; roofline + 5 us: {getattr(self.naive, name):.1f} %"
            yield Row(
                quantity=quantity, metric=f"error on {self.law.rows} rows", unit="%", paper=None, as_published=value,
                fair=value, tolerance=(0.0, limit), verdict=verdict(value, None, (0.0, limit)),
                note=f"{self.split}{baseline}",
            )  # fmt: skip


def _kernels() -> list[Row]:
    found = [each for gpu in ("a100", "h100") for each in _linear(gpu)]
    a100 = "a100-sxm-80gb"
    found += _held_out(
        a100, "decode_attention_vidur", "kernels/vidur_attn_decode_us.csv", [], "batch%8=4",
        {"decode_attention.above_32_mib": (8.0, 18.0), "decode_attention": (8.0, 25.0)},
    )  # fmt: skip
    found += _held_out(
        a100, "decode_attention_aic", "kernels/aic_attn_decode_bf16_us.csv", ["kv_len>=16"], "n_kv=1,2,4",
        {"decode_attention.above_32_mib": (12.0, 25.0), "decode_attention": (12.0, 30.0)},
    )  # fmt: skip
    found += _held_out(
        a100, "prefill_attention", "kernels/vidur_attn_prefill_us.csv", [], "prefill_chunk_size%128=0",
        {"prefill_attention": (22.0, 45.0)}, "kernels/vidur_models.csv",
    )  # fmt: skip
    return [row for each in (*found, _allreduce(a100)) for row in each.rows()]


def _linear(gpu: str) -> list[Unseen]:
    """Return the errors by tokens, each direction of the two models pooled: fitted on one, tested on the other."""
    name = f"{gpu}-sxm-80gb"
    limits = peaks(name)
    table = read(data_path("kernels/vidur_linear_us.csv.gz"), data_path("kernels/vidur_models.csv"))
    points = {}
    for model in SIBLINGS:
        (points[model],) = (p for p in table.select([f"gpu={gpu}", f"model={model}"]).points() if p.kernel == "gemm")
    tests: dict[str, list[tuple[Fit, Points]]] = {size: [] for size in LINEAR}
    for seen, unseen in (SIBLINGS, SIBLINGS[::-1]):
        law, test = fit(points[seen], limits), points[unseen]
        for size, part in by_size(test.take(test.time_s >= LEAST_S)).items():
            if (label := size.partition(".")[2]) in tests:
                tests[label].append((law, part))
    split = "fitted on Llama-2-7B, tested on InternLM-20B, and the reverse; the worse of the two; rows from 10 us"
    return [Unseen(name, f"linear_{size}", *_worse(tests[size], limits), LINEAR[size], split) for size in LINEAR]


def _worse(tests: list[tuple[Fit, Points]], limits: Peaks) -> tuple[StatedError, StatedError]:
    errors = [(error(one.law, limits, part), error_of(naive_seconds(limits, part), part.time_s)) for one, part in tests]
    laws, naives = zip(*errors, strict=True)
    return _joined(laws), _joined(naives)


def _joined(errors: tuple[StatedError, ...]) -> StatedError:
    """Return the larger median and the larger percentile of several tests."""
    return StatedError(
        max(e.median_pct for e in errors), max(e.p90_pct for e in errors), sum(e.rows for e in errors)
    )  # fmt: skip


def _held_out(
    gpu: str, kernel: str, relative: str, where: list[str], held: str, gates: Mapping[str, tuple[float, float]],
    shapes: str | None = None,
) -> list[Unseen]:  # fmt: skip
    limits, rows = peaks(gpu), read(data_path(relative), None if shapes is None else data_path(shapes)).select(where)
    (seen,), (unseen,) = (rows.select([held], keep=keep).points() for keep in (False, True))
    law, split = fit(seen, limits).law, f"tested on {held} of {Path(relative).name}, fitted on the others"
    return [
        Unseen(
            gpu, kernel + size.removeprefix(seen.kernel).replace(".", "_"), error(law, limits, part),
            error_of(naive_seconds(limits, part), part.time_s), gates[size], split,
        )
        for size, part in by_size(unseen).items()
        if size in gates
    ]  # fmt: skip


def _allreduce(gpu: str) -> Unseen:
    rows = [row for row in list(read_rows("kernels/aic_nccl_us.csv"))[1::2] if row["op_name"] == "all_reduce"]
    size, gpus, time_us = (
        np.array([float(row[name]) for row in rows]) for name in ("message_elems", "num_gpus", "time_us")
    )
    off = error_of(np.asarray(link("nvlink3").allreduce_s(2 * size, gpus)), time_us * 1e-6)
    split = "constants fitted on the even rows of aic_nccl_us.csv, tested on the odd ones"
    return Unseen(gpu, "all_reduce", off, None, (15.0, 32.0), split)
