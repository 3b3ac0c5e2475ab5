"""What does each part of Hermes bring: the offline partition, the online adjustment, the balance of the DIMMs?

The time of the MLP blocks with one part after the other: a table with the speed-up over random placement, and a
figure. The activity is synthetic; the order is what to look at.

    python scenarios/hermes_ablation.py --model llama2-13b --batch 4 --out ablation.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.study.hermes_cases import mlp_seconds
from hetmem.study.reproduce_hermes import ABLATION


def table(model: str, batch: int, output: int, preset: str) -> pd.DataFrame:
    """Return a line per variant: milliseconds of all MLP blocks of a step, and the speed-up."""
    lines = []
    for name, policies in ABLATION:
        run = hetmem.simulate(
            "hermes", model=model, workload=hetmem.fixed(128, output, batch), assumptions="as-published",
            dimm_preset=preset, policies={"partition": "greedy"} | dict(policies), trace=True,
        )  # fmt: skip
        lines.append({"variant": name, "mlp_ms": 1e3 * mlp_seconds(run) / (output - 1)})
    frame = pd.DataFrame(lines)
    return frame.assign(speedup=frame.mlp_ms[0] / frame.mlp_ms)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="llama2-13b")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--output", type=int, default=33)
    parser.add_argument("--dimm-preset", choices=("paper-fit", "datasheet"), default="paper-fit")
    args = parser.parse_args(argv)
    if args.output < 2:
        parser.error("--output: at least 2 tokens, for a step that decodes")
    with _script.refusals(parser):
        frame = table(args.model, args.batch, args.output, args.dimm_preset)
    print(f"as-published, {args.dimm_preset}")
    print(frame.to_string(index=False, float_format="{:.3g}".format))
    with plot.style():
        fig, ax = plt.subplots(figsize=(6.4, 2.8))
        bars = ax.barh(frame.variant, frame.mlp_ms)
        ax.bar_label(bars, [f"{s:.2f}x" for s in frame.speedup], padding=4, fontsize=8)
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.set_xlabel("MLP blocks of a step (ms); speed-up over random placement beside the bar")
        ax.set_title(f"{args.model}: batch {args.batch}, as-published, {args.dimm_preset}")
    _script.write(fig, args.out)


if __name__ == "__main__":
    main()
