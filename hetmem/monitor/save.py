"""Saved runs: Parquet tables and a manifest, written so that a directory is complete or visibly incomplete.

The tables go into a temporary directory beside the target, each is flushed to the disk, the manifest with
their digests is written last, and the directory is renamed into place.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetmem._version import __version__
from hetmem.errors import ConfigError
from hetmem.monitor.table import Table

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


def save_tables(directory: Path, tables: Mapping[str, Any], manifest: Mapping[str, Any]) -> Path:
    """Write ``tables`` (:class:`Table`, or anything with ``to_pandas``) and ``manifest``; return the directory.

    Raises
    ------
    ConfigError
        When ``directory`` exists and is not empty.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError("save", f"{directory} exists and is not empty")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.{os.getpid()}.partial"
    partial.mkdir()
    try:
        digests = {}
        for name, table in tables.items():
            path = partial / f"{name}.parquet"
            _write_parquet(table, path)
            digests[path.name] = _flush(path)
        body = {"schema_version": SCHEMA_VERSION, "hetmem_version": __version__, **manifest, "sha256": digests}
        path = partial / MANIFEST
        path.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _flush(path)
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return directory


def _write_parquet(table: Any, path: Path) -> None:
    if isinstance(table, Table):
        table.write_parquet(path)
    else:
        table.to_pandas().to_parquet(path, compression="zstd", index=False)


def _flush(path: Path) -> str:
    """Force ``path`` to the disk and return its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
