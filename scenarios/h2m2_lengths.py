"""Where do kernels go as sequences grow, and what does it bring?

A decode iteration at each sequence length, as H2M2 (arXiv 2504.14893) measures it: speedup over one LPDDR memory with
both chips, by system and mapping policy, and the share of each sub-layer that the greedy keeps on HBM.

    python scenarios/h2m2_lengths.py --model chinchilla-70b --assumptions fair --out lengths.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from attrs import evolve

from hetmem import HetmemError, plot
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.policy.kernel_mapping import SUBLAYERS
from hetmem.study.h2m2_runs import CASES, IDEAL, PUBLISHED, Case, Setting, iteration, speedup

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
    known = {case.model: case for case in CASES}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=known, default=CASES[0].model)
    parser.add_argument("--assumptions", choices=ASSUMPTIONS, default=PUBLISHED)
    parser.add_argument("--lengths", nargs="+", type=int, metavar="S", help="tokens; by default eight equal steps")
    parser.add_argument("--out", type=Path, default=Path("out/h2m2_lengths.png"), help="where the figure goes")
    args = parser.parse_args(argv)
    case = known[args.model]
    try:
        frame = table(case, args.lengths or case.lengths, args.assumptions)
    except HetmemError as error:
        parser.error(str(error))
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
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out)
    plt.close(figure)
    print(f"figure: {args.out}")


if __name__ == "__main__":
    main()
