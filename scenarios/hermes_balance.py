"""How even is the work of the DIMMs with window-based remapping, and without?

Hermes from a poor start, runs of neurons of like frequency dealt to the DIMMs at random, under each balancer: a
table of the imbalance (most loaded DIMM over the mean) window by window, the bytes moved, and a figure. The oracle
`offline-optimal` levels the neurons that will fire; the DIMMs compute those that are predicted, so that it is no bound.

    python scenarios/hermes_balance.py --layers 16 --group 1 --out balance.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

import _script
import hetmem
from hetmem import plot
from hetmem.policy.balance import WindowRemap
from hetmem.study.run import Run
from hetmem.system.neuron_placement import BALANCERS


def balanced(model: str, layers: int, group: int, run_of: int, output: int) -> dict[str, Run]:
    """Return a run per balancer, of the first ``layers`` layers with their share of the GPU."""
    whole = hetmem.load_model(model)
    head = 2 * whole.vocab * whole.d_model
    share = head + (20e9 - head) * layers / whole.n_layers
    settings = {
        "model.n_layers": layers, "machine.gpu_weight_bytes": share, "activity.group": group,
        "activity.partition_group": run_of,
    }  # fmt: skip
    return {
        name: hetmem.simulate(
            "hermes", model=model, workload=hetmem.fixed(128, output, 1), assumptions="as-published",
            dimm_preset="paper-fit", settings=settings, policies={"partition": "random", "balance": name},
        )
        for name in BALANCERS
    }  # fmt: skip


def table(runs: dict[str, Run]) -> pd.DataFrame:
    """Return the imbalance of the MLP per window, a column per balancer."""
    columns = {}
    for name, run in runs.items():
        windows = run.tables["windows"].to_pandas()
        columns[name] = windows[windows.block == "mlp"].imbalance.reset_index(drop=True)
    return pd.DataFrame(columns).rename_axis("window")


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--layers", type=int, default=8, help="of the model; too few cannot show its skew")
    parser.add_argument("--group", type=int, default=1, help="neurons handled as one")
    parser.add_argument("--run", type=int, default=512, help="neurons of like frequency on one DIMM at the start")
    parser.add_argument("--output", type=int, default=82)
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        runs = balanced(args.model, args.layers, args.group, args.run, args.output)
    frame = table(runs)
    print("as-published, paper-fit; most loaded DIMM over the mean, cold MLP neurons")
    print(frame.to_string(float_format="{:.2f}".format))
    for name, run in runs.items():
        moved = run.tables["neurons"].column("moved_bytes").sum() / (args.output - 1) / args.layers
        print(f"{name}: {run.tokens_per_s:.1f} tokens/s, {moved / 1e6:.2f} MB moved per layer and token")
    with plot.style():
        fig, ax = plt.subplots(figsize=(7.2, 3.4))
        for name in frame:
            ax.plot(frame.index, frame[name], marker="o", markersize=3, label=name)
        ax.axhline(1.0, color="0.6", linewidth=0.8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(f"window (of {WindowRemap().window} tokens)")
        ax.set_ylabel("most loaded DIMM / mean")
        ax.set_title(f"{args.model}: {args.layers} layers, as-published, paper-fit")
        ax.legend(title="balancer", alignment="left", loc="center left", bbox_to_anchor=(1.01, 0.5))
    _script.write(fig, args.out)


if __name__ == "__main__":
    main()
