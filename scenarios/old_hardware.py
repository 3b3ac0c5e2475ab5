"""When is old hardware greener?

One model on an old card and on newer ones, at the same demand: equal requests at even intervals, from a thousandth of
what the old card can serve to all of it. Grams of CO2 equivalent per token on three grids, energy and making together,
the old card once owned already (its making counts nothing) and once bought. Cards whose idle power is assumed carry a
band, from 0.04 to 0.20 of board power. What the host draws and took to make is left out: it is the same for all.
A table, the finding in words, and a figure.

    python scenarios/old_hardware.py --model llama2-7b --old m40 --new rtx-3090 h100-sxm-80gb --out old.png
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import _script
import hetmem
from hetmem import catalog, plot
from hetmem.hardware.gpu import gpu
from hetmem.monitor.carbon import J_PER_KWH, embodied_g, grid, processor_part
from hetmem.study.footprint import accounting
from hetmem.study.run import Run

GRIDS = ("coal", "world-2023", "hydro")
DEMANDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
PROMPT = OUTPUT = 64
IDLE_RANGE = (0.04, 0.20)  # of board power, where no idle power was measured
COLOURS = ("C3", "C0", "C2", "C4")


def idle_watts(card: str) -> dict[str, float]:
    """Return the idle power of a card with a live context: as stated, and a low and a high where that is assumed."""
    found = gpu(card)
    fact = catalog.entry("gpus", card).facts["context_w"]
    if fact.grade != "assumed":
        return {"stated": found.context_w}
    low, high = (share * found.tdp_w for share in IDLE_RANGE)
    return {"stated": found.context_w, "low": min(low, found.context_w), "high": max(high, found.context_w)}


def served(card: str, model: str, interval_s: float, requests: int, context_w: float) -> Run:
    """Return the run of ``requests`` equal requests at even intervals on one card."""
    lines = [f"{k * interval_s!r},{PROMPT},{OUTPUT}" for k in range(requests)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "even.csv"
        path.write_text("arrival_s,in_tokens,out_tokens\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return hetmem.simulate(
            "resident", model=model, workload=str(path), gpu=card, gpus=1, batch=1,
            settings={"machine.gpu.idle_w": min(context_w, gpu(card).idle_w), "machine.gpu.context_w": context_w},
        )  # fmt: skip


def grams(run: Run, card: str, horizon_s: float, context_w: float, owned: bool) -> dict[str, tuple[float, float]]:
    """Return (low, high) g/token of one card by grid: its energy over the whole horizon, and its making."""
    by = accounting()
    gpu_fj = sum(run.energy.by_component["gpu"].values())
    joules = gpu_fj * 1e-15 + context_w * max(0.0, horizon_s - run.elapsed_s)  # until the next request would come
    made = embodied_g([processor_part(card, gpu(card).capacity_gb, owned=owned)], horizon_s, by.embodied_years).total
    assert made is not None
    found = {}
    for name in GRIDS:
        operational = joules / J_PER_KWH * by.pue * grid(name).g_per_kwh
        found[name] = ((operational + made.low) / run.output_tokens, (operational + made.high) / run.output_tokens)
    return found


def table(cards: Sequence[str], model: str, demands: Sequence[float], requests: int) -> pd.DataFrame:
    """Return a line per card, ownership, demand and grid; the first card is the old one and sets the demand."""
    old = cards[0]
    alone = served(old, model, 1.0, 1, gpu(old).context_w)
    full_interval_s = alone.makespan_s
    lines = []
    for card in cards:
        for demand in demands:
            interval_s = full_interval_s / demand
            horizon_s = requests * interval_s
            by_idle = {
                name: (watts, served(card, model, interval_s, requests, watts))
                for name, watts in idle_watts(card).items()
            }
            for owned in (True, False) if card == old else (False,):
                spread = [grams(run, card, horizon_s, watts, owned) for watts, run in by_idle.values()]
                stated = spread[0]
                lines += [
                    {
                        "card": f"{card}, owned" if owned else card, "grid": name, "demand": demand,
                        "g_per_token": sum(stated[name]) / 2,
                        "low": min(one[name][0] for one in spread), "high": max(one[name][1] for one in spread),
                    }
                    for name in GRIDS
                ]  # fmt: skip
    return pd.DataFrame(lines)


def finding(frame: pd.DataFrame, old: str) -> list[str]:
    """Return in words where the old card emits less than each other one: as stated, and whatever the bands hold."""
    lines = []
    for mine in (f"{old}, owned", old):
        for name in GRIDS:
            at = frame[frame["grid"] == name].set_index(["card", "demand"])
            demands = sorted(frame["demand"].unique())
            for other in [card for card in frame["card"].unique() if not card.startswith(old)]:
                stated = [d for d in demands if at["g_per_token"][mine, d] < at["g_per_token"][other, d]]
                surely = [d for d in demands if at["high"][mine, d] < at["low"][other, d]]
                lines.append(
                    f"{mine} on {name}, against {other}: emits less at {_listed(stated)} of its rate;"
                    f" whatever the assumed figures, at {_listed(surely)}"
                )
    return lines


def _listed(demands: Sequence[float]) -> str:
    return ", ".join(f"{demand:g}" for demand in demands) or "no share"


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and the finding, and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="llama2-7b")
    parser.add_argument("--old", default="m40", metavar="GPU")
    parser.add_argument("--new", nargs="+", default=("rtx-3090", "h100-sxm-80gb"), metavar="GPU")
    parser.add_argument("--demands", nargs="+", type=float, default=DEMANDS, metavar="SHARE")
    parser.add_argument("--requests", type=int, default=10)
    args = parser.parse_args(argv)
    cards = (args.old, *args.new)
    with _script.refusals(parser):
        frame = table(cards, args.model, sorted(args.demands), args.requests)
    wide = frame.pivot(index=["grid", "card"], columns="demand", values="g_per_token")
    print("g CO2 per token by demand, as a share of the old card's rate")
    print(wide.to_string(float_format="{:.4g}".format))
    print(*finding(frame, args.old), sep="\n")
    with plot.style():
        figure, axes = plt.subplots(1, len(GRIDS), figsize=(10.4, 3.8), sharey=True, layout="constrained")
        for ax, name in zip(axes, GRIDS, strict=True):
            one = frame[frame["grid"] == name]
            base = one[one["card"] == args.new[0]]["g_per_token"].to_numpy()
            for card, part in one.groupby("card", sort=False):
                owned = card.endswith(", owned")
                colour = COLOURS[cards.index(card.removesuffix(", owned")) % len(COLOURS)]
                low, mid, high = (part[column].to_numpy() / base for column in ("low", "g_per_token", "high"))
                ax.plot(part["demand"], mid, "o--" if owned else "o-", color=colour, label=card)
                ax.fill_between(part["demand"], low, high, color=colour, alpha=0.12, linewidth=0)
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_title(f"{name}: {grid(name).g_per_kwh:g} g/kWh")
            ax.set_xlabel(f"demand over the {args.old}'s rate")
        axes[0].set_ylabel(f"g CO2 per token over the {args.new[0]}'s")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3.2)
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
