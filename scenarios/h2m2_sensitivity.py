"""Which part of the board matters?

The mean speedup of H2M2 (arXiv 2504.14893) over one LPDDR memory while one part is scaled: capacity and bandwidth of
HBM, bandwidth of LPDDR, and the chip on it. A part that the baseline has too is scaled there as well.

    python scenarios/h2m2_sensitivity.py --factors 0.5 1 2 4 --out sensitivity.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import _h2m2
import _script
from hetmem import plot
from hetmem.study.h2m2_runs import Case, Setting, mean, speedup
from hetmem.study.reproduce_h2m2 import SENSITIVITY, scaled


def table(case: Case, lengths: Sequence[int], assumptions: str, factors: Sequence[float]) -> pd.DataFrame:
    """Return the mean speedup with a row per factor and a column per part."""
    columns: dict[str, list[float]] = {}
    for name, (paths, _, _) in SENSITIVITY.items():
        for factor in factors:
            ours, base = (
                Setting(system, assumptions, settings=scaled(system, assumptions, paths, factor))
                for system in ("h2m2", "lpddr-only")
            )
            columns.setdefault(name, []).append(mean(speedup(case, s, ours, base) for s in lengths))
    return pd.DataFrame(columns, index=pd.Index(factors, name="factor"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _h2m2.parser(__doc__, __file__)
    parser.add_argument("--factors", nargs="+", type=float, default=(0.5, 0.75, 1.0, 1.5, 2.0), metavar="F")
    args = _h2m2.parsed(parser, argv)
    case = args.case
    with _script.refusals(parser):
        frame = table(case, args.lengths, args.assumptions, args.factors)
    print(f"{case.model}, {args.assumptions}: speedup over lpddr-only, mean over S, with one part scaled")
    print(frame.to_string(float_format="%.3f"))
    with plot.style():
        figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        frame.plot(ax=ax, marker="o")
        ax.set_xlabel("factor on the part")
        ax.set_ylabel("speedup over lpddr-only")
        ax.set_title(f"{case.model}, batch {case.batch}, {args.assumptions}")
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
