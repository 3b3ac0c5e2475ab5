"""What the scripts on H2M2 are asked: a model as the paper runs it, an assumption set, sequence lengths."""

import argparse
from collections.abc import Sequence

import _script
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.study.h2m2_runs import CASES, PUBLISHED

KNOWN = {case.model: case for case in CASES}


def parser(doc: str | None, file: str) -> argparse.ArgumentParser:
    """Return the parser of the script ``file``, which ``doc`` describes."""
    made = _script.parser(doc, file)
    made.add_argument("--model", choices=KNOWN, default=CASES[0].model)
    made.add_argument("--assumptions", choices=ASSUMPTIONS, default=PUBLISHED)
    made.add_argument("--lengths", nargs="+", type=int, metavar="S", help="tokens; by default eight equal steps")
    return made


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked, with the ``case`` of the model and its lengths where none were given."""
    args = parser.parse_args(argv)
    args.case = KNOWN[args.model]
    args.lengths = args.lengths or args.case.lengths
    return args
