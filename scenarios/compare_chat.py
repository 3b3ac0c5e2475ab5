"""How do all memory systems serve the same chat requests?

Every system runs the same requests under each assumption set and DIMM preset: a table, and a figure of throughput,
time to first token and time per output token.

    python scenarios/compare_chat.py --model llama2-70b --requests 8 --out chat.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

import _script
from hetmem import plot
from hetmem.study.compare import Comparison, compare


def table(comparison: Comparison) -> pd.DataFrame:
    """Return one line per result, refused ones with their reason."""
    lines = []
    for row in comparison.rows:
        line = {name: row[name] or "-" for name in ("system", "assumptions", "dimm_preset")}
        line["tokens_per_s"] = row["tokens_per_s"]
        for metric in ("ttft_s", "tpot_s"):
            line |= {f"{metric} {p}": (row[metric] or {}).get(p) for p in ("p50", "p99")}
        line |= {"energy_per_token_j": row["energy_per_token_j"], "bound": row["bound"] or f"refused: {row['refused']}"}
        lines.append(line)
    return pd.DataFrame(lines)


def figure(comparison: Comparison, title: str) -> plt.Figure:
    """Return throughput, TTFT and TPOT side by side, a line of text per result."""
    with plot.style():
        height = 1.5 + 0.25 * len(comparison.rows)
        fig, axes = plt.subplots(1, 3, figsize=(12.5, height), sharey=True)
        plot.throughput(comparison.rows, ax=axes[0])
        plot.latency_percentiles(comparison.rows, "ttft_s", ax=axes[1])
        plot.latency_percentiles(comparison.rows, "tpot_s", ax=axes[2])
        fig.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="all by default")
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--workload", default="chat")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        comparison = compare(
            args.systems, model=args.model, workload=args.workload, requests=args.requests, batch=args.batch,
            seed=args.seed, workers=None,
        )  # fmt: skip
    print(table(comparison).to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    title = f"{args.model}: {args.requests} requests of {args.workload}, static batches of {args.batch}"
    fig = figure(comparison, title)
    _script.write(fig, args.out)


if __name__ == "__main__":
    main()
