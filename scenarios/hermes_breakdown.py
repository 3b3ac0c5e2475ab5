"""Where does the time of a run of Hermes go: prefill and decode, and how busy is each part of the machine?

A table of the share of prefill and decode and of the busy share of each server, under both assumption sets and DIMM
presets, and a figure of the servers over time under the first.

    python scenarios/hermes_breakdown.py --model llama2-70b --out breakdown.png
"""

from collections.abc import Sequence

import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.hardware.ndp import PRESETS
from hetmem.study.run import Run

SERVERS = ("gpu0", "pcie.h2d", "dimm0.dram", "dimm0.core", "dimm0.link")


def table(runs: list[Run]) -> pd.DataFrame:
    """Return a line per run: shares of the time in per cent."""
    lines = []
    for run in runs:
        steps = run.steps.to_pandas()
        lasted = steps.end_ps - steps.start_ps
        prefill = lasted[steps.decode_sequences == 0].sum() / lasted.sum()
        busy = {name: 100 * run.busy_ps[name] / run.elapsed_ps for name in SERVERS}
        names = {key: value for key, value in run.scenario.labels().items() if key in ("assumptions", "dimm_preset")}
        lines.append(
            {**names, "tokens_per_s": run.tokens_per_s, "prefill": 100 * prefill, "decode": 100 * (1 - prefill)} | busy
        )
    return pd.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args(argv)
    work = hetmem.fixed(args.prompt, args.output, args.batch)
    with _script.refusals(parser):
        runs = [
            hetmem.simulate("hermes", model=args.model, workload=work, assumptions=assumed, dimm_preset=preset,
                            policies={"partition": "greedy"})
            for assumed in ASSUMPTIONS
            for preset in PRESETS
        ]  # fmt: skip
    print("shares of the time in %")
    print(table(runs).to_string(index=False, float_format="{:.3g}".format))
    with plot.style():
        ax = plot.utilization(runs[0], servers=SERVERS)
        ax.set_title(f"{args.model}, {runs[0].scenario.assumptions}, {runs[0].scenario.dimm_preset}")
    _script.write(ax.figure, args.out)


if __name__ == "__main__":
    main()
