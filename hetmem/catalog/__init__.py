"""The catalogue: every constant of hetmem as a TOML entry, each number with its source and grade.

A file is a kind (``gpus.toml``, ``dram.toml``, …), a table in it an entry. ``source`` and ``grade`` of an entry
hold for all its keys, except where a key is written ``{ value = …, source = "…", grade = "…" }``.
Users add entries by pointing ``HETMEM_CATALOG`` at a folder with files of the same names.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from hetmem.errors import ConfigError, UnknownNameError

GRADES = ("published", "measured", "derived", "assumed")
_HERE = Path(__file__).parent
_loaded: dict[str, dict[str, "Entry"]] = {}


@frozen
class Fact:
    """One value with where it comes from; ``grade`` is one of :data:`GRADES`."""

    value: Any
    source: str
    grade: str


@frozen
class Entry:
    """One catalogue entry: ``facts`` maps each key to its :class:`Fact`."""

    kind: str
    id: str
    facts: Mapping[str, Fact]

    def values(self) -> dict[str, Any]:
        """Return the bare values by key, in the order of the file."""
        return {key: fact.value for key, fact in self.facts.items()}

    def __getitem__(self, key: str) -> Any:
        return self.facts[key].value


def normalize(name: str) -> str:
    """Return ``name`` as it is matched: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def kinds() -> tuple[str, ...]:
    """Return the kinds of entry, one per file."""
    return tuple(sorted(path.stem for path in _HERE.glob("*.toml")))


def ids(kind: str) -> tuple[str, ...]:
    """Return the ids of the entries of ``kind``, in the order of the file."""
    return tuple(_entries(kind))


def entry(kind: str, name: str) -> Entry:
    """Return the entry of ``kind`` called ``name``; matching ignores case and punctuation.

    Raises
    ------
    UnknownNameError
        When no entry matches; it suggests the nearest.
    """
    entries = _entries(kind)
    if name in entries:
        return entries[name]
    wanted = normalize(name)
    for known, found in entries.items():
        if normalize(known) == wanted:
            return found
    raise UnknownNameError(kind.removesuffix("s"), name, tuple(entries))


def whole(found: Entry) -> Entry:
    """Return ``found`` with what it does not say itself taken from the entry of its kind that ``base`` names."""
    if "base" not in found.facts:
        return found
    facts = {**whole(entry(found.kind, found["base"])).facts, **found.facts}
    del facts["base"]
    return Entry(found.kind, found.id, facts)


@contextmanager
def patched(kind: str, name: str, key: str, value: Any) -> Iterator[None]:
    """Replace one value for the length of a ``with`` block: for sensitivity studies and tests."""
    old = entry(kind, name)
    fact = Fact(value, f"patched, was {old.facts[key].value!r}", "assumed")
    _entries(kind)[old.id] = Entry(kind, old.id, {**old.facts, key: fact})
    try:
        yield
    finally:
        _entries(kind)[old.id] = old


def parse(kind: str, text: str, origin: str) -> dict[str, Entry]:
    """Return the entries of one TOML file; ``origin`` names it in errors."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(origin, str(error)) from None
    return {name: _parse_entry(kind, name, table, origin) for name, table in tables.items()}


def _parse_entry(kind: str, name: str, table: Any, origin: str) -> Entry:
    where = f"{origin}: {name}"
    if not isinstance(table, dict):
        raise ConfigError(where, "expected a table with 'source' and 'grade'")
    source, grade = table.get("source"), table.get("grade")
    facts = {}
    for key, raw in table.items():
        if key in ("source", "grade"):
            continue
        spelled = isinstance(raw, dict) and "value" in raw
        fact = Fact(
            raw["value"] if spelled else raw,
            str((raw.get("source", source) if spelled else source) or ""),
            str(raw.get("grade", grade) if spelled else grade),
        )
        if not fact.source:
            raise ConfigError(f"{where}.{key}", "has no source")
        if fact.grade not in GRADES:
            raise ConfigError(f"{where}.{key}", f"grade must be one of {', '.join(GRADES)}, not {fact.grade!r}")
        facts[key] = fact
    return Entry(kind, name, facts)


def _entries(kind: str) -> dict[str, Entry]:
    if kind not in _loaded:
        paths = [_HERE / f"{kind}.toml"]
        if extra := os.environ.get("HETMEM_CATALOG"):
            if not Path(extra).is_dir():
                raise ConfigError("HETMEM_CATALOG", f"{extra} is not a folder")
            paths.append(Path(extra) / f"{kind}.toml")
        found: dict[str, Entry] = {}
        for path in paths:
            if not path.exists():
                continue
            new = parse(kind, path.read_text(encoding="utf-8"), str(path))
            if twice := sorted(found.keys() & new.keys()):
                raise ConfigError(str(path), f"{twice[0]} is already in the catalogue")
            found |= new
        _loaded[kind] = found
    return _loaded[kind]
