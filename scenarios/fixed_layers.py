"""Which layers should DRAM hold when an SSD brings the others: the first ones, or every so many?

A decode step of equal layers, some fixed in DRAM and the others read ahead from an SSD: the slow-down against compute
alone over the window of reading ahead, for layers fixed from the front (as M2Cache describes it) and spread over the
model, beside the least that the SSD's bandwidth allows. A table and a figure.

    python scenarios/fixed_layers.py --cases 2:0.5 4:0.75 --windows 1 2 4 8 16 31 --out fixed.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import _script
from hetmem import plot
from hetmem.errors import ConfigError
from hetmem.policy.layer_cache import FIXED_MODES
from hetmem.policy.preload import slowdown_bound
from hetmem.study.preload_stall import simulated_slowdown

CASES = ("2:0.5", "4:0.75", "10:0.9")
WINDOWS = (1, 2, 4, 6, 8, 12, 16, 24, 31)
COLOURS = {"contiguous": "C1", "interleaved": "C0"}


def parsed(case: str) -> tuple[float, float]:
    """Return (rho, fixed fraction) of ``RHO:FRACTION``."""
    try:
        rho, fraction = (float(part) for part in case.split(":"))
    except ValueError:
        raise ConfigError("cases", f"expected RHO:FRACTION such as 2:0.5, not {case!r}") from None
    if not (rho > 0 and 0 <= fraction <= 1):
        raise ConfigError("cases", f"expected a positive ratio and a fraction from 0 to 1, not {case!r}")
    return rho, fraction


def table(cases: Sequence[str], windows: Sequence[int], layers: int) -> pd.DataFrame:
    """Return a line per case and window with both slow-downs and the bound."""
    lines = []
    for case in cases:
        rho, fraction = parsed(case)
        n_fixed = int(layers * fraction)
        for window in windows:
            slow = {mode: simulated_slowdown(rho, layers, n_fixed, window, mode) for mode in FIXED_MODES}
            lines.append({"case": case, "window": window, **slow, "bound": slowdown_bound(rho, layers, n_fixed)})
    return pd.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument(
        "--cases", nargs="+", default=CASES, metavar="RHO:FRACTION",
        help="time to read a layer over the time to compute one, and the fraction that is fixed",
    )  # fmt: skip
    parser.add_argument("--windows", nargs="+", type=int, default=WINDOWS, metavar="W")
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        frame = table(args.cases, args.windows, args.layers)
    print(frame.to_string(index=False, float_format="{:.3f}".format))
    with plot.style():
        figure, axes = plt.subplots(
            1, len(args.cases), figsize=(3.4 * len(args.cases) + 1.8, 3.2), squeeze=False, layout="constrained"
        )
        for ax, (case, part) in zip(axes[0], frame.groupby("case", sort=False), strict=True):
            rho, fraction = parsed(case)
            for mode, colour in COLOURS.items():
                ax.plot(part["window"], part[mode], "o-", color=colour, label=f"{mode} layers fixed")
            ax.plot(part["window"], part["bound"], "k:", label="bandwidth bound")
            ax.set_title(f"read / compute {rho:g}, {fraction:.0%} fixed", fontsize="medium")
            ax.set_xlabel("layers read ahead")
            ax.set_ylim(bottom=0.9)
        axes[0][0].set_ylabel("slow-down of a decode step")
        axes[0][0].legend(loc="upper right", fontsize="small")
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
