"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function that gives the path of a measured-data file, or skips where it is absent.

    The folder is ``HETMEM_SHARED_DATA``, by default ``shared/data`` beside the checkout.
    """
    root = Path(os.environ.get("HETMEM_SHARED_DATA", _DEFAULT))

    def path_of(relative: str) -> Path:
        path = root / relative
        if not path.exists():
            pytest.skip(f"shared data not present: {path}")
        return path

    return path_of
