"""Settings by path: ``machine.dimm.count=4`` on a tree of frozen attrs classes."""

import tomllib
from collections.abc import Mapping
from typing import Any, get_args

import attrs

from hetmem.catalog.structure import structure_value
from hetmem.errors import ConfigError, ConfigErrors, suggestion
from hetmem.units import parse_quantity

# What a field's name says of its unit: the base unit of a text, and how many of those the field counts in.
_UNITS = {
    "gbs": ("B/s", 1e9), "_bytes_per_s": ("B/s", 1.0), "_bytes": ("B", 1.0), "_gb": ("B", 1e9), "_s": ("s", 1.0),
    "_ns": ("s", 1e-9), "_w": ("W", 1.0), "_ghz": ("Hz", 1e9), "_tflops": ("FLOP/s", 1e12), "_pj": ("J", 1e-12),
    "pj_per_bit": ("J/B", 8e-12), "pj_per_byte": ("J/B", 1e-12),
}  # fmt: skip


def with_settings(tree: Any, settings: Mapping[str, Any]) -> Any:
    """Return ``tree`` with every field named in ``settings`` replaced.

    Values may be text as typed on a command line: a number, ``true``, ``"80 GB"``, ``"5 us"``.

    Raises
    ------
    ConfigError, ConfigErrors
        For paths that do not exist, with a suggestion, and values that the field does not take.
    """
    errors: list[ConfigError] = []
    for path, value in settings.items():
        try:
            tree = _replaced(tree, path.split("."), value, path)
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ConfigErrors(tuple(errors))
    return tree


def has_path(tree: Any, path: str) -> bool:
    """Return whether ``path`` names a field of ``tree`` that can be set."""
    node = tree
    for name in path.split("."):
        if not attrs.has(type(node)) or name not in {field.name for field in attrs.fields(type(node))}:
            return False
        node = getattr(node, name)
    return not attrs.has(type(node))


def _replaced(node: Any, parts: list[str], value: Any, path: str) -> Any:
    fields = {field.name: field for field in attrs.fields(type(node)) if field.name not in ("name", "id")}
    name = parts[0]
    if name not in fields:
        raise ConfigError(path, f"unknown field {name!r}{suggestion(name, fields)}")
    child = getattr(node, name)
    if len(parts) > 1:
        if child is None:
            raise ConfigError(path, f"this machine has no {name}")
        if not attrs.has(type(child)):
            raise ConfigError(path, f"{name} has no fields")
        new = _replaced(child, parts[1:], value, path)
    elif attrs.has(type(child)):
        inside = ", ".join(field.name for field in attrs.fields(type(child)) if field.name not in ("name", "id"))
        raise ConfigError(path, f"is a group; set one of its fields: {inside}")
    elif instead := fields[name].metadata.get("instead"):
        raise ConfigError(path, instead)
    else:
        new = _typed(value, fields[name], path)
    try:
        return attrs.evolve(node, **{name: new})
    except ConfigError as error:
        raise ConfigError(path, error.problem) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(path, str(error.args[0] if error.args else error)) from None


def _typed(value: Any, field: "attrs.Attribute[Any]", path: str) -> Any:
    kinds = get_args(field.type) or (field.type,)
    if value is not None and any(attrs.has(kind) for kind in kinds):
        raise ConfigError(path, f"this machine has no {field.name}")
    if isinstance(value, str):
        value = _parsed(value, field.name, kinds, path)
    if isinstance(value, float) and int in kinds and value.is_integer():
        value = int(value)
    try:
        return structure_value(value, field.type)
    except (TypeError, ValueError) as error:
        raise ConfigError(path, str(error)) from None


def _parsed(text: str, name: str, kinds: tuple[Any, ...], path: str) -> Any:
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    if int in kinds or float in kinds:
        suffix = max((known for known in _UNITS if name.endswith(known)), key=len, default=None)
        unit, scale = (None, 1.0) if suffix is None else _UNITS[suffix]
        try:
            return parse_quantity(text, unit) / scale
        except ValueError as error:
            raise ConfigError(path, str(error)) from None
    return text
