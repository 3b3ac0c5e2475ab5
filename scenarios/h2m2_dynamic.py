"""Does the mapping follow a batch whose requests come and go?

GPT3-175B with requests that end at random and others that join (the dynamic batch of H2M2, arXiv 2504.14893): shares on
HBM and migrated bytes per iteration, and the speedup over one LPDDR memory against a static mapping.

    python scenarios/h2m2_dynamic.py --assumptions fair --out dynamic.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from attrs import evolve

import _script
from hetmem import plot
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.policy.kernel_mapping import SUBLAYERS
from hetmem.study.h2m2_runs import DYNAMIC_ITERATIONS, PUBLISHED, Growth, Setting, dynamic

SETTINGS = {
    "h2m2": Setting(),
    "static mapping": Setting(mapping="static"),
    "static, KV first": Setting(mapping="static-kv-first"),
    "hierarchical": Setting("hierarchical"),
}


def series(happened: Growth) -> pd.DataFrame:
    """Return what happened in each iteration."""
    columns = {f"{name} on HBM": happened.shares[name] for name in SUBLAYERS}
    return pd.DataFrame(
        {**columns, "time (ms)": 1e3 * happened.seconds, "migration (%)": 100 * happened.migrated_s / happened.seconds}
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--assumptions", choices=ASSUMPTIONS, default=PUBLISHED)
    parser.add_argument("--systems", nargs="+", choices=SETTINGS, default=tuple(SETTINGS), metavar="NAME")
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        base = dynamic(Setting("lpddr-only", args.assumptions))[0]
        runs = {name: dynamic(evolve(SETTINGS[name], assumptions=args.assumptions)) for name in args.systems}
        happened = dynamic(Setting(assumptions=args.assumptions))[1]
    assert happened is not None
    frame = series(happened)
    print(f"{DYNAMIC_ITERATIONS} decode iterations, {args.assumptions}: speedup over lpddr-only without prefills")
    print(pd.Series({name: base / seconds for name, (seconds, _) in runs.items()}).to_string(float_format="%.3f"))
    print(frame.describe().loc[["mean", "min", "max"]].to_string(float_format="%.3f"))
    with plot.style():
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.2, 5.0), sharex=True, layout="constrained")
        frame[[f"{name} on HBM" for name in SUBLAYERS]].plot(ax=top)
        top.set_ylabel("share on HBM")
        frame["migration (%)"].plot(ax=bottom, color="black")
        bottom.set_ylabel("migrated bytes on LPDDR (%)")
        bottom.set_xlabel("iteration with a full batch")
        top.set_title(f"gpt3-175b, requests come and go, {args.assumptions}")
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
