"""How much of PAPI's gain is the decay of a static batch?

The same requests on A100+AttAcc and on PAPI: in static batches, whose requests finish at different times, so that few
run at the end; with continuous batching, which keeps the batch full; and in static batches of equal outputs, which do
not decay. A table of times, energies and gains, and a figure: the tokens of each iteration over time, coloured by where
FC ran, with the threshold. Beside it the gain against the batch.

    python scenarios/papi_decay.py --model llama-65b --batches 4 16 64 --out decay.png
"""

import argparse
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.study.run import Run
from hetmem.workload.lognormal import lognormal

BATCHES = (4, 16, 64, 128)
CASES = {
    "static, decaying": ("static", True),
    "continuous": ("continuous", True),
    "static, equal outputs": ("static", False),
}
COLOURS = {"gpu": "#c1440e", "pim": "#1f5f8b"}


def pair(args: argparse.Namespace, batch: int, case: str) -> tuple[Run, Run]:
    """Return the runs of A100+AttAcc and PAPI."""
    batching, decays = CASES[case]
    sigma = args.sigma if decays else 0.0
    settings: dict[str, Any] = {"serving.tlp": args.tlp, "serving.token_budget": None}
    if args.tlp > 1:
        settings["serving.acceptance"] = "all"
    requests = lognormal(args.prompt, args.mean, sigma, batch * args.rounds)
    base, papi = (
        hetmem.simulate(
            system, model=args.model, workload=requests, batch=batch, assumptions=args.assumptions,
            policies={"batching": batching}, settings=settings, seed=args.seed, truncate=True,
        )
        for system in ("a100-attacc", "papi")
    )  # fmt: skip
    return base, papi


def table(pairs: dict[tuple[int, str], tuple[Run, Run]]) -> pd.DataFrame:
    """Return a line per batch and case."""
    lines = []
    for (batch, case), (base, papi) in pairs.items():
        iterations = papi.tables["iterations"]
        tokens = iterations.column("rlp") * iterations.column("tlp")
        lines.append(
            {
                "batch": batch,
                "requests": case,
                "A100+AttAcc (s)": base.makespan_s,
                "PAPI (s)": papi.makespan_s,
                "gain in time": base.makespan_s / papi.makespan_s,
                "gain in energy": base.energy.total_j / papi.energy.total_j,
                "tokens per iteration": float(tokens.mean()),
                "FC in stacks": papi.counters["iterations_pim"] / len(iterations),
                "switches": papi.counters["switches"],
            }
        )
    return pd.DataFrame(lines)


def figure(pairs: dict[tuple[int, str], tuple[Run, Run]], batch: int, title: str) -> plt.Figure:
    """Return tokens per iteration over time for one batch, and the gain against the batch."""
    with plot.style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
        papi = pairs[batch, "static, decaying"][1]
        iterations, steps = papi.tables["iterations"], papi.steps
        end = steps.column("end_ps")[iterations.column("step")] * 1e-12
        tokens = iterations.column("rlp") * iterations.column("tlp")
        for side, colour in COLOURS.items():
            here = iterations.column("side") == side
            left.plot(end[here], tokens[here], ".", color=colour, markersize=3, label=f"FC on {side.upper()}")
        alpha = papi.configuration["decisions"]["alpha"]
        left.axhline(alpha, color="#555555", linewidth=0.8)
        left.annotate(f"threshold {alpha}", (0.99, alpha), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        left.set(xlabel="time (s)", ylabel="tokens per iteration", title=f"static batches of {batch}")
        left.legend(loc="upper right")
        batches = sorted({b for b, _ in pairs})
        for case in CASES:
            gains = [pairs[b, case][0].makespan_s / pairs[b, case][1].makespan_s for b in batches]
            right.plot(np.arange(len(batches)), gains, "o-", label=case)
        right.axhline(1.0, color="#555555", linewidth=0.8)
        right.set(xlabel="batch", ylabel="A100+AttAcc over PAPI, time", title="gain")
        right.set_xticks(np.arange(len(batches)), [str(b) for b in batches])
        right.legend()
        fig.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="llama-65b")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="requests per place in the batch")
    parser.add_argument("--tlp", type=int, default=1, help="tokens verified per request and iteration, all accepted")
    parser.add_argument("--prompt", type=int, default=40)
    parser.add_argument("--mean", type=float, default=220.0, help="mean output length")
    parser.add_argument("--sigma", type=float, default=0.8, help="log-deviation of output lengths")
    parser.add_argument("--assumptions", default="as-published", choices=("as-published", "fair"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    batches = sorted(set(args.batches))
    with _script.refusals(parser):
        pairs = {(batch, case): pair(args, batch, case) for batch in batches for case in CASES}
    print(table(pairs).to_string(index=False, float_format="{:.3g}".format))
    title = f"{args.model}: outputs of mean {args.mean:g}, prompts of {args.prompt}, {args.assumptions}"
    fig = figure(pairs, batches[-1], title)
    _script.write(fig, args.out)


if __name__ == "__main__":
    main()
