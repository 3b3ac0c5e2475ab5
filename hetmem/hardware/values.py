"""Checked values of hardware parts: attrs validators, and building a part from a catalogue entry."""

from typing import Any, TypeVar

from attrs import fields

from hetmem.catalog import Entry
from hetmem.errors import ConfigError, suggestion

T = TypeVar("T")


def positive(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(attribute.name, f"expected a positive number, not {value!r}")


def not_negative(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a finite number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(attribute.name, f"expected a number of at least 0, not {value!r}")


def whole(instance: Any, attribute: Any, value: Any) -> None:
    """Refuse what is not a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(attribute.name, f"expected a whole number of at least 1, not {value!r}")


def exactly(cls: type[T], entry: Entry) -> T:
    """Return the attrs class ``cls`` built from a catalogue entry, whose keys must be its fields.

    A field ``name`` is the id of the entry.

    Raises
    ------
    ConfigError
        When a key is unknown or missing, or a validator refuses a value; the path names entry and key.
    """
    names = [attribute.name for attribute in fields(cls)]  # type: ignore[arg-type]
    where, values = f"{entry.kind}.{entry.id}", entry.values()
    known = tuple(name for name in names if name != "name")
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key}", f"unknown key{suggestion(key, known)}")
    if "name" in names:
        values["name"] = entry.id
    for name in names:
        if name not in values:
            raise ConfigError(f"{where}.{name}", "is missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error.path}", error.problem) from None
