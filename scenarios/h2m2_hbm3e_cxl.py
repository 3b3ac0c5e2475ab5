"""The same mapping policies on another pair of memories: HBM3e beside CXL-attached DDR5, the CXL link in between.

Nothing changes but the machine. Each policy runs on the board of H2M2 (arXiv 2504.14893) and on the other one; the
baseline of each is its slow memory alone with both chips on it.

    python scenarios/h2m2_hbm3e_cxl.py --model llama2-70b --batch 64 --length 4000 --out cxl.png
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from attrs import evolve

import _script
import hetmem
from hetmem import plot
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.model import Precision
from hetmem.policy.kernel_mapping import SUBLAYERS
from hetmem.policy.kernel_search import MAPPERS
from hetmem.study.run import Run

BOARDS = {"HBM3 + LPDDR5X": "h2m2", "HBM3e + CXL DDR5": "hbm3e-cxl"}
INT8 = Precision(weights_bits=8, kv_bits=8, activation_bits=8)


def decode_s(run: Run) -> float:
    """Return the seconds of the last step."""
    return float(run.steps.column("end_ps")[-1] - run.steps.column("start_ps")[-1]) * 1e-12


def table(model: str, batch: int, length: int, assumptions: str, policies: Sequence[str]) -> pd.DataFrame:
    """Return a row per board and policy: time of an iteration, speedup over the slow memory alone, shares."""
    work, rows = hetmem.fixed(length - 1, 2, batch), []
    for title, preset in BOARDS.items():
        board = hetmem.machine(preset, assumptions)
        alone = evolve(hetmem.machine("lpddr-only", assumptions), slow=board.slow)  # type: ignore[union-attr]
        common = {"model": model, "workload": work, "assumptions": assumptions, "precision": INT8}
        base = decode_s(hetmem.simulate("lpddr-only", machine=alone, **common))
        for policy in policies:
            run = hetmem.simulate("h2m2", machine=board, policies={"mapping": policy}, **common)
            spec, noted = run.scenario.model, run.tables["mapping"]
            parts = {"attention": spec.n_kv_heads, "qkv": spec.n_kv_heads, "fc": spec.n_heads}
            shares = {f"{name} fast": int(noted.column(name)[-1]) / parts[name] for name in SUBLAYERS}
            took = decode_s(run)
            rows.append({"board": title, "policy": policy, "ms": 1e3 * took, "speedup": base / took, **shares})
    return pd.DataFrame(rows).set_index(["board", "policy"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print the table and write the figure."""
    parser = _script.parser(__doc__, __file__)
    parser.add_argument("--model", default="gpt3-175b")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024, help="tokens that each sequence attends to")
    parser.add_argument("--assumptions", choices=ASSUMPTIONS, default="fair")
    parser.add_argument("--policies", nargs="+", default=("greedy", "a-major", "static", "naive"), choices=MAPPERS)
    args = parser.parse_args(argv)
    with _script.refusals(parser):
        frame = table(args.model, args.batch, args.length, args.assumptions, args.policies)
    print(f"{args.model}, batch {args.batch}, {args.length} tokens, {args.assumptions}: a decode iteration,")
    print("speedup over the slow memory alone, and shares on the fast side")
    print(frame.to_string(float_format="%.3f"))
    with plot.style():
        figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        frame["speedup"].unstack("board")[list(BOARDS)].loc[list(args.policies)].plot.bar(ax=ax, rot=0)
        ax.axhline(1.0, color="black", linewidth=0.8)
        ax.set_xlabel("")
        ax.set_ylabel("speedup over the slow memory alone")
        ax.set_title(f"{args.model}, batch {args.batch}, {args.length} tokens, {args.assumptions}")
    _script.write(figure, args.out)


if __name__ == "__main__":
    main()
