"""Where do kernels go as sequences grow, and what does it bring?

A decode iteration at each sequence length, as H2M2 (arXiv 2504.14893) measures it: speedup over one LPDDR memory with
both chips, by system and mapping policy, and the share of each sub-layer that the greedy keeps on HBM.

    python scenarios/h2m2_lengths.py --model chinchilla-70b --assumptions fair --out lengths.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from attrs import evolve

import _h2m2
import _script
from hetmem import plot
from hetmem.policy.kernel_mapping import SUBLAYERS
from hetmem.study.h2m2_runs import IDEAL, Case, Setting, iteration, speedup

LINES = {
    "h2m2, all costs": Setting(),
    "oracle mapping": Setting(mapping="oracle", settings=IDEAL),
    "static mapping": Setting(mapping="static", settings=IDEAL),
    "whole sub-layers": Setting(mapping="naive", settings=IDEAL),
    "hierarchical": Setting("hierarchical"),
}


def table(case: Case, lengths: Sequence[int], assumptions: str) -> pd.DataFrame:
    """Return a row per length: speedups, and the greedy's shares on the fast side."""
    rows = []
    for length in lengths:
        row: dict[str, float] = {"S": length}
        for name, setting in LINES.items():
            row[name] = speedup(case, length, evolve(setting, assumptions=assumptions))
        noted = iteration(case, length, evolve(LINES["h2m2, all costs"], assumptions=assumptions)).noted
        parts = {"attention": case.spec.n_kv_heads, "qkv": case.spec.n_kv_heads, "fc": case.spec.n_heads}
        row |= {f"{name} on HBM": noted[name] / parts[name] for name in SUBLAYERS}
        rows.append(row)
    return pd.DataFrame(rows).set_index("S")


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _h2m2.parser(__doc__, __file__)
    args = _h2m2.parsed(parser, argv)
    case = args.case
    with _script.refusals(parser):
        frame = table(case, args.lengths, args.assumptions)
    print(f"{case.model}, batch {case.batch}, {args.assumptions}: speedup over lpddr-only, and shares on HBM")
    print(frame.to_string(float_format="%.3f"))
    print(f"mean over S = {', '.join(map(str, frame.index))}:")
    print(frame[list(LINES)].mean().to_string(float_format="%.3f"))
    with plot.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
        frame[list(LINES)].plot(ax=left, marker="o")
        left.set_ylabel("speedup over lpddr-only")
        frame[[f"{name} on HBM" for name in SUBLAYERS]].plot(ax=right, marker="o")
        right.set_ylabel("share on HBM, greedy")
        for ax in (left, right):
            ax.set_xlabel("sequence length (tokens)")
            ax.set_ylim(bottom=0)
        figure.suptitle(f"{case.model}, batch {case.batch}, {args.assumptions}")
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
