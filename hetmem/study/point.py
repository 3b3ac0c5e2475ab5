"""A point of a sweep: a scenario as plain values, and the identity of what it resolves to.

Two points that resolve to the same configuration are one, however they are spelled: ``dimms=8`` and
``machine.dimm.count=8`` have the same identity. It is a hash of the resolved configuration, the workload, the
catalogue entries that they name, and the version of hetmem, so a result is never taken for that of another machine.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from hetmem import catalog
from hetmem._version import __version__
from hetmem.errors import ConfigError, ConfigErrors, HetmemError, UnknownNameError, WorkloadError
from hetmem.model import model_ids
from hetmem.study.scenario import POLICIES, Scenario, scenario, unstructured
from hetmem.study.speculating import draft_model
from hetmem.workload import FixedBatch, Workload, fixed, from_file, workload

FIELDS: dict[str, type] = {
    "system": str, "model": str, "workload": str, "prompt": int, "output": int, "batch": int, "requests": int,
    "rate": float, "gpu": str, "gpus": int, "dimms": int, "multipliers": int, "assumptions": str,
    "dimm_preset": str, "seed": int, "truncate": bool,
}  # fmt: skip
POLICY = "policy."
MOST_ERRORS = 5
IDENTITY_DIGITS = 32


@frozen
class Point:
    """A point, resolved.

    Attributes
    ----------
    values
        What was asked, by name: the fields of a scenario, ``policy.ROLE``, and paths of the configuration.
    identity
        Hexadecimal digits that stand for what the point resolves to.
    columns
        What it resolved to, by the names asked for and those of :data:`FIELDS`.
    """

    values: Mapping[str, Any]
    identity: str
    columns: Mapping[str, Any] = field(repr=False)


def grid(choices: Mapping[str, Sequence[Any]], base: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return every combination of the values of ``choices``, each with the values of ``base`` besides.

    Raises
    ------
    ConfigError
        When a name has no value.
    """
    for key, values in choices.items():
        if not values:
            raise ConfigError(key, "has no value")
    return [{**(base or {}), **dict(zip(choices, one, strict=True))} for one in product(*choices.values())]


def grid_choices(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Return the choices that ``KEY=VALUE,VALUE,…`` texts spell.

    Raises
    ------
    ConfigError
        When a text has another form, or a key comes twice.
    """
    given = named_values("grid", "expected KEY=VALUE,VALUE,…", texts)
    return {key: [typed(key, value.strip()) for value in values.split(",")] for key, values in given}


def named_values(option: str, form: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield from each ``NAME=VALUE,VALUE,…`` text of an option the name, which comes once, and its values.

    Raises
    ------
    ConfigError
        With the expected ``form`` where a text has another, and when a name comes twice.
    """
    known = set()
    for text in texts:
        name, _, values = text.partition("=")
        if not name or not all(value.strip() for value in values.split(",")):
            raise ConfigError(option, f"{form}, not {text!r}")
        if name in known:
            raise ConfigError(option, f"{name} is given twice")
        known.add(name)
        yield name, values


def read_points(path: Path) -> list[dict[str, Any]]:
    """Return the points of a file: a CSV table with a header, or an object per line (``.jsonl``).

    An empty cell leaves its name at the default.

    Raises
    ------
    ConfigError
        When the file cannot be read, holds nothing, or a line is not a point; it names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("points", f"{path} cannot be read: {error}") from None
    rows = _json_points(path, text) if path.suffix == ".jsonl" else _csv_points(path, text)
    if not rows:
        raise ConfigError("points", f"{path} holds no points")
    return rows


def _json_points(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}", f"expected a JSON object: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}", f"expected a JSON object, not {line.strip()!r}")
        rows.append(row)
    return rows


def _csv_points(path: Path, text: str) -> list[dict[str, Any]]:
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) < len(header) or "" in header:
        raise ConfigError(f"{path}:1", "expected a header of different names")
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise ConfigError(f"{path}:{reader.line_num}", f"expected {len(header)} cells, found {len(cells)}")
        filled = ((name, cell.strip()) for name, cell in zip(header, cells, strict=True) if cell.strip())
        try:
            rows.append({name: typed(name, cell) for name, cell in filled})
        except ConfigError as error:
            raise ConfigError(f"{path}:{reader.line_num}", str(error)) from None
    return rows


def typed(key: str, text: str) -> Any:
    """Return ``text`` as the field ``key`` takes it; the text itself for a path, whose field decides.

    Raises
    ------
    ConfigError
        When the text is no value of that field.
    """
    kind = FIELDS.get(key, str)
    if kind is str:
        return text
    if text.lower() in ("none", "null"):
        return None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(key, f"expected true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(key, f"expected {expected}, not {text!r}") from None


def resolve(values: Mapping[str, Any], names: Iterable[str] = ()) -> Point:
    """Return the point of ``values`` with its identity and the columns ``names``.

    Raises
    ------
    HetmemError
        When a name is unknown or a value cannot be used.
    """
    normal = normalised(build(values))
    columns = {name: _column(normal, name) for name in dict.fromkeys((*FIELDS, *sorted(names)))}
    return Point(dict(values), identity_of(normal), columns)


def identity_of(normal: Mapping[str, Any]) -> str:
    """Return the identity of what :func:`normalised` gives."""
    text = json.dumps(normal, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:IDENTITY_DIGITS]


def resolve_all(points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the different points, sorted by identity, each with a column for every name that any of them has.

    Raises
    ------
    ConfigErrors
        When points cannot be resolved: the first few, each with the values in which it differs from others.
    """
    names = sorted({name for values in points for name in values})
    found: dict[str, Point] = {}
    errors: list[ConfigError] = []
    for number, values in enumerate(points, 1):
        try:
            point = resolve(values, names)
        except HetmemError as error:
            own = {k: v for k, v in values.items() if any(other.get(k, v) != v for other in points)}
            errors.append(ConfigError(f"point {number} ({spelled(own)})" if own else "point", str(error)))
            if len(errors) == MOST_ERRORS:
                break
        else:
            found.setdefault(point.identity, point)
    if errors:
        raise ConfigErrors(tuple(errors))
    return [found[identity] for identity in sorted(found)]


def spelled(values: Mapping[str, Any]) -> str:
    """Return the values as ``name=value`` texts."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def build(values: Mapping[str, Any]) -> Scenario:
    """Return the scenario of a point's values.

    Raises
    ------
    HetmemError
        As :func:`hetmem.study.scenario.scenario`.
    """
    fields: dict[str, Any] = {}
    policies: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key in FIELDS:
            if value is not None:
                fields[key] = _checked(key, value)
        elif key.startswith(POLICY):
            policies[key.removeprefix(POLICY)] = value
        elif "." in key:
            settings[key] = value
        else:
            raise UnknownNameError("field of a point", key, tuple(FIELDS))
    if "system" not in fields:
        raise ConfigError("system", "is missing")
    system, model = fields.pop("system"), fields.pop("model", "llama2-70b")
    prompt, output, asked = fields.pop("prompt", None), fields.pop("output", None), fields.pop("workload", "chat")
    if (prompt is None) != (output is None):
        raise ConfigError("prompt" if prompt is None else "output", "prompt and output go together")
    work = _workload(asked) if prompt is None else fixed(prompt, output, fields.get("batch", 1))
    return scenario(system, model=model, workload_=work, policies=policies, settings=settings, **fields)


def _checked(key: str, value: Any) -> Any:
    kind = FIELDS[key]
    if isinstance(value, int) and not isinstance(value, bool) and kind is float:
        return float(value)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ConfigError(key, f"expected {expected}, not {value!r}")
    return value


def _workload(asked: str) -> Workload:
    """Return the workload of a name or a file; a file that has not changed is read once in a process."""
    path = Path(asked)
    try:
        found = path.stat()
    except OSError:
        return workload(asked)
    if asked == path.name and not path.suffix:
        return workload(asked)
    return _read(asked, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=8)
def _read(path: str, mtime_ns: int, size: int) -> Workload:
    return from_file(path)


def travelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with absolute paths of files, for a worker that runs in another folder."""
    moved = dict(values)
    for key, known in (("model", model_ids()), ("workload", catalog.ids("workloads"))):
        value = moved.get(key)
        if isinstance(value, str) and value not in known and Path(value).exists():
            moved[key] = str(Path(value).resolve())
    return moved


def normalised(asked: Scenario) -> dict[str, Any]:
    """Return everything that determines the results of a scenario, as plain values.

    Raises
    ------
    ConfigError
        When a policy is an object: only one chosen by name can be told from another.
    HetmemError
        When the configuration is not sound.
    """
    work = asked.workload.describe()
    work.pop("path", None)  # the digest of a file says what it holds
    config = asked.configuration()
    drafts = draft_model(config)
    normal = {
        "version": __version__,
        "system": asked.system.name,
        "assumptions": asked.assumptions,
        "dimm_preset": asked.dimm_preset,
        "configuration": unstructured(config),
        "draft_model": None if drafts is None else attrs.asdict(drafts),
        "workload": work,
        "requests": asked.requests or _own_requests(asked.workload),
        "rate": asked.rate,
        "seed": asked.seed,
        "truncate": asked.truncate,
        "policies": _policies(asked),
    }
    return {**normal, "catalogue": _named_entries(normal["configuration"])}


def _own_requests(work: Workload) -> int:
    if isinstance(work, FixedBatch):
        return work.batch
    trace = getattr(work, "trace", None)
    if trace is None:
        raise WorkloadError(work.name, "has no number of requests")
    return len(trace.table)


def _policies(asked: Scenario) -> dict[str, str]:
    """Return the policy of each role: the one chosen, else the one that the run takes by itself."""
    own = {role: names[0] for role, names in asked.system.roles.items()}
    chosen = {**own, "batching": asked.batching(), "admission": next(iter(POLICIES["admission"])), **asked.policies}
    for role, policy in chosen.items():
        if not isinstance(policy, str):
            raise ConfigError(f"{POLICY}{role}", f"expected the name of a policy, not {policy!r}")
    return chosen


def _named_entries(tree: Any) -> dict[str, dict[str, Any]]:
    """Return the catalogue entries named anywhere in ``tree``: some parts are looked up while a system is built."""
    texts = set(_texts(tree))
    return {
        f"{kind}.{name}": catalog.entry(kind, name).values()
        for kind in catalog.kinds()
        for name in catalog.ids(kind)
        if name in texts
    }


def _texts(tree: Any) -> Iterable[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)


def _column(normal: Mapping[str, Any], name: str) -> Any:
    tree, work = normal["configuration"], normal["workload"]
    places: dict[str, tuple[Any, str]] = {
        "model": (tree, "model.id"), "workload": (work, "name"), "prompt": (work, "prompt"),
        "output": (work, "output"), "batch": (tree, "serving.batch"), "gpu": (tree, "machine.gpu.name"),
        "gpus": (tree, "machine.gpus"), "dimms": (tree, "machine.dimm.count"),
        "multipliers": (tree, "machine.dimm.multipliers"),
    }  # fmt: skip
    if name in FIELDS:
        return _at(*places.get(name, (normal, name)))
    if name.startswith(POLICY):
        return normal["policies"].get(name.removeprefix(POLICY))
    return _at(tree, name)


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree
