"""Readers: the forms they accept, and the file, line and content they name when they do not."""

import gzip
import json

import pytest

from hetmem.errors import ConfigError, WorkloadError
from hetmem.units import PS_PER_S
from hetmem.workload import LengthTable, RequestTable, Trace, arrival_times_ps, from_file, read_trace, table

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:03.0000001,3180,8
2023-11-16 18:17:05,110,0
"""
MOONCAKE = [
    {"timestamp": 3000, "input_length": 1100, "output_length": 20, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 600, "output_length": 52, "hash_ids": [0, 5]},
    {"timestamp": 3000, "input_length": 7, "output_length": 1, "hash_ids": []},
]


@pytest.fixture
def write(tmp_path):
    def write(text, name="trace.csv"):
        path = tmp_path / name
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def _jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_columns_by_name_in_any_order_and_others_ignored(write):
    path = write("gpu,out_tokens,arrival_s,in_tokens\nx,3,0.5,10\ny,4,0.25,20\n")
    trace = read_trace(path)
    assert (trace.format, trace.has_arrivals) == ("csv", True)
    assert trace.table == RequestTable.build([PS_PER_S // 4, 0], [10, 20], [3, 4])


def test_the_azure_header_counts_from_the_earliest_to_a_tenth_of_a_microsecond(write):
    found = read_trace(write(AZURE)).table
    assert found.arrival_ps.tolist() == [0, 979_959_900_000, 1_999_999_900_000]
    assert found.prompt_tokens.tolist() == [3180, 4808, 110]
    assert found.output_tokens.tolist() == [8, 10, 1]
    assert found.id.tolist() == [1, 0, 2]


def test_dates_with_a_zone(write):
    header = AZURE.splitlines()[0]
    text = f"{header}\n2024-05-10 00:00:01+00:00,1,1\n2024-05-10T02:00:00.5+02:00,1,1\n"
    assert read_trace(write(text)).table.arrival_ps.tolist() == [0, PS_PER_S // 2]


def test_mooncake_lines(write):
    trace = read_trace(write(_jsonl(MOONCAKE), "mooncake.jsonl"))
    assert trace.format == "jsonl"
    assert trace.table.arrival_ps.tolist() == [0, 3 * PS_PER_S, 3 * PS_PER_S]
    assert trace.table.id.tolist() == [1, 0, 2]
    assert trace.table.prompt_tokens.tolist() == [600, 1100, 7]
    assert trace.table.output_tokens.tolist() == [52, 20, 1]
    assert trace.table.prefix_blocks == ((0, 5), (0, 1, 2), ())


def test_prefix_blocks_of_a_csv_and_where_they_begin_late(write):
    text = 'in_tokens,out_tokens,hash_ids\n9,1,\n600,2,4 5\n600,2,"[4, 6]"\n'
    assert read_trace(write(text)).table.prefix_blocks == ((), (4, 5), (4, 6))
    without = [{"in_tokens": 1, "out_tokens": 2, "arrival_ms": 1.5}]
    assert read_trace(write(_jsonl(without), "a.jsonl")).table.prefix_blocks is None


def test_seconds_and_milliseconds_give_the_same_ticks(write):
    seconds = read_trace(write("arrival_s,in_tokens,out_tokens\n4.3146,1,1\n0.1,1,1\n4.541900000001,1,1\n"))
    millis = read_trace(write("arrival_ms,in_tokens,out_tokens\n4314.6,1,1\n1e2,1,1\n4541.900000001,1,1\n"))
    assert seconds == millis
    assert seconds.table.arrival_ps.tolist() == [0, 4_214_600_000_000, 4_441_900_000_001]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.txt", "a.jsonl", "a.jsonl.gz", "a"])
def test_compression_and_form_are_recognised(write, name):
    text = _jsonl([{"in_tokens": 4, "out_tokens": 5}]) if "jsonl" in name else "in_tokens,out_tokens\n4,5\n"
    assert from_file(write(text, name)).requests(max_context=None, seed=0) == RequestTable.build([0], [4], [5])


def test_a_byte_order_mark_windows_line_ends_blank_lines_and_whole_floats(write):
    text = "\ufeffin_tokens, out_tokens\r\n\r\n4.0, 5\r\n   \r\n"
    assert read_trace(write(text)).table == RequestTable.build([0], [4], [5])


def test_a_burst_keeps_the_order_of_the_file(write):
    text = "arrival_s,in_tokens,out_tokens\n" + "".join(f"1,{i + 1},1\n" for i in range(500)) + "0,999,1\n"
    found = read_trace(write(text)).table
    assert found.id.tolist() == [500, *range(500)]
    assert found.prompt_tokens.tolist() == [999, *range(1, 501)]


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("arrival_s", ("3600.25", "3600", "3602")),
        ("arrival_ms", ("1700158623250", "1700158623000", "1700158625000")),
        ("TIMESTAMP", ("2023-11-16 18:17:03.25", "2023-11-16 18:17:03", "2023-11-16 18:17:05")),
    ],
)
def test_arrivals_count_from_the_first_request_and_gaps_stay(write, name, times):
    text = f"{name},in_tokens,out_tokens\n" + "".join(f"{time},7,9\n" for time in times)
    assert read_trace(write(text)).table.arrival_ps.tolist() == [0, 250 * 10**9, 2 * 10**12]


HEAD = "arrival_s,in_tokens,out_tokens\n0.5,7,9\n"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1.5,abc,4", "in_tokens: expected a number of tokens from 0 to 2147483647, not 'abc'"),
        ("1.5,7,-4", "out_tokens: expected a number of tokens from 0 to 2147483647, not '-4'"),
        ("1.5,-7,4", "in_tokens: expected a number of tokens"),
        ("1.5,7.5,4", "in_tokens: expected a number of tokens"),
        ("1.5,,4", "in_tokens: expected a number of tokens"),
        ("1.5,99999999999,4", "in_tokens: expected a number of tokens"),
        ("-1.5,7,4", "arrival_s: expected a number of seconds from 0, not '-1.5'"),
        ("nan,7,4", "arrival_s: expected a number of seconds from 0, not 'nan'"),
        ("inf,7,4", "arrival_s: expected a number of seconds from 0"),
        ("soon,7,4", "arrival_s: expected a number of seconds from 0"),
        ("1700158623,7,4", "arrival_s: '1700158623' is more than 53 days from the first line's"),
        ("1e999999,7,4", "arrival_s: '1e999999' is too large for a time"),
        ("1.5,7", "expected 3 fields as in the header, found 2"),
        ("1.5,7,4,9", "expected 3 fields as in the header, found 4"),
        ('1.5,"7,4', "unexpected end of data"),
    ],
)
def test_a_malformed_line_is_named_with_its_number_and_content(write, line, problem):
    path = write(HEAD + "\n" + line + "\n1,1,1\n")
    with pytest.raises(WorkloadError) as caught:
        from_file(path)
    assert str(caught.value).startswith(f"{path}, line 4: {line!r}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_long_line_is_shown_in_part(write):
    with pytest.raises(WorkloadError, match=r"line 3: '1,x{118}…': in_tokens: .*, not 'x{39}…$"):
        from_file(write(HEAD + "1," + "x" * 5000 + ",3\n"))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ('{"timestamp": 1', "expected one JSON object per line"),
        ("[1, 2]", "expected one JSON object per line"),
        ("null", "expected one JSON object per line"),
        ("[" * 100_000, "expected one JSON object per line"),
        ('{"timestamp": 1, "input_length": 3}', "no field 'output_length'"),
        ('{"timestamp": 1, "input_length": 3.5, "output_length": 2}', "input_length: expected a number"),
        ('{"timestamp": 1, "input_length": true, "output_length": 2}', "input_length: expected a number"),
        ('{"timestamp": 1, "input_length": -3, "output_length": 2}', "input_length: expected a number"),
        (
            '{"timestamp": -1, "input_length": 3, "output_length": 2}',
            "timestamp: expected a number of mill",
        ),
        (
            '{"timestamp": NaN, "input_length": 3, "output_length": 2}',
            "timestamp: expected a number of mill",
        ),
        (
            '{"timestamp": [1], "input_length": 3, "output_length": 2}',
            "timestamp: expected a number of mill",
        ),
        (
            '{"timestamp": true, "input_length": 3, "output_length": 2}',
            "timestamp: expected a number of mill",
        ),
        (
            '{"timestamp": 1, "input_length": 3, "output_length": 2, "hash_ids": 7}',
            "hash_ids: expected a list of whole numbers, not 7",
        ),
        (
            '{"timestamp": 1, "input_length": 3, "output_length": 2, "hash_ids": ["x"]}',
            "hash_ids: expected a list of whole numbers",
        ),
        (
            '{"timestamp": 1, "input_length": 3, "output_length": 2, "hash_ids": [1.5]}',
            "hash_ids: expected a list of whole numbers",
        ),
    ],
)
def test_a_malformed_record_is_named_with_its_number_and_content(write, record, problem):
    path = write(_jsonl(MOONCAKE) + record + "\n", "trace.jsonl")
    with pytest.raises(WorkloadError) as caught:
        from_file(path)
    shown = record if len(record) <= 120 else record[:120] + "…"
    assert str(caught.value).startswith(f"{path}, line 4: {shown!r}: {problem}")


@pytest.mark.parametrize("cell", ["12.5", "2023-13-01 00:00:00", "16/11/2023 18:17", ""])
def test_a_bad_date_says_what_was_expected(write, cell):
    with pytest.raises(WorkloadError, match=r"line 5: .*TIMESTAMP: expected a date and time such as .*arrival_ms"):
        from_file(write(AZURE + f"{cell},1,1\n"))


def test_dates_too_far_apart_are_refused(write):
    with pytest.raises(WorkloadError, match=r"line 5: .*'2024-11-16 18:17:03' is more than 53 days from the first"):
        from_file(write(AZURE + "2024-11-16 18:17:03,1,1\n"))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("arrival_s,in_token,out_tokens", "no column 'in_tokens'; did you mean 'in_token'?"),
        ("arrival_s,in_tokens,out_toks", "no column 'out_tokens'; did you mean 'out_toks'?"),
        ("category,in_tokens,turns", "no column 'out_tokens'; known: category, turns"),
        ("in_tokens", "no column 'out_tokens'"),
        ("1.5,7,4", "no column 'in_tokens'; known: 1.5, 7, 4"),
        ("arival_s,in_tokens,out_tokens", "unknown column 'arival_s'; did you mean 'arrival_s'?"),
        ("arrival_time,in_tokens,out_tokens", "unknown column 'arrival_time'; did you mean 'arrival_s'?"),
        ("Timestamp,ContextTokens,GeneratedTokens", "unknown column 'Timestamp'; did you mean 'TIMESTAMP'?"),
        ("arrival_s,arrival_ms,in_tokens,out_tokens", "more than one arrival column: arrival_s, arrival_ms"),
        ("in_tokens,in_tokens,out_tokens", "more than one prompt column: in_tokens, in_tokens"),
        ("in_tokens,out_tokens,output_length", "more than one output column: out_tokens, output_length"),
    ],
)
def test_a_header_that_does_not_fit(write, header, problem):
    path = write(header + "\n1,2,3\n")
    with pytest.raises(WorkloadError) as caught:
        from_file(path)
    assert str(caught.value) == f"{path}, line 1: {header!r}: {problem}"


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("", "a.csv", "the file is empty"),
        ("\n \n", "a.csv", "the file is empty"),
        ("", "a.jsonl.gz", "the file is empty"),
        ("in_tokens,out_tokens\n", "a.csv", "the file has a header but no requests"),
        (b"in_tokens,out_tokens\n\xff\xfe,1\n", "a.csv", "expected text in UTF-8"),
        (gzip.compress(b"in_tokens,out_tokens\n1,2\n", mtime=0)[:-9], "a.csv", "damaged gzip file"),
        (b"\x1f\x8bnothing of the kind", "a.csv", "damaged gzip file"),
    ],
    ids=["empty", "blank", "empty-gz", "header-only", "not-utf-8", "cut-gz", "not-gz"],
)
def test_a_file_without_requests_or_damaged(write, text, name, problem):
    path = write(text, name)
    with pytest.raises(WorkloadError) as caught:
        from_file(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(WorkloadError, match=r"gone\.csv: cannot be read: No such file"):
        from_file(tmp_path / "gone.csv")
    with pytest.raises(WorkloadError, match=r"cannot be read: Is a directory"):
        from_file(tmp_path)


def test_a_trace_keeps_its_arrivals_unless_a_rate_is_given(write):
    trace = from_file(write(AZURE))
    assert isinstance(trace, Trace)
    own = trace.requests(max_context=None, seed=9)
    assert own == trace.trace.table
    redrawn = trace.requests(max_context=None, rate=3.0, seed=9)
    assert redrawn.id.tolist() == own.id.tolist()
    assert redrawn.arrival_ps.tolist() == arrival_times_ps(3, 3.0, seed=9).tolist()
    first = trace.requests(max_context=None, n=2, seed=9)
    assert first == own.head(2)
    with pytest.raises(WorkloadError, match="4 requests asked for, but the trace holds 3"):
        trace.requests(max_context=None, n=4, seed=9)


def test_a_trace_beyond_the_context_is_dropped_or_cut(write):
    trace = from_file(write(AZURE))
    kept = trace.requests(max_context=4096, seed=0)
    assert kept.dropped == ((0, "context"),)
    assert (len(kept), kept.n_in) == (2, 3)
    cut = trace.requests(max_context=4096, seed=0, truncate=True)
    assert cut.prompt_tokens.tolist() == [3180, 4095, 110]
    assert cut.output_tokens.tolist() == [8, 1, 1]


def test_a_length_table_gives_its_rows_or_a_shuffled_draw_of_pairs(write):
    pairs = [(i + 1, 100 + i) for i in range(50)]
    lengths = from_file(write("in_tokens,out_tokens\n" + "".join(f"{p},{o}\n" for p, o in pairs)))
    assert isinstance(lengths, LengthTable)

    def drawn(n, seed):
        found = lengths.requests(max_context=None, n=n, seed=seed)
        assert found.id.tolist() == list(range(len(found)))
        return list(zip(found.prompt_tokens.tolist(), found.output_tokens.tolist(), strict=True))

    assert drawn(None, 1) == pairs
    assert drawn(50, 1) != pairs
    assert sorted(drawn(50, 1)) == pairs
    assert drawn(20, 1) == drawn(50, 1)[:20]
    assert drawn(20, 1) != drawn(20, 2)
    assert sorted(drawn(100, 1)) == sorted(pairs * 2)
    assert drawn(100, 1)[50:] != drawn(100, 1)[:50]
    assert set(drawn(10, 1)) <= set(pairs)


def test_a_length_table_of_a_trace_ignores_its_arrivals(write):
    lengths = table(write(_jsonl(MOONCAKE), "a.jsonl"))
    found = lengths.requests(max_context=None, seed=0)
    assert found.arrival_ps.tolist() == [0, 0, 0]
    assert found.prompt_tokens.tolist() == [1100, 600, 7]
    assert found.prefix_blocks == ((0, 1, 2), (0, 5), ())


def test_a_file_describes_itself_in_json(write):
    path = write(_jsonl(MOONCAKE), "a.jsonl")
    about = json.loads(json.dumps(from_file(path).describe()))
    assert about["kind"] == "trace"
    assert about["path"] == str(path)
    assert about["requests"] == 3
    assert about["span_s"] == 3.0
    assert about["rate_per_s"] == pytest.approx(2 / 3)
    assert about["prefix_blocks"] == 5
    assert about["prompt_tokens"]["p50"] == 600
    assert table(path).describe()["kind"] == "length table"
    assert from_file(path) == from_file(path)
    assert len({from_file(path), from_file(path), table(path)}) == 2


def test_a_rate_error_of_a_trace_names_the_field(write):
    with pytest.raises(ConfigError, match=r"^rate: "):
        from_file(write(AZURE)).requests(max_context=None, rate=-2, seed=0)


def test_the_azure_trace(shared_data):
    found = from_file(shared_data("traces/azure2023_conv.csv.gz")).requests(max_context=4096, seed=0)
    assert found.n_in == 19_366
    assert len(found) == 17_754
    assert found.arrival_ps[-1] <= 3502 * PS_PER_S


def test_the_measured_run(shared_data):
    found = from_file(shared_data("traces/vllm_measured_requests.csv")).requests(max_context=None, seed=0)
    assert len(found) == 300
    assert found.arrival_ps[:2].tolist() == [0, 285_060_000_000]
    assert (int(found.prompt_tokens[0]), int(found.output_tokens[0])) == (2358, 531)


def test_zero_outputs_of_a_real_table_become_one(shared_data):
    found = from_file(shared_data("traces/alpaca_lengths.csv")).requests(max_context=None, seed=0)
    assert len(found) == 52_002
    assert int(found.output_tokens.min()) == 1


def test_a_table_without_outputs_is_refused(shared_data):
    with pytest.raises(WorkloadError, match="no column 'out_tokens'"):
        from_file(shared_data("traces/chatgpt_prompts_lengths.csv"))
