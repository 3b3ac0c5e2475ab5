"""Readers of request files: CSV and JSON lines, plain or gzip-compressed, in any order of arrival.

Read are the columns of the common public traces, told apart by their names:

============== ======================================== =====================================================
length         ``in_tokens``, ``out_tokens``            length tables, measured runs
..             ``ContextTokens``, ``GeneratedTokens``   Azure LLM inference trace (Patel et al., ISCA'24)
..             ``input_length``, ``output_length``      Mooncake trace (Qin et al., FAST'25)
arrival        ``arrival_s``, ``arrival_ms``            numbers, from any origin
..             ``TIMESTAMP``                            date and time
..             ``timestamp``                            milliseconds, as in the Mooncake trace
prefix blocks  ``hash_ids``                             a JSON list, or whole numbers apart by spaces
============== ======================================== =====================================================

Other columns are ignored. A run begins with the first request: the earliest arrival of a file becomes zero and the
gaps stay, so that a trace cut out of a longer one, or stamped with the time of day, means the same. Times are read as
decimals, so seconds and milliseconds of one trace give the same ticks. Nothing is guessed: a line that does not fit is
refused with its number and content.
"""

import csv
import gzip
import json
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, frozen

from hetmem.errors import WorkloadError, suggestion
from hetmem.units import MAX_PS, PS_PER_S
from hetmem.workload.request import MAX_TOKENS, RequestTable

_PROMPT = ("in_tokens", "ContextTokens", "input_length")
_OUTPUT = ("out_tokens", "GeneratedTokens", "output_length")
_DATE = "TIMESTAMP"
_PS_PER_UNIT = {"arrival_s": PS_PER_S, "arrival_ms": PS_PER_S // 1000, "timestamp": PS_PER_S // 1000}
_PREFIX = "hash_ids"
_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:?\d\d)?")
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_PS = MAX_PS // 2  # the earliest and the latest of a file must fit in one column
_LARGEST_NUMBER = 10**13  # milliseconds until the year 2286; decimals of 28 digits keep its ticks
_SHOWN = 120  # characters of a bad line that an error repeats


@frozen
class TraceFile:
    """What a file held: ``format`` is ``csv`` or ``jsonl``; without ``has_arrivals`` all arrive at zero."""

    format: str
    has_arrivals: bool
    table: RequestTable


class _BadLineError(Exception):
    """What is wrong with the line in hand; never leaves this module."""


@frozen
class _Fields:
    """The names under which a file keeps what is read."""

    prompt: str
    output: str
    arrival: str | None


@define
class _Rows:
    """The columns as they grow, eight bytes a cell."""

    arrival_ps: "array[int]"
    prompt: "array[int]"
    output: "array[int]"
    prefixes: list[tuple[int, ...]]
    origin_ps: int | None = None

    def add(self, fields: _Fields, cells: dict[str, Any]) -> None:
        prompt, output = _tokens(fields.prompt, cells), _tokens(fields.output, cells)
        arrival_ps = 0 if fields.arrival is None else self._arrival_ps(fields.arrival, cells)
        prefix = _prefix(cells.get(_PREFIX))
        self.prompt.append(prompt)
        self.output.append(output)
        self.arrival_ps.append(arrival_ps)
        if prefix and not self.prefixes:
            self.prefixes.extend([()] * (len(self.prompt) - 1))  # hashes begin here: none before
        if prefix or self.prefixes:
            self.prefixes.append(prefix)

    def _arrival_ps(self, name: str, cells: dict[str, Any]) -> int:
        cell = _cell(name, cells)
        since_ps = _date_ps(cell) if name == _DATE else _number_ps(name, cell)
        if self.origin_ps is None:
            self.origin_ps = since_ps
        time_ps = since_ps - self.origin_ps  # below zero where a later line is earlier
        if abs(time_ps) > _LATEST_PS:
            days = _LATEST_PS // PS_PER_S // 86_400
            raise _BadLineError(f"{name}: {_quoted(cell)} is more than {days} days from the first line's")
        return time_ps

    def table(self) -> RequestTable:
        arrival = np.array(self.arrival_ps, dtype=np.int64)
        if self.origin_ps is not None:
            arrival -= arrival.min()
        return RequestTable.build(
            arrival, np.array(self.prompt), np.array(self.output), self.prefixes if self.prefixes else None
        )


def read_trace(path: str | Path) -> TraceFile:
    """Return the requests of a CSV or JSON-lines file, ``.gz`` or not.

    The content decides: a first line that begins with ``{``, or a name that ends in ``.jsonl``, means JSON
    lines. Zero lengths become one token; empty lines are skipped.

    Raises
    ------
    WorkloadError
        When the file cannot be read, is empty, lacks a column, or holds a line that does not fit.
    """
    path = Path(path)
    rows = _Rows(array("q"), array("q"), array("q"), [])
    with _lines(path) as lines:
        number, line = next(lines, (0, ""))
        if not line:
            raise WorkloadError(str(path), "the file is empty")
        name = path.name.lower().removesuffix(".gz")
        is_json = line.startswith("{") or name.endswith((".jsonl", ".json"))
        try:
            header = list(_record(line)) if is_json else [name.strip() for name in _split(line)]
            fields = _find_fields(header)
            if is_json:
                rows.add(fields, _record(line))
            for number, line in lines:  # noqa: B007 (the error below names it)
                rows.add(fields, _record(line) if is_json else _cells(header, line))
        except _BadLineError as bad:
            shown = line if len(line) <= _SHOWN else line[:_SHOWN] + "…"
            raise WorkloadError(f"{path}, line {number}", f"{shown!r}: {bad}") from None
    if not rows.prompt:
        raise WorkloadError(str(path), "the file has a header but no requests")
    return TraceFile("jsonl" if is_json else "csv", fields.arrival is not None, rows.table())


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[tuple[int, str]]]:
    """Open ``path`` and give its lines that are not blank, numbered from one."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            text = TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8-sig")
            numbered = ((number, line.strip()) for number, line in enumerate(text, 1))
            yield (pair for pair in numbered if pair[1])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WorkloadError(str(path), f"damaged gzip file: {error}") from None
    except UnicodeDecodeError:
        raise WorkloadError(str(path), "expected text in UTF-8") from None
    except OSError as error:
        raise WorkloadError(str(path), f"cannot be read: {error.strerror}") from None


def _cells(header: list[str], line: str) -> dict[str, str]:
    cells = _split(line)
    if len(cells) != len(header):
        raise _BadLineError(f"expected {len(header)} fields as in the header, found {len(cells)}")
    return dict(zip(header, cells, strict=True))


def _split(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise _BadLineError(f"{error}") from None


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_float=Decimal, parse_constant=Decimal)
    except (ValueError, RecursionError):
        raise _BadLineError("expected one JSON object per line") from None
    if not isinstance(record, dict):
        raise _BadLineError("expected one JSON object per line")
    return record


def _find_fields(names: Sequence[str]) -> _Fields:
    """Return which of ``names`` hold what is read; a near miss of an arrival column is not ignored."""
    arrival = _one_of("arrival", (*_PS_PER_UNIT, _DATE), names)
    if arrival is None:
        folded = {name.lower(): name for name in names}
        for known in ("arrival_s", "arrival_ms", _DATE):
            if near := get_close_matches(known.lower(), folded, n=1, cutoff=0.7):
                raise _BadLineError(f"unknown column {folded[near[0]]!r}; did you mean {known!r}?")
    prompt, output = _one_of("prompt", _PROMPT, names), _one_of("output", _OUTPUT, names)
    free = [name for name in names if name not in (prompt, output, arrival, _PREFIX)]
    if prompt is None:
        raise _BadLineError(f"no column {_PROMPT[0]!r}{suggestion(_PROMPT[0], free)}")
    if output is None:
        raise _BadLineError(f"no column {_OUTPUT[0]!r}{suggestion(_OUTPUT[0], free)}")
    return _Fields(prompt, output, arrival)


def _one_of(what: str, known: Sequence[str], names: Sequence[str]) -> str | None:
    found = [name for name in names if name in known]
    if len(found) > 1:
        raise _BadLineError(f"more than one {what} column: {', '.join(found)}")
    return found[0] if found else None


def _cell(name: str, cells: dict[str, Any]) -> Any:
    if name not in cells:
        raise _BadLineError(f"no field {name!r}{suggestion(name, cells)}")
    return cells[name]


def _tokens(name: str, cells: dict[str, Any]) -> int:
    cell = _cell(name, cells)
    if isinstance(cell, str):
        value = int(cell.split(".")[0]) if _WHOLE.fullmatch(cell.strip()) and len(cell) < 20 else None
    elif isinstance(cell, int) and not isinstance(cell, bool):
        value = cell
    else:
        value = None
    if value is None or not 0 <= value <= MAX_TOKENS:
        raise _BadLineError(f"{name}: expected a number of tokens from 0 to {MAX_TOKENS}, not {_quoted(cell)}")
    return value


def _number_ps(name: str, cell: Any) -> int:
    try:
        time = Decimal(cell) if isinstance(cell, int | str | Decimal) and not isinstance(cell, bool) else None
    except InvalidOperation:
        time = None
    if time is None or not time.is_finite() or time < 0:
        unit = "seconds" if _PS_PER_UNIT[name] == PS_PER_S else "milliseconds"
        raise _BadLineError(f"{name}: expected a number of {unit} from 0, not {_quoted(cell)}")
    if time > _LARGEST_NUMBER:
        raise _BadLineError(f"{name}: {_quoted(cell)} is too large for a time")
    return int((time * _PS_PER_UNIT[name]).to_integral_value())


def _date_ps(cell: Any) -> int:
    match = _DATE_TIME.fullmatch(cell.strip()) if isinstance(cell, str) else None
    try:
        if match is None:
            raise ValueError
        zone = "+00:00" if match[3] in (None, "Z") else match[3]
        since = datetime.fromisoformat(match[1] + zone) - _EPOCH
    except ValueError:
        raise _BadLineError(
            f"{_DATE}: expected a date and time such as '2023-11-16 18:17:03.9799600', not {_quoted(cell)} "
            "(a column of numbers is named arrival_s or arrival_ms)"
        ) from None
    # datetime keeps microseconds; the trace has a digit more
    fraction_ps = int(Decimal(match[2] or 0) * PS_PER_S)
    return (since.days * 86_400 + since.seconds) * PS_PER_S + fraction_ps


def _prefix(cell: Any) -> tuple[int, ...]:
    if cell is None:
        return ()
    items = re.split(r"[\s,;]+", cell.strip().strip("[]").strip()) if isinstance(cell, str) else cell
    if items == [""]:
        return ()
    try:
        if not isinstance(items, list) or any(not isinstance(item, int | str) for item in items):
            raise ValueError
        return tuple(int(item) for item in items)
    except ValueError:
        raise _BadLineError(f"{_PREFIX}: expected a list of whole numbers, not {_quoted(cell)}") from None


def _quoted(cell: Any) -> str:
    text = repr(cell) if isinstance(cell, str) else json.dumps(cell, default=str)
    return text if len(text) <= 40 else text[:40] + "…"
