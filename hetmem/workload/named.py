"""The built-in workloads: quantile tables of the catalogue, and the lookup of a name or a file."""

import os
from pathlib import Path
from typing import Any

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError, WorkloadError, suggestion
from hetmem.workload.lengths import JointQuantiles
from hetmem.workload.source import Distribution, Workload, from_file

_TEXTS = ("title", "tokens", "licence")
_TABLES = ("prompt_quantiles", "output_quantiles")


def workload_ids() -> tuple[str, ...]:
    """Return the names of the built-in workloads."""
    return catalog.ids("workloads")


def workload(name_or_path: str | os.PathLike[str] | Workload) -> Workload:
    """Return a built-in workload by name, or the requests of a file; a description is returned as it is.

    Case and punctuation of a name are ignored. A built-in name wins over a file of that name in the working
    directory; write ``./chat`` for the file. A text with a folder or an extension is a file.

    Raises
    ------
    UnknownNameError
        When the text is neither a name nor a file; it suggests the nearest name.
    WorkloadError
        When the file is missing or cannot be read.
    ConfigError
        When the catalogue's entry is not sound.
    """
    if isinstance(name_or_path, Workload):
        return name_or_path
    path = Path(name_or_path)
    named = isinstance(name_or_path, str) and name_or_path == path.name and not path.suffix
    try:
        if not named:
            return from_file(path)
        return _from_catalog(catalog.entry("workloads", str(name_or_path)))
    except UnknownNameError:
        if path.is_file():
            return from_file(path)
        raise


def _from_catalog(entry: catalog.Entry) -> Distribution:
    where = f"workloads.{entry.id}"
    known = (*_TEXTS, *_TABLES)
    for key in entry.facts:
        if key not in known:
            raise ConfigError(f"{where}.{key}", f"unknown key{suggestion(key, known)}")
    for key in known:
        if key not in entry.facts:
            raise ConfigError(f"{where}.{key}", "is missing")
    try:
        lengths = JointQuantiles(
            *(_numbers(f"{where}.{key}", entry[key], depth) for depth, key in enumerate(_TABLES, 1))
        )
    except WorkloadError as error:
        raise ConfigError(where, error.problem) from None
    facts = entry.facts[_TABLES[0]]
    about = {key: str(entry[key]) for key in _TEXTS} | {"source": facts.source, "grade": facts.grade}
    return Distribution(entry.id, lengths, tuple(about.items()))


def _numbers(where: str, value: Any, depth: int) -> Any:
    """Return ``value`` when it is a list of numbers (``depth`` 1) or of such lists (2)."""
    if depth == 0:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(where, f"expected a token count, not {value!r}")
    elif not isinstance(value, list):
        raise ConfigError(where, f"expected a list of token counts, not {value!r}")
    else:
        for item in value:
            _numbers(where, item, depth - 1)
    return value
