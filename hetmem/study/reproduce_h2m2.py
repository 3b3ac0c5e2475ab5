"""H2M2 (arXiv 2504.14893): speedups over LPDDR-only, mappings, overheads, placement, a dynamic batch, sensitivity.

Rows are named ``<model>/<what>``, the mean over eight equal steps of S, and ``<model>/<what>@<S>`` for one length, of
which the paper publishes none. One constant is fitted, the exposed load of a tile of weights, 100 cycles, to GPT3-175B;
it holds for all models. ``as_published``: memories and link at their printed rates, every query head streams its KV on
the vector units. ``fair``: what such memories and links sustain, for every system in the row, and for Llama2 one read
per KV head, on the matrix units.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from attrs import evolve

from hetmem.hardware.board import UNITS, BoardConfig
from hetmem.hardware.config import machine
from hetmem.policy.kernel_mapping import SIDES, SUBLAYERS
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
    (GPT3, "naive"): "whole sub-layers come near only without the tile overhead (naive-without-tile-overhead), which "
                     "the other averages need",
    (GPT3, "static"): "the paper's static fractions are not published: these minimise time at the longest S; "
                      "static-kv-first is the other end",
    (GPT3, "static-kv-first"): "the paper's static fractions are not published: all KV that fits, then weights; "
                               "static is the other end",
    (LLAMA2, "h2m2"): "needs every query head to stream its KV; with one read per KV head half of it; not gated",
    (LLAMA2, "oracle"): "needs every query head to stream its KV; with one read per KV head half of it; not gated",
    (GPT3, "abstraction-overhead"): "fair exposes more: at the rate that LPDDR sustains, memory and compute of a half "
                                    "take equally long, so that page walks are no longer hidden",
    (LLAMA2, "hierarchical"): "as h2m2, and it wins at long S here while the paper says at short S",
}  # fmt: skip
WASTE = "pages less bytes; the printed formula is another one, and the tensors that it counts are not defined"
ENERGY = "accesses alone, at the catalogue's picojoules per bit; the paper's are not published; not a target"
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
    rows += without_tile_overhead()
    rows += gqa_both_ways()
    rows += hierarchical_overlaps()
    rows += [row for case in CASES for row in overheads(case)]
    rows += [row for case in CASES for row in shares(case)]
    rows += placement()
    rows += energy()
    rows += dynamic_batch()
    return rows + sensitivity()


def _speedup_of(case: Case, system: str = "h2m2", mapping: str | None = None, settings: Settings = ()) -> Measure:
    return lambda length, assumed: speedup(case, length, Setting(system, assumed, mapping, settings))


def _over(setting: Setting, base: Setting) -> Callable[[Case], Measure]:
    """Return the speedup of ``setting`` over ``base``, both under the assumption set that is asked for."""
    return lambda case: (
        lambda length, assumed: speedup(
            case, length, evolve(setting, assumptions=assumed), evolve(base, assumptions=assumed)
        )
    )


def _pair(value: Callable[[str], float]) -> tuple[float, float]:
    return value(PUBLISHED), value(FAIR)


def _means(case: Case, measure: Measure) -> tuple[float, float]:
    return _pair(lambda assumed: mean(measure(s, assumed) for s in case.lengths))


def _over_lengths(
    case: Case, what: str, measure: Measure, *, metric: str = SPEEDUP, unit: str = "1", system: str = "h2m2"
) -> list[Row]:
    """Return the mean over the lengths and a row per length of ``measure(length, assumptions)``."""
    values = {a: {s: measure(s, a) for s in case.lengths} for a in (PUBLISHED, FAIR)}
    published, fair = (mean(values[a].values()) for a in (PUBLISHED, FAIR))
    doublings = mean(values[PUBLISHED][s] for s in case.doublings)
    grid = f"mean over S = {', '.join(map(str, case.lengths))}; the doublings give {doublings:.4g}"
    reason = REASONS.get((case, what))
    reads = f"fair: one KV read per KV head, on the {board().gqa_unit} units" if case is LLAMA2 else None
    paper = PAPER[case].get(what, MAPPINGS.get(what) if case is GPT3 else None)
    limit = LIMITS.get((case, what))
    judged = "not-reproducible" if limit is None else None
    rows = [
        _row(case, what, published, fair, paper, limit, metric=f"{metric}, mean over S", unit=unit, system=system,
             judged=judged, note="; ".join(filter(None, (grid, reason or (None if paper else NOT_PUBLISHED), reads))))
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
    """Return Llama2 with one KV read per KV head, on either unit: the other reading of the paper."""
    rows = []
    for unit in UNITS:
        reuse: Settings = (("machine.gqa_reuse", True), ("machine.gqa_unit", unit))
        for what, setting in (
            ("h2m2", Setting(settings=reuse)),
            ("oracle", Setting(mapping="oracle", settings=(*IDEAL, *reuse))),
            ("hierarchical", Setting("hierarchical", settings=reuse)),
        ):
            base = Setting("lpddr-only", settings=reuse)
            measure = _over(setting, base)
            rows.append(
                _row(LLAMA2, f"{what}-one-kv-read-{unit}", *_means(LLAMA2, measure(LLAMA2)), PAPER[LLAMA2][what],
                     system=setting.system,
                     metric=f"{SPEEDUP}, mean over S", judged="not-reproducible",
                     note=f"one read per KV head, on the {unit} units; beside the reading as published, not gated")
            )  # fmt: skip
    return rows


def without_tile_overhead() -> list[Row]:
    """Return the whole-sub-layer mapping of GPT3 on matrix units that load their tiles for free."""
    free: Settings = tuple((f"machine.{side}_chip.matrix.tile_overhead_cycles", 0.0) for side in SIDES)
    naive, base = Setting(mapping="naive", settings=(*IDEAL, *free)), Setting("lpddr-only", settings=free[1:])
    return [
        _row(GPT3, "naive-without-tile-overhead", *_means(GPT3, _over(naive, base)(GPT3)), MAPPINGS["naive"],
             metric=f"{SPEEDUP}, mean over S", judged="not-reproducible",
             note="the tile overhead set to none, for naive alone: shows the reason, not a result")
    ]  # fmt: skip


def hierarchical_overlaps() -> list[Row]:
    """Return GPT3 on the hierarchy with each overlap of movement and compute."""
    rows = []
    for overlap in OVERLAPS:
        measure = _speedup_of(GPT3, "hierarchical", settings=(("machine.overlap", overlap),))
        rows.append(
            _row(GPT3, f"hierarchical-overlap@{overlap}", *_means(GPT3, measure), PAPER[GPT3]["hierarchical"],
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
            _both(case, f"abstraction-overhead-walkers@{walkers}", measure, metric=metric,
                  note="the number of page walkers is not published; two is assumed")
        )  # fmt: skip
    for name, switch in COSTS.items():
        spared: Settings = ((f"machine.abstraction.{switch}", False),)

        def cost(length: int, assumed: str, spared: Settings = spared) -> float:
            paid, less = (window_s(case, length, Setting("h2m2", assumed, settings=s)) for s in ((), spared))
            return paid / less - 1

        rows.append(
            _both(case, f"overhead-{name}", cost, metric=f"iteration time with {name} over that without, less one",
                  note="the rest of the abstraction overhead is fragmentation, which takes capacity from the mapping")
        )  # fmt: skip
    return rows


def _both(case: Case, what: str, measure: Measure, *, metric: str, note: str) -> Row:
    """Return the mean of ``measure`` over the lengths under both assumption sets, ungated."""
    return _row(case, what, *_means(case, measure), metric=f"{metric}, mean over S", note=f"{note}; {NOT_PUBLISHED}")


def shares(case: Case) -> list[Row]:
    """Return the share of each sub-layer on HBM under the greedy, by sequence length."""

    def share(name: str, length: int) -> tuple[float, float]:
        parts = case.spec.n_heads if name == "fc" else case.spec.n_kv_heads
        return _pair(lambda assumed: iteration(case, length, Setting(assumptions=assumed)).noted[name] / parts)

    return [
        _row(case, f"share-{name}@{s}", *share(name, s), metric=f"share of {name} on HBM")
        for name in SUBLAYERS
        for s in case.lengths
    ]


@cache
def gpt3_growth(assumed: str = PUBLISHED) -> Growth:
    """Return the batch of GPT3 growing through the paper's whole range."""
    return growth(GPT3, GPT3.lengths[0], GPT3.longest, Setting(assumptions=assumed))


def placement() -> list[Row]:
    """Return when GPT3's sub-layers leave HBM as its batch grows, what moves, and what pages waste."""
    order = "the paper publishes the order: fc, qkv, then attention"
    rows = [
        _row(
            GPT3,
            f"{name}-leaves",
            *_grown(_leaves(name)),
            metric="first S without it on HBM",
            unit="tokens",
            note=order,
        )
        for name in ("fc", "qkv")
    ]
    falls = _grown(lambda g: first_length(g, g.shares["attention"] < g.shares["attention"][0]))
    rows.append(_row(GPT3, "attention-falls", *falls, metric="first S at which it falls", unit="tokens", note=order))
    capacity = board().part("fast", board().fast).capacity_bytes
    table_bytes = board().part("paging", board().paging).table_bytes
    return [
        *rows,
        _row(GPT3, "abstraction-overhead-growing", *_pair(_growing_overhead),
             metric="time of all iterations from the least to the longest S with paged memory over without, less one",
             note=f"{NOT_PUBLISHED} for a growing batch"),
        _row(GPT3, "migration-mean", *_grown(lambda g: (g.migrated_s / g.seconds).mean()), None, (0.0, 0.005),
             metric="time of migrated bytes on LPDDR over the iteration's", note="the paper calls it negligible"),
        _row(GPT3, "migration-max", *_grown(lambda g: (g.migrated_s / g.seconds).max()),
             metric="largest such share of an iteration",
             note="a slice of every layer moves at once; the paper gives no figure"),
        _row(GPT3, "fragmentation", *_grown(lambda g: g.waste_bytes[np.isin(g.length, GPT3.lengths)].max() / capacity),
             0.0016, (0.0, 0.005), metric="largest waste of pages on HBM over its capacity, over the eight S",
             note=WASTE),
        _row(GPT3, "fragmentation-every-s", *_grown(lambda g: g.waste_bytes.max() / capacity), 0.0016,
             judged="not-reproducible", metric="largest waste of pages on HBM over its capacity, over every S",
             note=f"{WASTE}; all layers are alike, so at some S the last pages of all are nearly empty at once"),
        _row(GPT3, "page-table", float(table_bytes), None, 4 * 2.0**20, 1e-9, unit="B",
             metric="flat page table of one side for 1 TB",
             note="4 MB for 1 TB, taken as 4 MiB for 1 TiB; fair is null: nothing of it depends on rates"),
    ]  # fmt: skip


def _leaves(name: str) -> Callable[[Growth], float]:
    return lambda grown: first_length(grown, grown.shares[name] == 0)


def _grown(value: Callable[[Growth], float]) -> tuple[float, float]:
    return _pair(lambda assumed: float(value(gpt3_growth(assumed))))


def _growing_overhead(assumed: str) -> float:
    plain = growth(GPT3, GPT3.lengths[0], GPT3.longest, Setting(assumptions=assumed, settings=UNPAGED))
    return float(gpt3_growth(assumed).seconds.sum() / plain.seconds.sum() - 1)


def first_length(grown: Growth, where: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> float:
    """Return the first length at which ``where`` holds.

    Raises
    ------
    ValueError
        When it never does.
    """
    return float(grown.length[where.tolist().index(True)])


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

    metric = "memory energy per token over lpddr-only's, mean over S"
    return [
        _row(GPT3, "memory-energy", *_means(GPT3, ratio), 0.76, metric=metric, judged="not-reproducible", note=ENERGY)
    ]


def dynamic_batch() -> list[Row]:
    """Return the batch that turns over at random: remapping against fixed fractions, and what moves."""
    settings = {"h2m2": Setting(), "static": Setting(mapping="static"), "hierarchical": Setting("hierarchical")}
    note = f"{DYNAMIC_ITERATIONS} decode iterations, requests end and join at random; {NOT_PUBLISHED}"

    def over_base(setting: Setting) -> tuple[float, float]:
        base = Setting("lpddr-only")
        return _pair(lambda a: dynamic(evolve(base, assumptions=a))[0] / dynamic(evolve(setting, assumptions=a))[0])

    def moved(assumed: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
        grown = dynamic(Setting(assumptions=assumed))[1]
        assert grown is not None
        return np.asarray(grown.migrated_s / grown.seconds)

    rows = [
        _row(GPT3, f"dynamic-{name}", *over_base(setting), system=setting.system,
             metric=f"{SPEEDUP}, iterations without a prefill", note=note)
        for name, setting in settings.items()
    ]  # fmt: skip
    return [
        *rows,
        _row(GPT3, "dynamic-migration-mean", *_pair(lambda a: float(moved(a).mean())), None, (0.0, 0.005),
             metric="time of migrated bytes on LPDDR over the iteration's", note=note),
        _row(GPT3, "dynamic-migration-max", *_pair(lambda a: float(moved(a).max())),
             metric="largest such share of an iteration", note=note),
    ]  # fmt: skip


def sensitivity() -> list[Row]:
    """Return GPT3's mean speedup with one part of the board scaled."""
    rows = []
    for name, (paths, factors, shared) in SENSITIVITY.items():
        against = "the baseline has the same" if shared else "the baseline has none"
        for factor in factors:

            def measure(length: int, assumed: str, paths: tuple[str, ...] = paths, factor: float = factor) -> float:
                ours, base = (scaled(system, assumed, paths, factor) for system in ("h2m2", "lpddr-only"))
                return speedup(
                    GPT3, length, Setting("h2m2", assumed, settings=ours), Setting("lpddr-only", assumed, settings=base)
                )

            rows.append(
                _both(GPT3, f"sensitivity-{name}@{factor:g}x", measure, metric=SPEEDUP,
                      note=f"{name} scaled, {against}")
            )  # fmt: skip
    return rows


def scaled(system: str, assumed: str, paths: tuple[str, ...], factor: float) -> Settings:
    """Return the settings that scale the numbers at ``paths`` of a system's machine, where it has them."""
    found: list[tuple[str, float]] = []
    for path in paths:
        value: Any = machine(system, assumed)
        for name in path.split(".")[1:]:
            value = None if value is None else getattr(value, name)
        if value is not None:
            found.append((path, type(value)(value * factor)))
    return tuple(found)
