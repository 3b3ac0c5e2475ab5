"""What do more DIMMs with compute bring, and how much of it hangs on what is believed of a DIMM?

The same requests on a GPU with more and more DIMMs, under both DIMM presets and assumption sets: a table of tokens/s
with the speed-up over the fewest DIMMs that hold the model, and a figure. A cross marks too few DIMMs for the model.

    python scenarios/dimm_count.py --dimms 4 8 16 32 --batch 16 --out dimms.png
"""

from collections.abc import Sequence

import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.study.compare import Comparison, compare

COLUMNS = ["dimms", "system", "assumptions", "dimm_preset", "tokens_per_s", "speedup", "bound"]


def table(by_count: dict[int, Comparison]) -> pd.DataFrame:
    """Return one line per DIMM count and result, with the speed-up over the fewest DIMMs that it runs on."""
    lines = []
    fewest: dict[tuple[str, str, str], float] = {}
    for count, comparison in by_count.items():
        for row in comparison.rows:
            key = (row["system"], row["assumptions"], row["dimm_preset"])
            line = {"dimms": count, **dict(zip(("system", "assumptions", "dimm_preset"), key, strict=True))}
            if row["refused"] is None:
                speed = row["tokens_per_s"]
                line |= {"tokens_per_s": speed, "speedup": speed / fewest.setdefault(key, speed), "bound": row["bound"]}
            else:
                line |= {"bound": f"refused: {row['refused']}"}
            lines.append(line)
    return pd.DataFrame(lines, columns=COLUMNS)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--systems", nargs="+", default=("ndp-dimm",), metavar="SYSTEM")
    parser.add_argument("--dimms", nargs="+", type=int, default=(4, 8, 16, 32), metavar="N")
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args(argv)
    work = hetmem.fixed(args.prompt, args.output, args.batch)
    with _script.refusals(parser):
        by_count = {
            count: compare(args.systems, model=args.model, workload=work, dimms=count)
            for count in sorted(set(args.dimms))
        }
    print(table(by_count).to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    with plot.style():
        ax = plot.throughput_against("DIMMs", {count: comparison.rows for count, comparison in by_count.items()})
        ax.set_title(f"{args.model}: batch {args.batch}, {args.prompt} prompt and {args.output} output tokens")
    _script.write(ax.figure, args.out)


if __name__ == "__main__":
    main()
