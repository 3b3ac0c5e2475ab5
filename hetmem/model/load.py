"""Models by name: the catalogue's entries, or a Hugging Face ``config.json`` on disk."""

from pathlib import Path

import attrs

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError, suggestion
from hetmem.model.hf_config import read_hf_config
from hetmem.model.spec import ModelSpec

_FIELDS = tuple(a.name for a in attrs.fields(ModelSpec) if a.name != "id")
_REQUIRED = tuple(a.name for a in attrs.fields(ModelSpec) if a.default is attrs.NOTHING and a.name != "id")


def model_ids() -> tuple[str, ...]:
    """Return the ids of the catalogue's models."""
    return catalog.ids("models")


def load_model(name_or_path: str | Path) -> ModelSpec:
    """Return the model of that catalogue id (case and punctuation ignored) or configuration file.

    A text that ends in ``.json``, a path and a folder with a ``config.json`` are files.

    Raises
    ------
    UnknownNameError
        When it is neither; it suggests the nearest id.
    ConfigError
        When the entry or the file is malformed; it names the field.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix.lower() == ".json":
        return read_hf_config(path / "config.json" if path.is_dir() else path)
    try:
        found = catalog.entry("models", name_or_path)
    except UnknownNameError:
        if (path / "config.json").is_file():
            return read_hf_config(path / "config.json")
        raise
    return from_entry(found)


def from_entry(entry: catalog.Entry) -> ModelSpec:
    """Return the model of a catalogue entry; unknown and absent keys are refused by name."""
    where, values = f"models.{entry.id}", entry.values()
    for key in values:
        if key not in _FIELDS:
            raise ConfigError(f"{where}.{key}", f"unknown key{suggestion(key, _FIELDS)}")
    if absent := [key for key in _REQUIRED if key not in values]:
        raise ConfigError(where, f"required keys missing: {', '.join(absent)}")
    return ModelSpec(id=entry.id, **values)
