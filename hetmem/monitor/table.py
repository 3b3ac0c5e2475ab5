"""Column tables that grow by rows and keep little of them in memory.

A row costs an append per column. When a chunk is full it goes to an unnamed temporary file, so that a run of
any length holds one chunk per table; reading a column brings that column back.
"""

import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hetmem.errors import RangeError
from hetmem.units import MAX_PS_WORDS

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CHUNK_ROWS = 8192
_LOOSE_ROWS = 512  # rows kept as they come, before they are taken apart into columns all at once


class Table:
    """A table of numeric and text columns.

    Parameters
    ----------
    columns
        Type code by name: ``"q"`` for int64, ``"d"`` for float64, ``"s"`` for text from a small vocabulary.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = dict(columns)
        self._open = [array("d" if code == "d" else "q") for code in columns.values()]
        self._words: dict[str, dict[str, int]] = {name: {} for name, code in columns.items() if code == "s"}
        self._text = [name if code == "s" else None for name, code in columns.items()]
        self._spool: BinaryIO | None = None
        self._spooled = 0
        self._loose: list[Sequence[Any]] = []
        self._room = _LOOSE_ROWS

    def __len__(self) -> int:
        return self._spooled + len(self._open[0]) + len(self._loose)

    def append(self, row: Sequence[Any]) -> None:
        """Append one row, its values in the order of the columns.

        Rows are taken apart together, at the latest when a column is read, which raises :class:`RangeError` for a
        value that does not fit in 64 bits, naming its column.
        """
        if len(row) != len(self._open):
            longer = "longer" if len(row) > len(self._open) else "shorter"
            raise ValueError(f"a row of {len(row)} values is {longer} than the {len(self._open)} columns")
        self._loose.append(row)
        if len(self._loose) >= self._room:
            self._settle()

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column as an array; text as an object array.

        Raises
        ------
        KeyError
            When there is no such column.
        """
        self._settle()
        index = list(self.columns).index(name) if name in self.columns else -1
        if index < 0:
            raise KeyError(name)
        dtype = np.float64 if self.columns[name] == "d" else np.int64
        parts = [np.frombuffer(self._read(chunk, index), dtype) for chunk in range(self._spooled // CHUNK_ROWS)]
        values = np.concatenate([*parts, np.asarray(self._open[index], dtype)])
        if name in self._words:
            return np.asarray(list(self._words[name]), object)[values] if len(values) else values.astype(object)
        return values

    def to_arrow(self) -> "pa.Table":
        """Return the table as a pyarrow table."""
        import pyarrow as pa

        return pa.table([self.column(name) for name in self.columns], schema=self._schema())

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table as a pandas data frame."""
        import pandas as pd

        return pd.DataFrame({name: self.column(name) for name in self.columns})

    def write_parquet(self, path: Path) -> None:
        """Write the table to ``path``, a chunk at a time, compressed with zstd."""
        import pyarrow.parquet as pq

        self._settle()
        schema = self._schema()
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for chunk in range(self._spooled // CHUNK_ROWS):
                rows = [np.frombuffer(self._read(chunk, i), c.typecode) for i, c in enumerate(self._open)]
                writer.write_table(self._arrow_chunk(rows, schema))
            if len(self._open[0]) or not self._spooled:
                writer.write_table(self._arrow_chunk([np.asarray(c) for c in self._open], schema))

    def _schema(self) -> "pa.Schema":
        import pyarrow as pa

        kinds = {"q": pa.int64(), "d": pa.float64(), "s": pa.string()}
        return pa.schema([(name, kinds[code]) for name, code in self.columns.items()])

    def _arrow_chunk(self, arrays: list[npt.NDArray[Any]], schema: Any) -> "pa.Table":
        import pyarrow as pa

        filled = []
        for values, text, kind in zip(arrays, self._text, schema.types, strict=True):
            if text is None:
                filled.append(pa.array(values, kind))
            else:
                words = list(self._words[text])
                filled.append(pa.array([words[code] for code in values], kind))
        return pa.table(filled, schema=schema)

    def _settle(self) -> None:
        """Take the loose rows apart; send a chunk to the file when it is full."""
        if self._loose:
            for column, values in zip(self._open, self._columns_of(self._loose), strict=True):
                column.extend(values)
            self._loose.clear()
        if len(self._open[0]) == CHUNK_ROWS:
            self._flush()
        self._room = min(_LOOSE_ROWS, CHUNK_ROWS - len(self._open[0]))

    def _columns_of(self, rows: list[Sequence[Any]]) -> "list[array[Any]]":
        taken = []
        for name, column, items in zip(self.columns, self._open, zip(*rows, strict=True), strict=True):
            words = self._words.get(name)
            codes = items if words is None else [words.setdefault(item, len(words)) for item in items]
            try:
                taken.append(array(column.typecode, codes))
            except OverflowError:
                raise RangeError(name, MAX_PS_WORDS if name.endswith("_ps") else "64 bits hold") from None
        return taken

    def _flush(self) -> None:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the table
        self._spool.seek(0, 2)
        for column in self._open:
            self._spool.write(column.tobytes())
            del column[:]
        self._spooled += CHUNK_ROWS

    def _read(self, chunk: int, index: int) -> bytes:
        assert self._spool is not None
        self._spool.seek((chunk * len(self._open) + index) * CHUNK_ROWS * 8)
        return self._spool.read(CHUNK_ROWS * 8)

    def __getstate__(self) -> dict[str, Any]:
        """Return the table without its file, for another process."""
        self._settle()
        chunks = [self._read(chunk, i) for chunk in range(self._spooled // CHUNK_ROWS) for i in range(len(self._open))]
        return self.__dict__ | {"_spool": None, "_chunks": chunks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        chunks = state.pop("_chunks")
        self.__dict__.update(state)
        if chunks:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the table
            self._spool.writelines(chunks)

    def __del__(self) -> None:
        spool = getattr(self, "_spool", None)
        if spool is not None:
            spool.close()
