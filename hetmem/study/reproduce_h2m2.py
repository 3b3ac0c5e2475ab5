"""H2M2 (arXiv 2504.14893): speedups over LPDDR-only, mapping policies, overheads, placement, a dynamic batch, sensitivity.

Rows are named ``<model>/<what>``, the mean over eight equal steps of S, and ``<model>/<what>@<S>`` for one length, of
which the paper publishes none. One constant is fitted, the exposed load of a tile of weights, 100 cycles, to GPT3-175B;
it holds for all models. ``as_published``: memories and link at their printed rates, every query head streams its KV on
the vector units. ``fair``: what such memories and links sustain, for every system in the row, and for Llama2 one read
per KV head, on the matrix units.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from attrs import evolve

from hetmem.hardware.board import BoardConfig
from hetmem.hardware.config import machine
from hetmem.study.h2m2_runs import (
    CASES,
    CHINCHILLA,
    DYNAMIC_ITERATIONS,
    FAIR,
    GPT3,
    IDEAL,
    LLAMA2,
    PUBLISHED,
    UNPAGED,
    Case,
    Growth,
    Setting,
    Settings,
    dynamic,
    growth,
    iteration,
    mean,
    speedup,
    window_s,
)
from hetmem.study.reproduce import Row, Tolerance, verdict

SPEEDUP = "speedup over lpddr-only"
NOT_PUBLISHED = "no published value"
OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
WALKERS = (1, 2, 4, 8)
#: The costs of paged memory, each by the setting that leaves it out.
COSTS = {"translation": "translation", "page-table": "upkeep", "migration": "migration"}
PAPER = {
    GPT3: {"h2m2": 1.46, "oracle": 1.50, "hierarchical": 1.07, "greedy-over-oracle": 0.9744,
           "abstraction-overhead": 0.0080},
    LLAMA2: {"h2m2": 2.94, "oracle": 3.00, "hierarchical": 2.75, "greedy-over-oracle": 0.9940,
             "abstraction-overhead": 0.0136},
    CHINCHILLA: {},
}  # fmt: skip
MAPPINGS = {"a-major": 1.40, "q-major": 1.22, "f-major": 1.12, "naive": 1.27, "static": 1.30, "static-kv-first": 1.30}
LIMITS: dict[tuple[Case, str], Tolerance] = {
    (GPT3, "h2m2"): 0.07, (GPT3, "oracle"): 0.05, (GPT3, "a-major"): 0.05, (GPT3, "q-major"): 0.05,
    (GPT3, "f-major"): 0.05, (GPT3, "greedy-over-oracle"): (0.95, 0.99), (LLAMA2, "greedy-over-oracle"): (0.98, 1.0),
    (GPT3, "abstraction-overhead"): (0.003, 0.02), (LLAMA2, "abstraction-overhead"): (0.003, 0.02),
}  # fmt: skip
FITTED = ("h2m2", "oracle")  # of GPT3: the averages that fix the tile overhead
REASONS = {
    (GPT3, "hierarchical"): "how much of the movement overlaps with compute is not published; see hierarchical-overlap",
    (GPT3, "naive"): "whole sub-layers come to 1.23-1.30 without the tile overhead, which the other averages need",
    (GPT3, "static"): "the fractions of the paper's static placement are not published: these minimise time at the "
                      "longest S; static-kv-first is the other end",
    (GPT3, "static-kv-first"): "the fractions of the paper's static placement are not published: all KV that fits, then "
                               "weights; static is the other end",
    (LLAMA2, "h2m2"): "needs every query head to stream its KV; with one read per KV head half of it; not gated",
    (LLAMA2, "oracle"): "needs every query head to stream its KV; with one read per KV head half of it; not gated",
    (GPT3, "abstraction-overhead"): "fair exposes more: at the rate that LPDDR sustains, memory and compute of a half take "
                                    "equally long, so that page walks are no longer hidden",
    (LLAMA2, "hierarchical"): "as h2m2, and it wins at long S here while the paper says at short S",
}  # fmt: skip
WASTE = "pages less bytes; the printed formula is another one, and the tensors that it counts are not defined"
ENERGY = (
    "memory energy per bit alone cannot give it, nor any mix with static power by the published ratios; not a target"
)
SENSITIVITY: dict[str, tuple[tuple[str, ...], tuple[float, ...], bool]] = {
    # name: settings, factors on them, whether the baseline has the part too
    "hbm-capacity": (("machine.fast.capacity_bytes",), (0.5, 0.75, 1.5, 2.0), False),
    "hbm-bandwidth": (("machine.fast.bandwidth_bytes_per_s",), (0.5, 2.0), False),
    "lpddr-bandwidth": (("machine.slow.bandwidth_bytes_per_s",), (0.5, 2.0), True),
    "lpddr-compute": (("machine.slow_chip.matrix.cores", "machine.slow_chip.vector.cores"), (0.5, 2.0), True),
}
Measure = Callable[[int, str], float]


def h2m2() -> list[Row]:
    """Return every row of the reproduction; about a minute."""
    rows = [row for case in CASES for row in speedups(case)]
    for name in MAPPINGS:
        rows += _over_lengths(GPT3, name, _speedup_of(GPT3, mapping=name, settings=IDEAL))
    rows += gqa_both_ways()
    rows += hierarchical_overlaps()
    rows += [row for case in CASES for row in overheads(case)]
    rows += placement()
    rows += energy()
    rows += dynamic_batch()
    return rows + sensitivity()


def _speedup_of(case: Case, system: str = "h2m2", mapping: str | None = None, settings: Settings = ()) -> Measure:
    return lambda length, assumed: speedup(case, length, Setting(system, assumed, mapping, settings))


def _over_lengths(
    case: Case, what: str, measure: Measure, *, metric: str = SPEEDUP, unit: str = "1", system: str = "h2m2"
) -> list[Row]:
    """Return the mean over the lengths and a row per length of ``measure(length, assumptions)``."""
    values = {a: {s: measure(s, a) for s in case.lengths} for a in (PUBLISHED, FAIR)}
    published, fair = (mean(values[a].values()) for a in (PUBLISHED, FAIR))
    doublings = mean(values[PUBLISHED][s] for s in case.doublings)
    grid = f"mean over S = {', '.join(map(str, case.lengths))}; the doublings give {doublings:.4g}"
    reason = REASONS.get((case, what))
    paper = PAPER[case].get(what, MAPPINGS.get(what) if case is GPT3 else None)
    limit = LIMITS.get((case, what))
    judged = "not-reproducible" if limit is None else None
    rows = [
        _row(case, what, published, fair, paper, limit, metric=f"{metric}, mean over S", unit=unit, system=system,
             judged=judged, note="; ".join(filter(None, (grid, reason or (None if paper else NOT_PUBLISHED)))))
    ]  # fmt: skip
    return rows + [
        _row(case, f"{what}@{s}", values[PUBLISHED][s], values[FAIR][s], metric=metric, unit=unit, system=system)
        for s in case.lengths
    ]


def _row(
    case: Case, what: str, published: float | None, fair: float | None = None, paper: float | None = None,
    limit: Tolerance = None, *, metric: str, unit: str = "1", system: str = "h2m2", judged: str | None = None,
    note: str = NOT_PUBLISHED,
) -> Row:  # fmt: skip
    if paper is None and limit is None:
        judged = "not-reproducible"
    return Row(
        quantity=f"{case.model}/{what}", system=system, model=case.model, batch=case.batch, metric=metric, unit=unit,
        paper=paper, as_published=published, fair=fair, tolerance=limit,
        verdict=judged or verdict(published, paper, limit, fitted=case is GPT3 and what in FITTED), note=note,
    )  # fmt: skip


def speedups(case: Case) -> list[Row]:
    """Return H2M2, the oracle, the two other machines and the greedy's distance from the oracle."""
    rows = _over_lengths(case, "h2m2", _speedup_of(case))
    rows += _over_lengths(case, "oracle", _speedup_of(case, mapping="oracle", settings=IDEAL))
    for system in ("hierarchical", "multi-hbm"):
        rows += _over_lengths(case, system, _speedup_of(case, system), system=system)

    def ratio(length: int, assumed: str) -> float:
        best, greedy = (iteration(case, length, Setting("h2m2", assumed, m, IDEAL)) for m in ("oracle", "greedy"))
        return best.seconds / greedy.seconds

    return rows + _over_lengths(case, "greedy-over-oracle", ratio, metric="time of the oracle over that of the greedy")


def gqa_both_ways() -> list[Row]:
    """Return Llama2 with one KV read per KV head, printed rates, on either unit: the other reading of the paper."""
    rows = []
    for unit in ("matrix", "vector"):
        reuse: Settings = (("machine.gqa_reuse", True), ("machine.gqa_unit", unit))
        for what, setting in (
            ("h2m2", Setting(settings=reuse)),
            ("oracle", Setting(mapping="oracle", settings=(*IDEAL, *reuse))),
            ("hierarchical", Setting("hierarchical", settings=reuse)),
        ):
            base = Setting("lpddr-only", settings=reuse)
            value = mean(speedup(LLAMA2, s, setting, base) for s in LLAMA2.lengths)
            rows.append(
                _row(LLAMA2, f"{what}-one-kv-read-{unit}", value, None, PAPER[LLAMA2][what], system=setting.system,
                     metric=f"{SPEEDUP}, mean over S", judged="not-reproducible",
                     note=f"one read per KV head, on the {unit} units, at printed rates; fair adds measured rates to "
                          "it, so it is null here; not gated")
            )  # fmt: skip
    return rows


def hierarchical_overlaps() -> list[Row]:
    """Return GPT3 on the hierarchy with each overlap of movement and compute."""
    rows = []
    for overlap in OVERLAPS:
        measure = _speedup_of(GPT3, "hierarchical", settings=(("machine.overlap", overlap),))
        published, fair = (mean(measure(s, a) for s in GPT3.lengths) for a in (PUBLISHED, FAIR))
        rows.append(
            _row(GPT3, f"hierarchical-overlap@{overlap}", published, fair, PAPER[GPT3]["hierarchical"],
                 metric=f"{SPEEDUP}, mean over S", system="hierarchical", judged="not-reproducible",
                 note="the published overlap is not known; some partial overlap gives the published average")
        )  # fmt: skip
    return rows


def overheads(case: Case) -> list[Row]:
    """Return what paged memory costs: a run with it over one without, less one; and each cost left out in turn."""

    def overhead(settings: Settings = ()) -> Measure:
        def measure(length: int, assumed: str) -> float:
            paid = window_s(case, length, Setting(assumptions=assumed, settings=settings))
            return paid / window_s(case, length, Setting(assumptions=assumed, settings=UNPAGED)) - 1

        return measure

    metric = "iteration time with paged memory over that without, less one"
    rows = _over_lengths(case, "abstraction-overhead", overhead(), metric=metric)
    for walkers in WALKERS:
        measure = overhead((("machine.paging.walkers", walkers),))
        rows.append(
            _row(case, f"abstraction-overhead-walkers@{walkers}", mean(measure(s, PUBLISHED) for s in case.lengths),
                 metric=f"{metric}, mean over S", note="the number of page walkers is not published; two is assumed")
        )  # fmt: skip
    for name, switch in COSTS.items():
        spared: Settings = ((f"machine.abstraction.{switch}", False),)
        cost = mean(
            window_s(case, s, Setting()) / window_s(case, s, Setting(settings=spared)) - 1 for s in case.lengths
        )
        rows.append(
            _row(case, f"overhead-{name}", cost, metric=f"iteration time with {name} over that without, less one",
                 note="what is left of the abstraction overhead is fragmentation, which takes capacity from the mapping")
        )  # fmt: skip
    return rows


@cache
def gpt3_growth() -> Growth:
    """Return the batch of GPT3 growing through the paper's whole range."""
    return growth(GPT3, GPT3.lengths[0], GPT3.longest)


def placement() -> list[Row]:
    """Return where GPT3's sub-layers are as its batch grows, what moves, and what pages waste."""
    grown = gpt3_growth()
    rows = []
    for name, share in grown.shares.items():
        for s in GPT3.lengths:
            at = int(np.flatnonzero(grown.length == s)[0])
            rows.append(_row(GPT3, f"share-{name}@{s}", float(share[at]), metric=f"share of {name} on HBM"))
    gone = {name: first_length(grown, grown.shares[name] == 0) for name in ("fc", "qkv")}
    falls = first_length(grown, grown.shares["attention"] < grown.shares["attention"][0])
    for name, length in (*gone.items(), ("attention", falls)):
        what = "attention-falls" if name == "attention" else f"{name}-leaves"
        rows.append(
            _row(GPT3, what, length, metric="first S at which it falls" if name == "attention" else "first S without it on HBM",
                 unit="tokens", note="the paper publishes the order: fc, qkv, then attention")
        )  # fmt: skip
    moved = grown.migrated_s / grown.seconds
    table_bytes = board().part("paging", board().paging).table_bytes
    waste = grown.waste_bytes / board().part("fast", board().fast).capacity_bytes
    on_grid = np.isin(grown.length, GPT3.lengths)
    return [
        *rows,
        _row(GPT3, "migration-mean", float(moved.mean()), None, None, (0.0, 0.005),
             metric="time of migrated bytes on LPDDR over the iteration's", note="the paper calls it negligible"),
        _row(GPT3, "migration-max", float(moved.max()), metric="largest such share of an iteration",
             note="a slice of every layer moves at once; the paper gives no figure"),
        _row(GPT3, "fragmentation", float(waste[on_grid].max()), None, 0.0016, (0.0, 0.005),
             metric="largest waste of pages on HBM over its capacity, over the eight S", note=f"{WASTE}; fair changes nothing"),
        _row(GPT3, "fragmentation-every-s", float(waste.max()), None, 0.0016, judged="not-reproducible",
             metric="largest waste of pages on HBM over its capacity, over every S",
             note=f"{WASTE}; all layers are alike, so at some S the last pages of all tensors are nearly empty at once"),
        _row(GPT3, "page-table", float(table_bytes), None, 4 * 2.0**20, 1e-9, unit="B",
             metric="flat page table of one side for 1 TB", note="4 MB for 1 TB, taken as 4 MiB for 1 TiB; fair changes nothing"),
    ]  # fmt: skip


def first_length(grown: Growth, where: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> float:
    """Return the first length at which ``where`` holds; NaN if it never does."""
    found = np.flatnonzero(where)
    return float(grown.length[found[0]]) if len(found) else float("nan")


@cache
def board() -> BoardConfig:
    """Return the board of H2M2 as published."""
    config = machine("h2m2", PUBLISHED)
    assert isinstance(config, BoardConfig)
    return config


def energy() -> list[Row]:
    """Return the memory energy of an iteration over that of LPDDR-only, accesses alone."""

    def ratio(length: int, assumed: str) -> float:
        ours, base = (iteration(GPT3, length, Setting(system, assumed)) for system in ("h2m2", "lpddr-only"))
        return ours.memory_j / base.memory_j

    published, fair = (mean(ratio(s, a) for s in GPT3.lengths) for a in (PUBLISHED, FAIR))
    metric = "memory energy per token over lpddr-only's, mean over S"
    return [_row(GPT3, "memory-energy", published, fair, 0.76, metric=metric, judged="not-reproducible", note=ENERGY)]


def dynamic_batch() -> list[Row]:
    """Return the batch that turns over at random: remapping against fixed fractions, and what moves."""
    settings = {"h2m2": Setting(), "static": Setting(mapping="static"), "hierarchical": Setting("hierarchical")}
    base, _ = dynamic(Setting("lpddr-only"))
    rows = []
    note = f"{DYNAMIC_ITERATIONS} decode iterations, requests end and join at random; the paper's lengths are not published"
    for name, setting in settings.items():
        fair_base, _ = dynamic(Setting("lpddr-only", FAIR))
        rows.append(
            _row(GPT3, f"dynamic-{name}", base / dynamic(setting)[0],
                 fair_base / dynamic(evolve(setting, assumptions=FAIR))[0], system=setting.system,
                 metric=f"{SPEEDUP}, iterations without a prefill", note=note)
        )  # fmt: skip
    grown = dynamic(Setting())[1]
    assert grown is not None
    moved = grown.migrated_s / grown.seconds
    rows += [
        _row(GPT3, "dynamic-migration-mean", float(moved.mean()), None, None, (0.0, 0.005),
             metric="time of migrated bytes on LPDDR over the iteration's", note=note),
        _row(GPT3, "dynamic-migration-max", float(moved.max()), metric="largest such share of an iteration", note=note),
    ]  # fmt: skip
    return rows


def sensitivity() -> list[Row]:
    """Return GPT3's mean speedup with one part of the board scaled."""
    rows = []
    for name, (paths, factors, shared) in SENSITIVITY.items():
        for factor in factors:
            values = {}
            for assumed in (PUBLISHED, FAIR):
                own = scaled("h2m2", assumed, paths, factor)
                base = Setting(
                    "lpddr-only", assumed, settings=scaled("lpddr-only", assumed, paths, factor) if shared else ()
                )
                setting = Setting("h2m2", assumed, settings=own)
                values[assumed] = mean(speedup(GPT3, s, setting, base) for s in GPT3.lengths)
            against = "the baseline has the same" if shared else "the baseline has none"
            rows.append(
                _row(GPT3, f"sensitivity-{name}@{factor:g}x", values[PUBLISHED], values[FAIR],
                     metric=f"{SPEEDUP}, mean over S", note=f"{name} scaled, {against}; {NOT_PUBLISHED}")
            )  # fmt: skip
    return rows


def scaled(system: str, assumed: str, paths: tuple[str, ...], factor: float) -> Settings:
    """Return the settings that scale the numbers at ``paths`` of a system's machine."""
    found: list[tuple[str, float]] = []
    for path in paths:
        node = machine(system, assumed)
        for name in path.split(".")[1:]:
            node = getattr(node, name)
        value = float(node) * factor  # type: ignore[arg-type]
        found.append((path, int(value) if isinstance(node, int) else value))
    return tuple(found)
