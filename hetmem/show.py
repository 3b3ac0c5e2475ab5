"""What the command line prints for people: tables of comparisons, reproductions, lists and facts."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmem.study.compare import Comparison
from hetmem.study.metrics import metric
from hetmem.study.reproduce import Row
from hetmem.study.search import Search
from hetmem.study.store import FAILED
from hetmem.study.sweep import Sweep

if TYPE_CHECKING:
    from rich.console import Console

    from hetmem.study.calibrate import Calibration

MANY = 5  # entries from which on one table holds them all
SHOWN_FAILURES = 5
WIDTH = 240  # of a table that goes into a file or a pipe


def console() -> "Console":
    """Return a console on standard output; wide where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def search(result: Search, figure: Path | None) -> None:
    """Print the Pareto front of a search, how its other points fared, and where the figure and the dataset are."""
    from rich.table import Table

    out = console()
    limits = ", ".join(
        f"{name} {'<=' if metric(name).goal == 'min' else '>='} {limit:g}" for name, limit in result.budgets.items()
    )
    grid = Table(title=f"Pareto front{f' within {limits}' if limits else ''}", title_justify="left")
    names = list(result.front[0].chosen) if result.front else []
    for head in ("", *names, *(metric(name).label for name in result.shown)):
        grid.add_column(head, justify="right")
    for number, one in enumerate(result.front, 1):
        grid.add_row(
            str(number),
            *(str(one.chosen[name]) for name in names),
            *(_short(one.metrics[name]) for name in result.shown),
        )
    if result.front:
        out.print(grid)
    else:
        out.print("no point is within the budgets")
    tried = "all that the space holds" if result.exhaustive else f"{result.trials} proposals"
    counts = ", ".join(f"{count} {status}" for status, count in result.counts().items())
    out.print(f"{len(result.candidates)} points, {tried}: {counts}")
    for status in ("refused", "failed", "invalid", "unknown"):
        reasons = Counter(one.reason for one in result.candidates if one.status == status)
        for reason, count in reasons.most_common(1):
            out.print(f"  {status}, {count} of them: {reason}")
    for what, path in (("figure", figure), ("dataset", result.dataset)):
        if path is not None:
            out.print(f"{what}: {path}")


def sweep(result: Sweep) -> None:
    """Print what became of a sweep's points, the first failures, and where the dataset is."""
    out = console()
    found = f", {result.found} of them before" if result.found else ""
    out.print(f"{result.done + result.refused} of {len(result.points)} points have a result{found}")
    if result.refused:
        out.print(f"{result.refused} are refused by their system")
    if result.failed:
        out.print(f"{result.failed} failed; their tracebacks are in {result.directory / FAILED}:")
        failures = result.to_pandas().query("status == 'failed'")
        for identity, reason in failures[["identity", "reason"]].head(SHOWN_FAILURES).itertuples(index=False):
            out.print(f"  {identity}: {reason}")
    out.print(f"dataset: {result.dataset}")


def comparison(result: Comparison) -> None:
    """Print a comparison as one table, and below it why systems refused and what is not counted."""
    from rich.table import Table

    grid = Table(title=_title(result), title_justify="left")
    for name in ("system", "assumptions", "DIMM preset"):
        grid.add_column(name, no_wrap=True)
    for name in ("tokens/s", "TTFT s\np50 / p99", "TPOT ms\np50 / p99", "J/token", "CO2 mg/token\nenergy + making",
                 "$/Mtoken\ncapital + energy", "requests\ndone / in"):  # fmt: skip
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("busy share of time")
    grid.add_column("bound by", no_wrap=True)
    for row in result.rows:
        names = (row["system"], row["assumptions"], row["dimm_preset"] or "-")
        if row["refused"] is not None:
            grid.add_row(*names, *["-"] * 7, "refused, see below", "-")
        else:
            grid.add_row(*names, *_cells(row))
    out = console()
    out.print(grid)
    if len(result.rows) == 1 and result.rows[0]["refused"] is None:
        out.print(_served(result.rows[0]))
    for reason in dict.fromkeys(row["refused"] for row in result.rows if row["refused"] is not None):
        out.print(f"refused: {reason}")
    for name, components in result.not_counted.items():
        out.print(f"energy of {name} does not count: {', '.join(components)}")
    if any("base" in components for components in result.not_counted.values()):
        out.print("base: the rest of the node, such as its board, fans and power supplies")
    for reason, whats in _by_reason(result.unknown.values()).items():
        out.print(f"{reason}: {', '.join(whats)}")


def _by_reason(lists: Iterable[Iterable[str]]) -> dict[str, list[str]]:
    """Return, for each reason why a figure is null, what it is given for: ``"what: reason"`` by reason, each once."""
    grouped: dict[str, list[str]] = {}
    for lines in lists:
        for line in lines:
            what, _, reason = line.partition(": ")
            known = grouped.setdefault(reason, [])
            if what not in known:
                known.append(what)
    return grouped


def _title(result: Comparison) -> str:
    first = result.rows[0]
    parts = [str(first["model"]), f"workload {first['workload']}"]
    asked = result.asked[0]
    size = asked.configuration().serving.batch
    parts.append(f"static batches of {size}" if asked.batching() == "static" else f"at most {size} sequences at once")
    return ", ".join([*parts, f"seed {result.seed}"])


def _served(row: dict[str, Any]) -> str:
    """Return how a single run was served, in a line."""
    blocks, batch, parts = row["kv_blocks"], row["batch"], []
    if row["stack"] is not None:
        parts.append(f"kernel times of {row['stack']}, attention composed as {row['attention']}")
    parts += [
        f"{row['steps']:,} steps in {_short(row['makespan_s'])} s",
        f"{_short(batch['mean'])} sequences a step (at most {batch['max']})",
        f"{blocks['peak']:,} of {blocks['total']:,} KV blocks",
        f"{row['preemptions']:,} preemptions",
    ]
    if row["refused_on_arrival"]:
        parts.append(f"{row['refused_on_arrival']:,} refused on arrival")
    if row["prefix_blocks"] is not None:
        parts.append(f"{row['prefix_blocks']['reused']:,} of {row['prefix_blocks']['asked']:,} prefix blocks reused")
    return "; ".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    ttft, tpot, requests = row["ttft_s"], row["tpot_s"], row["requests"]
    return [
        _short(row["tokens_per_s"]),
        f"{_short(ttft['p50'])} / {_short(ttft['p99'])}",
        f"{_milli(tpot['p50'])} / {_milli(tpot['p99'])}",
        _short(row["energy_per_token_j"]),
        _carbon(row),
        " + ".join(_short(row["cost_usd_per_mtoken"][part]) for part in ("capital", "energy")),
        f"{requests['done']} / {requests['in']}",
        _shares(row["time_share"]),
        row["bound"],
    ]


def _carbon(row: dict[str, Any]) -> str:
    making = row["carbon_embodied_g_per_token"]
    span = "-" if making is None else f"{_milli(making['low'])} to {_milli(making['high'])}"
    return f"{_milli(row['carbon_operational_g_per_token'])} + {span}"


def _shares(shares: dict[str, float]) -> str:
    """Return the largest shares; of numbered units that are alike, one stands for all."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for name, share in shares.items():
        unit, dot, part = name.partition(".")
        groups.setdefault(unit.rstrip("0123456789") + "*" + dot + part, []).append((share, name))
    largest = sorted(((max(members), group) for group, members in groups.items()), key=lambda m: -m[0][0])
    return ", ".join(
        f"{group if len(groups[group]) > 1 else name} {share:.0%}"
        for (share, name), group in largest[:4]
        if share >= 0.005
    )


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _milli(value: float | None) -> str:
    return "-" if value is None else _short(value * 1e3)


def reproduction(name: str, rows: Sequence[Row]) -> None:
    """Print published results beside ours; notes are numbered and stand below."""
    from rich.table import Table

    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    columns: dict[str, list[str]] = {
        head: [str(value) if (value := getattr(row, head)) is not None else "" for row in rows]
        for head in ("quantity", "system", "model", "batch", "preset", "metric", "unit")
    }
    numbers: dict[str, list[str]] = {
        "paper": [_short(row.paper) for row in rows],
        "as published": [_short(row.as_published) for row in rows],
        "off": ["" if not row.paper or row.as_published is None else _off(row) for row in rows],
        "fair": [_short(row.fair) for row in rows],
        "tolerance": [_tolerance(row) for row in rows],
        "verdict": [row.verdict for row in rows],
        "note": [str(notes.index(row.note) + 1) if row.note else "" for row in rows],
    }
    shown = {head: cells for head, cells in {**columns, **numbers}.items() if set(cells) - {"", "-"}}
    grid = Table(title=name, title_justify="left")
    for head in shown:
        grid.add_column(
            head,
            justify="right" if head in numbers else "left",
            no_wrap=head not in ("quantity", "metric"),
            overflow="fold",
        )
    for cells in zip(*shown.values(), strict=True):
        grid.add_row(*cells)
    out = console()
    out.print(grid)
    for k, note in enumerate(notes, 1):
        out.print(f"{k}. {note}")


def _off(row: Row) -> str:
    assert row.paper
    assert row.as_published is not None
    return f"{row.as_published / row.paper - 1:+.1%}"


def _tolerance(row: Row) -> str:
    if row.tolerance is None:
        return ""
    if isinstance(row.tolerance, tuple):
        return f"{row.tolerance[0]:g} to {row.tolerance[1]:g}"
    return f"±{row.tolerance:.0%}"


def calibration(found: "Calibration") -> None:
    """Print the laws that were fitted, their parameters, and their errors beside the naive roofline's."""
    from rich.table import Table

    out = console()
    laws = Table(title=f"{found.device}, stack {found.stack}: {found.table} ({found.form})", title_justify="left")
    for head in ("kernel", "law", "parameters (* on a bound)", "cross-validated\nmedian / p90 %", "rows"):
        laws.add_column(head)
    errors = Table(title="errors, median / p90 %", title_justify="left")
    for head in ("kernel and size", "rows of", "law", "roofline + 5 us", "rows"):
        errors.add_column(head)
    told = found.as_dict()
    for name, one in told["kernels"].items():
        marks = ((key, _short(value) if isinstance(value, float) else str(value), "*" * (key in one["at_bound"]))
                 for key, value in one["parameters"].items())  # fmt: skip
        values, crossed = ", ".join(f"{k} {v}{m}" for k, v, m in marks), one["cross_validated"]
        laws.add_row(name, one["law"], values, _error(crossed), str(crossed["rows"]))
    for group in ("fitted", "held_out"):
        for name, one in told[group].items():
            law, naive = one["law"], one["naive"]
            errors.add_row(name, group.replace("_", " "), _error(law), _error(naive), str(law["rows"]))
    out.print(laws)
    out.print(errors)


def _error(one: dict[str, Any]) -> str:
    return f"{one['median_pct']:.1f} / {one['p90_pct']:.1f}"


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of equal keys."""
    from rich.table import Table

    grid = Table(box=None)
    for key in rows[0]:
        grid.add_column(key)
    for row in rows:
        grid.add_row(*("" if value is None else str(value) for value in row.values()))
    console().print(grid)


def figures(found: dict[str, Any]) -> None:
    """Print figures by name, those that depend on something with a row for each."""
    rows = []
    for name, value in found.items():
        for case, figure in value.items() if isinstance(value, dict) else [("", value)]:
            rows.append({"figure": name, "of": case, "value": f"{figure:.4g}"})
    table(rows)


def fact_tables(found: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`hetmem.inventory.facts` found."""
    from rich.table import Table

    out = console()
    if len(found) > MANY:
        grid = Table(title_justify="left")
        for head in ("kind", "entry", "key", "value", "grade", "source"):
            grid.add_column(head, no_wrap=head != "source")
        for one in found:
            for key, fact in one["facts"].items():
                grid.add_row(one["kind"], one["id"], key, _value(fact["value"]), fact["grade"], fact["source"])
        out.print(grid)
        return
    for one in found:
        if "facts" not in one:
            out.print(f"{one['id']} (system): {one['summary']}")
            for role, names in one["policies"].items():
                out.print(f"  policy {role}: {', '.join(names)}")
            one = one["machine"]
        grid = Table(title=f"{one['id']} ({one['kind']})", title_justify="left")
        for head in ("key", "value", "grade", "source"):
            grid.add_column(head, no_wrap=head in ("key", "grade"))
        for key, fact in one["facts"].items():
            grid.add_row(key, _value(fact["value"]), fact["grade"], fact["source"])
        out.print(grid)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = ", ".join(map(str, value))
        return text if len(text) < 60 else f"{len(value)} values"
    return f"{value:,}" if isinstance(value, int) else str(value)
