"""From a catalogue entry to a frozen attrs class: exact types, no unknown key, every error at once.

A key that the class does not know is refused by name, so that no number in the catalogue can be without
effect. An ``int`` field takes integers only and a ``float`` field finite numbers only; neither takes
``true`` or text.
"""

import math
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.errors import ForbiddenExtraKeysError

from hetmem.catalog import Entry
from hetmem.errors import ConfigError, ConfigErrors, suggestion

T = TypeVar("T")


def structure(cls: type[T], entry: Entry) -> T:
    """Return ``cls(name=entry.id, **values of entry)``.

    Raises
    ------
    ConfigError, ConfigErrors
        When a key is unknown or missing, or a value has the wrong type or range; each names the key.
    """
    where = f"{entry.kind}.{entry.id}"
    if "name" in entry.facts:  # the id is the name; cattrs would see no extra key
        raise ConfigError(f"{where}.name", "unknown key; the id of the entry is its name")
    try:
        return _CONVERTER.structure({"name": entry.id, **entry.values()}, cls)
    except cattrs.ClassValidationError as group:
        known = tuple(a.name for a in attrs.fields(cls) if a.name != "name")  # type: ignore[arg-type]
        errors = tuple(_flatten(group, where, known))
    raise errors[0] if len(errors) == 1 else ConfigErrors(errors)


def _flatten(error: BaseException, path: str, known: tuple[str, ...]) -> list[ConfigError]:
    """Return the errors inside ``error``, each with the path of its key."""
    if isinstance(error, ForbiddenExtraKeysError):
        return [
            ConfigError(f"{path}.{key}", f"unknown key{suggestion(key, known)}") for key in sorted(error.extra_fields)
        ]
    if isinstance(error, cattrs.ClassValidationError):
        noted, bare = error.group_exceptions()
        inner = [e for child, note in noted for e in _flatten(child, f"{path}.{note.name}", known)]
        return inner + [e for child in bare for e in _flatten(child, path, known)]
    if isinstance(error, cattrs.IterableValidationError):
        listed, bare = error.group_exceptions()
        inner = [e for child, note in listed for e in _flatten(child, f"{path}[{note.index}]", known)]
        return inner + [e for child in bare for e in _flatten(child, path, known)]
    if isinstance(error, KeyError):
        return [ConfigError(path, "required, but missing")]
    if isinstance(error, ConfigError):  # of a validator, which knows its field but not the entry
        return [ConfigError(f"{path}.{error.path}", error.problem)]
    return [ConfigError(path, str(error))]


def _exact(expected: str, accept: tuple[type, ...]) -> Any:
    def check(value: Any, _: Any) -> Any:
        if not isinstance(value, accept) or isinstance(value, bool):
            raise TypeError(f"expected {expected}, not {value!r}")
        return value

    return check


def _flag(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, not {value!r}")
    return value


def _finite(value: Any, _: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, not {value!r}")
    return float(value)


def _build_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(int, _exact("an integer", (int,)))
    converter.register_structure_hook(str, _exact("text", (str,)))
    converter.register_structure_hook(bool, _flag)
    converter.register_structure_hook(float, _finite)
    return converter


_CONVERTER = _build_converter()


def structure_value(value: Any, kind: Any) -> Any:
    """Return ``value`` as ``kind``, with the same strictness; for a single setting."""
    return _CONVERTER.structure(value, kind)
