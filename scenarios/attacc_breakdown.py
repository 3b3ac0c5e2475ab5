"""What does each of AttAcc's optimisations take away from an iteration?

The DGX alone, and with AttAcc devices: naive, with head-level pipelining, with feed-forward co-processing too. Equal
requests, a table of milliseconds and joules per decode iteration, and a figure of the busy time of each server in an
iteration beside the iteration itself: what the bars exceed it by is overlapped.

    python scenarios/attacc_breakdown.py --model gpt3-175b --batches 1 16 35 --out attacc.png
"""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.study.reproduce_attacc import OPTIONS

BATCHES = (1, 16, 35)
SERVERS = ("gpus", "gpu-link", "x2g", "attacc")


def iteration(args: argparse.Namespace, name: str, batch: int) -> dict[str, float | str | int]:
    """Return milliseconds and joules of a decode iteration, and the busy milliseconds of its servers."""
    settings = {}
    if name in OPTIONS:
        pipelining, co_processing = OPTIONS[name]
        settings = {"machine.attacc.pipelining": pipelining, "machine.attacc.co_processing": co_processing}
    whole, first = (
        hetmem.simulate(
            "dgx-attacc" if name in OPTIONS else "dgx", model=args.model,
            workload=hetmem.fixed(args.prompt, output, batch), assumptions=args.assumptions, settings=settings,
        )
        for output in (args.output, 1)
    )  # fmt: skip
    steps = args.output - 1
    line: dict[str, float | str | int] = {
        "system": name, "batch": batch, "iteration (ms)": (whole.makespan_s - first.makespan_s) / steps * 1e3,
        "energy (J)": (whole.energy.total_j - first.energy.total_j) / steps,
    }  # fmt: skip
    for server in SERVERS:
        busy = whole.busy_ps.get(server, 0) - first.busy_ps.get(server, 0)
        line[f"{server} (ms)"] = busy / steps * 1e-9
    return line


def figure(frame: pd.DataFrame, title: str) -> plt.Figure:
    """Return a panel per batch: the servers' busy times stacked, the iteration as a line across."""
    batches = sorted(frame["batch"].unique())
    with plot.style():
        fig, axes = plt.subplots(1, len(batches), figsize=(3.4 * len(batches) + 1.5, 4.0), sharey=True, squeeze=False)
        for ax, batch in zip(axes[0], batches, strict=True):
            here = frame[frame["batch"] == batch]
            x, base = np.arange(len(here)), np.zeros(len(here))
            for k, server in enumerate(SERVERS):
                height = here[f"{server} (ms)"].to_numpy()
                ax.bar(x, height, 0.6, base, color=f"C{k}", label=server)
                base = base + height
            ax.hlines(here["iteration (ms)"], x - 0.4, x + 0.4, color="black", label="iteration")
            ax.margins(y=0.08)
            ax.set_xticks(x, list(here["system"]))
            ax.set(title=f"batch {batch}")
        axes[0][0].set_ylabel("ms per decode iteration")
        axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        fig.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="gpt3-175b")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--output", type=int, default=256)
    parser.add_argument("--assumptions", default="as-published", choices=("as-published", "fair"))
    args = parser.parse_args(argv)
    if args.output < 2:
        parser.error("--output: expected at least 2 tokens, the first is the prefill's")
    with _script.refusals(parser):
        lines = [iteration(args, name, batch) for batch in sorted(set(args.batches)) for name in ("dgx", *OPTIONS)]
    frame = pd.DataFrame(lines)
    print(frame.to_string(index=False, float_format="{:.3g}".format))
    fig = figure(frame, f"{args.model}: {args.prompt} prompt and {args.output} output tokens, {args.assumptions}")
    _script.write(fig, args.out)


if __name__ == "__main__":
    main()
