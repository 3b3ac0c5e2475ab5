"""What every script here does around its question: its options, refusals in a line, the figure in a file."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt

from hetmem import HetmemError, plot


def parser(doc: str | None, file: str) -> argparse.ArgumentParser:
    """Return the parser of the script ``file``, which ``doc`` describes; it asks where the figure goes."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = Path("out", Path(file).stem).with_suffix(".png")
    made.add_argument("--out", type=Path, default=out, help="where the figure goes")
    return made


@contextmanager
def refusals(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End with a line that says why where hetmem refuses what was asked."""
    try:
        yield
    except HetmemError as error:
        parser.error(str(error))


def write(figure: plt.Figure, out: Path) -> None:
    """Write a figure, close it and say where it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with plot.style():
        figure.savefig(out)
    plt.close(figure)
    print(f"figure: {out}")
