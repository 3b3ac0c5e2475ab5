"""Catalogue entries as typed values: one attrs class per kind, every key used, no key unknown."""

from typing import Any, TypeVar, get_args, get_origin

from attrs import fields_dict, resolve_types

from hetmem import catalog
from hetmem.errors import ConfigError, suggestion

T = TypeVar("T")
_WORDS = {int: "a whole number", float: "a number", str: "a text"}


def read(cls: type[T], kind: str, name: str) -> T:
    """Return the entry ``name`` of ``kind`` as ``cls``, an attrs class whose fields are the entry's keys.

    Its field ``name`` receives the entry's id; a list becomes a tuple.

    Raises
    ------
    UnknownNameError
        When there is no such entry.
    ConfigError
        When a key is unknown, missing or not of the field's type.
    """
    entry = catalog.entry(kind, name)
    fields = fields_dict(resolve_types(cls))  # type: ignore[type-var, arg-type]
    wanted = [key for key in fields if key != "name"]
    where = f"{kind}.{entry.id}"
    for key in entry.facts:
        if key not in wanted:
            raise ConfigError(f"{where}.{key}", f"unknown key{suggestion(key, wanted)}")
    for key in wanted:
        if key not in entry.facts:
            raise ConfigError(f"{where}.{key}", "is missing")
    values = {key: _checked(f"{where}.{key}", entry[key], fields[key].type) for key in wanted}
    values["name"] = entry.id
    return cls(**values)


def _checked(where: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise ConfigError(where, f"expected a list, not {value!r}")
        return tuple(_checked(where, item, get_args(wanted)[0]) for item in value)
    accepted = (int, float) if wanted is float else wanted
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ConfigError(where, f"expected {_WORDS[wanted]}, not {value!r}")
    return value
