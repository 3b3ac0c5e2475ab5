"""Where does PAPI gain, and over whom?

One static batch of lognormal outputs per model, batch and speculation length, on PAPI and on the systems that it is
compared with: a table of gains in time and energy, their means, and both against the tokens of the first iteration with
the threshold at which FC leaves the stacks.

    python scenarios/papi_gains.py --models llama-65b gpt3-175b --batches 4 16 64 --tlps 1 2 4 --out gains.png
"""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import _script
from hetmem import plot
from hetmem.study.reproduce_papi import BASELINES, BATCHES, METRICS, MODELS, TLPS, batch_run


def gains(args: argparse.Namespace) -> pd.DataFrame:
    """Return a line per model, batch and length: tokens, threshold, and each baseline's time and energy over PAPI's."""
    lines = []
    for model in args.models:
        for batch in sorted(set(args.batches)):
            for tlp in sorted(set(args.tlps)):
                papi = batch_run("papi", args.assumptions, model, batch, tlp, args.seed)
                line = {
                    "model": model, "batch": batch, "TLP": tlp, "tokens": batch * tlp,
                    "alpha": papi.configuration["decisions"]["alpha"],
                }  # fmt: skip
                for baseline in args.baselines:
                    other = batch_run(baseline, args.assumptions, model, batch, tlp, args.seed)
                    line[f"{baseline} time"] = other.makespan_s / papi.makespan_s
                    line[f"{baseline} energy"] = other.energy.total_j / papi.energy.total_j
                lines.append(line)
    return pd.DataFrame(lines)


def figure(frame: pd.DataFrame, baselines: Sequence[str], title: str) -> plt.Figure:
    """Return time and energy side by side, a marker per model and a colour per baseline."""
    with plot.style():
        fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
        markers = dict(zip(frame["model"].unique(), "oDs^vP" * 5, strict=False))
        for ax, metric in zip(axes, METRICS, strict=True):
            for k, baseline in enumerate(baselines):
                for model, marker in markers.items():
                    here = frame[frame["model"] == model].sort_values("tokens")
                    label = f"{baseline}, {model}"
                    ax.plot(
                        here["tokens"],
                        here[f"{baseline} {metric}"],
                        marker,
                        color=f"C{k}",
                        label=label,
                        markersize=8 - 2 * k,
                    )
            for alpha in sorted(frame["alpha"].unique()):
                ax.axvline(alpha, color="#555555", linewidth=0.6, linestyle=":")
            ax.axhline(1.0, color="#555555", linewidth=0.8)
            ax.set_xscale("log", base=2)
            ax.set(xlabel="tokens of the first iteration (batch x TLP)", ylabel=f"{metric} over PAPI's", title=metric)
        axes[1].legend(fontsize="small")
        fig.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--models", "--model", nargs="+", default=tuple(MODELS), metavar="MODEL")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--tlps", nargs="+", type=int, default=TLPS, metavar="N")
    parser.add_argument("--baselines", nargs="+", default=BASELINES, metavar="SYSTEM")
    parser.add_argument("--assumptions", default="as-published", choices=("as-published", "fair"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        frame = gains(args)
    print(frame.to_string(index=False, float_format="{:.3g}".format))
    ratios = [f"{baseline} {metric}" for baseline in args.baselines for metric in METRICS]
    print("\nmean of all:\n" + frame[ratios].mean().to_string(float_format="{:.3g}".format))
    fig = figure(frame, args.baselines, f"static batches, {args.assumptions}; dotted: thresholds")
    _script.write(fig, args.out)


if __name__ == "__main__":
    main()
