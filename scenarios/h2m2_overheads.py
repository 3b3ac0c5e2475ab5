"""What does paged memory cost, and how many page walkers does it take?

Decode iterations of H2M2 (arXiv 2504.14893) with page tables, walks and copies over those without, by number of page
walkers; and with each cost left out in turn.

    python scenarios/h2m2_overheads.py --model llama2-70b --out overheads.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import _h2m2
import _script
from hetmem import plot
from hetmem.study.h2m2_runs import UNPAGED, Case, Setting, window_s
from hetmem.study.reproduce_h2m2 import COSTS, WALKERS


def table(case: Case, lengths: Sequence[int], assumptions: str, walkers: Sequence[int]) -> pd.DataFrame:
    """Return percent of the iteration: with each number of walkers, and what each cost adds."""
    rows = []
    for length in lengths:
        plain = window_s(case, length, Setting(assumptions=assumptions, settings=UNPAGED))
        paid = window_s(case, length, Setting(assumptions=assumptions))
        row: dict[str, float] = {"S": length}
        for n in walkers:
            setting = Setting(assumptions=assumptions, settings=(("machine.paging.walkers", n),))
            row[f"{n} walkers"] = 100 * (window_s(case, length, setting) / plain - 1)
        for name, switch in COSTS.items():
            spared = Setting(assumptions=assumptions, settings=((f"machine.abstraction.{switch}", False),))
            row[name] = 100 * (paid / window_s(case, length, spared) - 1)
        rows.append(row)
    return pd.DataFrame(rows).set_index("S")


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _h2m2.parser(__doc__, __file__)
    parser.add_argument("--walkers", nargs="+", type=int, default=WALKERS, metavar="N")
    args = _h2m2.parsed(parser, argv)
    case = args.case
    with _script.refusals(parser):
        frame = table(case, args.lengths, args.assumptions, args.walkers)
    print(f"{case.model}, batch {case.batch}, {args.assumptions}: percent of the iteration without paged memory")
    print(frame.to_string(float_format="%.3f"))
    with plot.style():
        figure, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        frame[[f"{n} walkers" for n in args.walkers]].plot(ax=ax, marker="o")
        ax.set_xlabel("sequence length (tokens)")
        ax.set_ylabel("cost of paged memory (%)")
        ax.set_ylim(bottom=0)
        ax.set_title(f"{case.model}, batch {case.batch}, {args.assumptions}")
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
