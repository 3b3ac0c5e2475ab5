"""How fast are Hermes and its baselines at batch 1, and what is left of the lead when every system gets the same link?

Each system under both assumption sets: a table of tokens/s with the ratio of the fastest to each, and a figure. For
other batches see batch_sweep.py, for other numbers of DIMMs dimm_count.py, both with --systems hermes.

    python scenarios/hermes_throughput.py --model opt-66b --densities calibrated --out hermes.png
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

import _script
import hetmem
from hetmem import plot
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.study.compare import attempt
from hetmem.study.scenario import scenario

SYSTEMS = ("accelerate", "flexgen", "deja-vu", "ndp-dimm", "powerinfer", "hermes")
NEURONS = ("deja-vu", "powerinfer", "hermes")
PLACED = ("powerinfer", "hermes")


def results(model: str, work: Any, preset: str, densities: str, misses: str) -> list[dict[str, Any]]:
    """Return the row of every system under every assumption set."""
    rows = []
    for assumed in ASSUMPTIONS:
        for system in SYSTEMS:
            settings = {"activity.densities": densities, "activity.misses": misses} if system in NEURONS else {}
            asked = scenario(
                system, model=model, workload_=work, assumptions=assumed, dimm_preset=preset, settings=settings,
                policies={"partition": "greedy"} if system in PLACED else {},
            )  # fmt: skip
            rows.append(attempt(asked)[1])
    return rows


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return tokens/s and how many times faster Hermes is, a line per system and assumption set."""
    frame = pd.DataFrame(rows)[["system", "assumptions", "dimm_preset", "tokens_per_s", "refused"]]
    hermes = frame[frame.system == "hermes"].set_index("assumptions").tokens_per_s
    frame.insert(4, "hermes_over_it", frame.assumptions.map(hermes) / frame.tokens_per_s)
    return frame


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="opt-66b")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dimm-preset", choices=("paper-fit", "datasheet"), default="paper-fit")
    parser.add_argument("--densities", choices=("untuned", "calibrated"), default="untuned")
    parser.add_argument("--misses", choices=("dropped", "late"), default="dropped")
    args = parser.parse_args(argv)
    work = hetmem.fixed(args.prompt, args.output, args.batch)
    with _script.refusals(parser):
        rows = results(args.model, work, args.dimm_preset, args.densities, args.misses)
    print(table(rows).to_string(index=False, float_format="{:.3g}".format, na_rep="-"))
    with plot.style():
        ax = plot.throughput(rows)
        asked = f"batch {args.batch}, {args.prompt} in, {args.output} out"
        ax.set_title(f"{args.model}: {asked}, {args.densities}, {args.dimm_preset}")
    _script.write(ax.figure, args.out)


if __name__ == "__main__":
    main()
