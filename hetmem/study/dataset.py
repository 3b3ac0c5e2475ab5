"""The results of a sweep as one Parquet dataset: a row per point, sorted by identity.

Columns: ``identity``, ``status`` (done, refused or failed) and ``reason``; what the point resolved to; every metric;
then the busy share of each server, and joules by component, as maps. Nothing in it depends on when, where or in which
order the points ran.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmem._version import __version__
from hetmem.monitor.save import SCHEMA_VERSION
from hetmem.study.metrics import METRICS
from hetmem.study.point import FIELDS, Point
from hetmem.study.store import Store, replacing

if TYPE_CHECKING:
    import pyarrow as pa

DATASET = "dataset.parquet"
MEASURED_TEXT, MEASURED_COUNTS = "bound", ("requests_in", "requests_done", "requests_dropped", "output_tokens", "steps")
MAPS = ("time_share", "energy_j")


def row(point: Point, store: Store) -> dict[str, Any]:
    """Return the row of a point that is finished or has failed."""
    if store.finished(point.identity):
        found = store.manifest(point.identity)
    else:
        found = {"status": "failed", "reason": store.failure(point.identity)["error"]}
    return {
        "identity": point.identity,
        "status": found["status"],
        "reason": found["reason"],
        **point.columns,
        **{name: found.get("metrics", {}).get(name) for name in METRICS},
        **{name: found.get("measured", {}).get(name) for name in (MEASURED_TEXT, *MEASURED_COUNTS, *MAPS)},
    }


def write(rows: Sequence[Mapping[str, Any]], store: Store) -> Path:
    """Write the dataset of ``rows`` and return its path."""
    import pyarrow.parquet as pq

    path = store.directory / DATASET
    table = as_table(sorted(rows, key=lambda one: str(one["identity"])))
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return path


def as_table(rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """Return the rows as a table; only the types of settings by path depend on their values."""
    import pyarrow as pa

    plain = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    kinds: dict[str, Any] = dict.fromkeys(("identity", "status", "reason", MEASURED_TEXT), pa.string())
    kinds |= {name: plain[kind] for name, kind in FIELDS.items()}
    kinds |= dict.fromkeys(METRICS, pa.float64()) | dict.fromkeys(MEASURED_COUNTS, pa.int64())
    kinds |= dict.fromkeys(MAPS, pa.map_(pa.string(), pa.float64()))
    columns = {}
    for name in rows[0]:
        values = [one[name] for one in rows]
        kind = kinds.get(name) or _kind(values, plain)
        if name in MAPS:
            values = [None if value is None else sorted(value.items()) for value in values]
        elif kind == pa.string():
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = pa.array(values, kind)
    versions = {"schema_version": str(SCHEMA_VERSION), "hetmem_version": __version__}
    return pa.table(columns).replace_schema_metadata(versions)


def _kind(values: Sequence[Any], plain: Mapping[type, "pa.DataType"]) -> "pa.DataType":
    """Return the type of a setting's column: text, as JSON, where values differ in kind or are lists."""
    found = {type(value) for value in values if value is not None}
    if found == {int, float}:
        return plain[float]
    return plain.get(found.pop(), plain[str]) if len(found) == 1 else plain[str]
