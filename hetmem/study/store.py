"""Points on disk: a directory for each that is finished, a record for each that failed.

A point is finished when its manifest is there; its directory is renamed into place with the manifest in it, so there
is no other state, and two processes that finish the same point leave one directory.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from hetmem._version import __version__
from hetmem.errors import ConfigError
from hetmem.monitor.save import MANIFEST, SCHEMA_VERSION, save_tables

POINTS, FAILED, LOCK = "points", "failed", ".lock"


@frozen
class Store:
    """The directory of a sweep or a search."""

    directory: Path

    def finished(self, identity: str) -> bool:
        """Return whether the point has its manifest."""
        return (self._point(identity) / MANIFEST).is_file()

    def manifest(self, identity: str) -> dict[str, Any]:
        """Return the manifest of a finished point."""
        found: dict[str, Any] = json.loads((self._point(identity) / MANIFEST).read_text(encoding="utf-8"))
        return found

    def finish(self, identity: str, tables: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Write a point's tables and manifest; what another process has finished meanwhile stays."""
        try:
            save_tables(self._point(identity), tables, manifest)
        except (OSError, ConfigError):
            if not self.finished(identity):
                raise

    def failed(self, identity: str) -> bool:
        """Return whether the last attempt at the point failed."""
        return self._failure(identity).is_file()

    def failure(self, identity: str) -> dict[str, Any]:
        """Return the record of a failed point."""
        found: dict[str, Any] = json.loads(self._failure(identity).read_text(encoding="utf-8"))
        return found

    def fail(self, identity: str, record: Mapping[str, Any]) -> None:
        """Write the record of a failed point."""
        body = {"schema_version": SCHEMA_VERSION, "hetmem_version": __version__, "identity": identity, **record}
        with replacing(self._failure(identity)) as partial:
            partial.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def forgive(self, identity: str) -> None:
        """Drop the record of a failure."""
        self._failure(identity).unlink(missing_ok=True)

    def _point(self, identity: str) -> Path:
        return self.directory / POINTS / identity

    def _failure(self, identity: str) -> Path:
        return self.directory / FAILED / f"{identity}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one sweep at a time, and clear what a killed one left half written.

        Raises
        ------
        ConfigError
            When another sweep holds it, or it cannot be written.
        """
        import fcntl  # here, because not every platform has it

        try:
            for name in (POINTS, FAILED):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            lock = (self.directory / LOCK).open("w")
        except OSError as error:
            raise ConfigError("out", f"{self.directory} cannot be written: {error}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError("out", f"another sweep is writing to {self.directory}") from None
            for name in (POINTS, FAILED, "."):
                for left in (self.directory / name).glob(".*.partial"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; it takes the place of ``path`` when all went well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
