"""Column tables that spool to a file."""

import pickle

import numpy as np
import pytest

from hetmem.errors import RangeError
from hetmem.monitor import table as table_module
from hetmem.monitor.table import CHUNK_ROWS, Table

COLUMNS = {"id": "q", "share": "d", "what": "s"}
ROWS = [(i, i / 7, ("a", "bb", "ccc")[i % 3]) for i in range(25)]


@pytest.fixture(params=[0, 1, 4, 8, 9, 25])
def filled(request, monkeypatch):
    """Return a table of that many rows, spooled every four, and the rows."""
    monkeypatch.setattr(table_module, "CHUNK_ROWS", 4)
    table = Table(COLUMNS)
    for row in ROWS[: request.param]:
        table.append(row)
    return table, ROWS[: request.param]


def test_columns_come_back_in_full_and_in_order(filled):
    table, rows = filled
    assert len(table) == len(rows)
    for index, name in enumerate(COLUMNS):
        assert table.column(name).tolist() == [row[index] for row in rows]
    assert table.column("id").dtype == np.int64
    assert table.column("share").dtype == np.float64
    assert table.column("what").dtype == object


def test_reading_does_not_disturb_writing(filled):
    table, rows = filled
    table.column("id")
    table.append((99, 0.5, "new"))
    assert table.column("id").tolist() == [*(row[0] for row in rows), 99]
    assert table.column("what").tolist()[-1] == "new"


def test_frames_and_files_hold_the_same(filled, tmp_path):
    import pandas as pd

    table, rows = filled
    frame = table.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert frame.values.tolist() == [list(row) for row in rows]
    table.write_parquet(tmp_path / "table.parquet")
    read = pd.read_parquet(tmp_path / "table.parquet")
    assert read.values.tolist() == [list(row) for row in rows]
    arrow = table.to_arrow()
    assert arrow.to_pylist() == [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_an_empty_table_keeps_its_types(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = Table(COLUMNS)
    expected = pa.schema([("id", pa.int64()), ("share", pa.float64()), ("what", pa.string())])
    assert table.to_arrow().schema == expected
    table.write_parquet(tmp_path / "empty.parquet")
    assert pq.read_schema(tmp_path / "empty.parquet") == expected


def test_integers_are_exact_beyond_the_range_of_floats():
    table = Table({"ps": "q"})
    table.append((2**62 + 1,))
    assert table.column("ps").tolist() == [2**62 + 1]


def test_an_unknown_column_is_an_error():
    with pytest.raises(KeyError, match="nothing"):
        Table(COLUMNS).column("nothing")


@pytest.mark.parametrize("row", [(1, 2.0), (1, 2.0, "a", 4)])
def test_a_row_of_another_width_is_refused(row):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Table(COLUMNS).append(row)


@pytest.mark.parametrize(
    ("row", "problem"), [((2**63, 0), "end_ps: more than the 106 days"), ((0, 2**70), "fj: more than 64 bits")]
)
def test_a_value_beyond_a_column_names_it(row, problem):
    table = Table({"end_ps": "q", "fj": "q"})
    table.append(row)
    with pytest.raises(RangeError, match=problem):
        table.column("fj")


@pytest.mark.parametrize("rows", [0, 5, CHUNK_ROWS + 3, 2 * CHUNK_ROWS])
def test_a_table_goes_to_another_process_whole(rows):
    table = Table({"k": "q", "half": "d", "name": "s"})
    for k in range(rows):
        table.append((k, k / 2, f"n{k % 3}"))
    other = pickle.loads(pickle.dumps(table))
    assert other.to_arrow() == table.to_arrow()
    table.append((7, 7.0, "new"))
    other.append((7, 7.0, "new"))
    assert len(other) == rows + 1
    assert other.to_arrow() == table.to_arrow()
