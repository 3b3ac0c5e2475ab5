"""How does throughput grow with the batch, and where does the memory end?

Fixed batches of equal requests on each system, under both assumption sets: a table of tokens/s against the batch, and
the same as a figure. A cross marks the batch that a system refuses because its keys and values do not fit.

    python scenarios/batch_sweep.py --batches 1 4 16 64 --out batch.png
"""

from collections.abc import Sequence

import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.study.compare import Comparison, compare

SYSTEMS = ("resident", "ndp-dimm", "zero-inference", "flexgen", "accelerate")
BATCHES = (1, 4, 16, 64, 256)


def table(by_batch: dict[int, Comparison]) -> pd.DataFrame:
    """Return tokens/s with a line per system, assumption set and preset, and a column per batch."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for batch, comparison in by_batch.items():
        for row in comparison.rows:
            key = (row["system"], row["assumptions"], row["dimm_preset"] or "-")
            speed = row["tokens_per_s"]
            lines.setdefault(key, {})[f"batch {batch}"] = "refused" if speed is None else f"{speed:.4g}"
    frame = pd.DataFrame(list(lines.values()), index=pd.MultiIndex.from_tuples(lines))
    return frame.rename_axis(index=["system", "assumptions", "dimm_preset"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, metavar="SYSTEM")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--dimm-preset", default="datasheet")
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        by_batch = {
            batch: compare(
                args.systems, model=args.model, workload=hetmem.fixed(args.prompt, args.output, batch),
                dimm_presets=[args.dimm_preset],
            )
            for batch in sorted(set(args.batches))
        }  # fmt: skip
    print("tokens/s, prefill included")
    print(table(by_batch).to_string())
    with plot.style():
        ax = plot.throughput_against_batch({batch: comparison.rows for batch, comparison in by_batch.items()})
        ax.set_title(f"{args.model}: {args.prompt} prompt and {args.output} output tokens")
    _script.write(ax.figure, args.out)


if __name__ == "__main__":
    main()
