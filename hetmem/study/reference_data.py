"""Measured and simulated data that reproductions compare with; the files are not part of the package."""

import csv
import os
from pathlib import Path

from hetmem.errors import ConfigError

VARIABLE = "HETMEM_SHARED_DATA"


def data_path(relative: str) -> Path:
    """Return the path of a file in the folder that ``HETMEM_SHARED_DATA`` names.

    Raises
    ------
    ConfigError
        When the variable is not set, or the file is not there.
    """
    root = os.environ.get(VARIABLE)
    if root is None:
        raise ConfigError(VARIABLE, f"must name the folder that holds {relative}")
    path = Path(root) / relative
    if not path.is_file():
        raise ConfigError(VARIABLE, f"{path} is not there")
    return path


def read(relative: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file; errors as :func:`data_path`."""
    with data_path(relative).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
