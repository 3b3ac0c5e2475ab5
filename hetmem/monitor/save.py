"""Saved runs: Parquet tables and a manifest, written so that a directory is complete or visibly incomplete.

The tables go into a temporary directory beside the target, each is flushed to the disk, the manifest with
their digests is written last, and the directory is renamed into place.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
        When ``directory`` exists and is not empty, is no directory, or cannot be written; nothing is left then.
    """
    with _partial(directory) as partial:
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
    return directory


def check_target(directory: Path) -> None:
    """Find out, before anything runs, whether :func:`save_tables` can write to ``directory``; leave no trace.

    Raises
    ------
    ConfigError
        As :func:`save_tables`.
    """
    # Permission bits do not tell (a superuser passes them, a pseudo file system takes nothing): so it is tried.
    with suppress(_TriedError), _partial(directory):
        raise _TriedError


class _TriedError(Exception):
    """Ends a trial; never leaves this module."""


@contextmanager
def _partial(directory: Path) -> Iterator[Path]:
    """Give a directory to fill beside ``directory``; when the block fails, it and the parents made for it go."""
    partial = directory.parent / f".{directory.name}.{os.getpid()}.partial"
    made: list[Path] = []
    try:
        if directory.exists():
            if not directory.is_dir():
                raise ConfigError("save", f"{directory} is not a directory")
            if any(directory.iterdir()):
                raise ConfigError("save", f"{directory} exists and is not empty")
        parents = [directory.parent, *directory.parent.parents]
        for path in reversed([path for path in parents if not path.exists()]):
            path.mkdir()
            made.append(path)
        partial.mkdir()
        yield partial
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for path in reversed(made):
            with suppress(OSError):  # another may have put something there
                path.rmdir()
        if isinstance(error, OSError):
            raise ConfigError("save", f"{directory} cannot be written: {error.strerror or error}") from None
        raise


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
