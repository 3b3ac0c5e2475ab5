"""Tables of measured GPU kernels: recognised by their columns, checked row by row, selected from.

A user's own table has ``m,n,k,time_us`` (GEMM) or ``batch,n_q,n_kv,head_dim,kv_len,time_us`` (decode
attention); the other forms are in :mod:`hetmem.study.kernel_form`. Those that name a model instead of shapes
need its dimensions, from a file or the model catalogue. Other columns serve to select rows. Rows are never
repaired: a bad one is refused with its number.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.study.kernel_form import FORMS, Dimensions, Form, Points

if TYPE_CHECKING:
    import pandas as pd

Array: TypeAlias = NDArray[Any]

_COUNTS_OR_ZERO = {"kv_cache_size", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode"}
_TEXTS = {"model", "kernel", "layer"}
_CLAUSE = re.compile(r"\s*(\w+)(?:%(\d+))?\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*")
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@frozen(eq=False)
class KernelTable:
    """A checked table: ``frame`` holds the rows, ``form`` the name of the form."""

    path: str
    form: str
    frame: "pd.DataFrame"
    _shapes: Mapping[str, Dimensions]

    def select(self, clauses: Iterable[str], keep: bool = True) -> "KernelTable":
        """Return the rows that satisfy every clause, or with ``keep=False`` the others.

        A clause is ``column=value``, with ``>= <= > < !=`` as well, a list ``n_kv=1,2,4``, or a remainder
        ``batch%8=4``.

        Raises
        ------
        ConfigError
            When a clause cannot be read or names a column that the table lacks.
        """
        mask = np.ones(len(self.frame), dtype=bool)
        for clause in clauses:
            mask &= _matches(self.frame, clause, self.path)
        return KernelTable(self.path, self.form, self.frame[mask if keep else ~mask], self._shapes)

    def points(self) -> list[Points]:
        """Return the points by kernel class, one :class:`Points` each.

        Raises
        ------
        ConfigError
            When the rows mix several GPUs, or a model's dimensions are unknown.
        """
        if "gpu" in self.frame:
            gpus = sorted(set(self.frame["gpu"]))
            if len(gpus) > 1:
                names = ", ".join(gpus)
                raise ConfigError(self.path, f"rows of several GPUs ({names}): select one, gpu={gpus[0]}")
        form = next(form for form in FORMS if form.name == self.form)
        return [found for found in form.points(self.frame, self._dimensions) if len(found)]

    def _dimensions(self, model: str) -> Dimensions:
        if model in self._shapes:
            return self._shapes[model]
        try:
            entry = catalog.entry("models", _published_as(model))
        except UnknownNameError as error:
            raise ConfigError(self.path, f"{error}; give its dimensions in a shapes file") from None
        return _dimensions(entry.values(), f"models.{entry.id}")


def read(path: str | Path, shapes: str | Path | None = None) -> KernelTable:
    """Return the table at ``path`` (CSV, also gzip), recognised and checked.

    Parameters
    ----------
    path
        The measured table.
    shapes
        A CSV with one model a row: ``model, d_model, d_ff``, ``n_heads`` or ``n_head``, ``n_kv_heads`` or
        ``n_kv_head``, ``gated_ffn`` or ``gated``, optionally ``head_dim`` and ``vocab``.

    Raises
    ------
    ConfigError
        When the form is unknown, or a row holds a missing, non-numeric, infinite or non-positive value.
    """
    frame = _load(path)
    form = _recognise(frame, str(path))
    for column in (*form.columns, *form.times):
        if column not in _TEXTS:
            frame[column] = _numbers(frame[column], column, form, str(path))
        elif (blank := frame[column].str.strip() == "").any():
            raise _bad_row(path, int(np.argmax(blank)), column, "is empty")
    known = {} if shapes is None else _read_shapes(shapes)
    return KernelTable(str(path), form.name, frame, known)


def _load(path: str | Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(str(path), f"cannot be read as CSV: {error}") from None
    if frame.empty:
        raise ConfigError(str(path), "has no rows")
    return frame


def _recognise(frame: "pd.DataFrame", path: str) -> Form:
    """Return the form whose columns are all there; else say what the nearest one lacks."""

    def missing(form: Form) -> list[str]:
        return [column for column in (*form.columns, *form.times) if column not in frame.columns]

    for form in FORMS:
        if not missing(form):
            return form
    nearest = min(FORMS, key=lambda form: len(missing(form)) / len((*form.columns, *form.times)))
    lacks = ", ".join(missing(nearest))
    raise ConfigError(path, f"columns fit no known form; the nearest, {nearest.name}, also needs: {lacks}")


def _numbers(cells: "pd.Series[str]", column: str, form: Form, path: str) -> Array:
    """Return a column as numbers, refusing the first bad cell by its row."""
    import pandas as pd

    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float)
    is_time = column in form.times
    zero_allowed = form.rounds_to_zero if is_time else column in _COUNTS_OR_ZERO
    tests = [("must be a number", ~np.isfinite(values)), ("must not be negative", values < 0)]
    if not zero_allowed:
        tests.append(("must be positive", values == 0))
    if not is_time:
        tests.append(("must be a whole number", values != np.floor(values)))
    for problem, bad in tests:
        if bad.any():
            row = int(np.argmax(bad))
            raise _bad_row(path, row, column, f"{problem}, not {cells.iloc[row]!r}")
    return values


def _bad_row(path: str | Path, index: int, column: str, problem: str) -> ConfigError:
    return ConfigError(f"{path}: row {index + 1} (line {index + 2}), {column}", problem)


def _matches(frame: "pd.DataFrame", clause: str, path: str) -> Array:
    import pandas as pd

    found = _CLAUSE.fullmatch(clause)
    if found is None:
        raise ConfigError("where", f"{clause!r} is not a condition such as gpu=a100, batch%8=4 or n>=1024")
    column, modulus, sign, text = found.groups()
    if column not in frame.columns:
        raise ConfigError("where", f"{path} has no column {column!r}; it has {', '.join(frame.columns)}")
    values, options = frame[column], [option.strip() for option in text.split(",")]
    numeric = pd.api.types.is_numeric_dtype(values)
    if not numeric and modulus is None and sign in ("=", "!="):
        chosen = np.isin(values.to_numpy(dtype=str), options)
    else:
        try:
            numbers = values.to_numpy(dtype=float)
            wanted = [float(option) for option in options]
        except ValueError:
            raise ConfigError("where", f"{clause!r} compares numbers, but finds text") from None
        if modulus is not None:
            numbers = numbers % int(modulus)
        chosen = _COMPARE[sign](numbers, wanted[0]) if sign in _COMPARE else np.isin(numbers, wanted)
    return np.asarray(~chosen if sign == "!=" else chosen, dtype=bool)


def _published_as(model: str) -> str:
    """Return the longest catalogue id that ``model`` starts with: a tuned variant has its base's shapes."""
    wanted = catalog.normalize(model)
    known = [name for name in catalog.ids("models") if wanted.startswith(catalog.normalize(name))]
    return max(known, key=len, default=model)


def _read_shapes(path: str | Path) -> dict[str, Dimensions]:
    frame = _load(path)
    if "model" not in frame:
        raise ConfigError(str(path), "a shapes file needs the column 'model'")
    rows = frame.to_dict("records")
    return {str(row["model"]): _dimensions(row, f"{path}: {row['model']}") for row in rows}


def _dimensions(row: Mapping[Any, Any], where: str) -> Dimensions:
    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            if row.get(name) not in (None, ""):
                try:
                    return int(row[name])
                except ValueError:
                    problem = f"must be a whole number, not {row[name]!r}"
                    raise ConfigError(f"{where}.{name}", problem) from None
        if default is None:
            raise ConfigError(f"{where}.{names[0]}", "required, but missing")
        return default

    heads, d_model = number("n_heads", "n_head"), number("d_model")
    return Dimensions(
        d_model,
        heads,
        number("n_kv_heads", "n_kv_head"),
        number("head_dim", default=d_model // heads),
        number("d_ff"),
        bool(number("gated_ffn", "gated")),
        number("vocab", "vocab_profiled", default=0),
    )
