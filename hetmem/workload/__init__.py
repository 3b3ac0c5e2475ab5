"""Who asks and when: fixed batches, length tables, recorded traces, distributions and arrivals. Pure."""

from hetmem.workload.arrivals import arrival_times_ps
from hetmem.workload.lengths import JointQuantiles
from hetmem.workload.named import workload, workload_ids
from hetmem.workload.request import DROP_CONTEXT, PREFIX_BLOCK_TOKENS, RequestTable
from hetmem.workload.source import (
    Distribution,
    FixedBatch,
    LengthTable,
    Trace,
    Workload,
    fixed,
    from_file,
    table,
)
from hetmem.workload.traces import TraceFile, read_trace

__all__ = [
    "DROP_CONTEXT",
    "PREFIX_BLOCK_TOKENS",
    "Distribution",
    "FixedBatch",
    "JointQuantiles",
    "LengthTable",
    "RequestTable",
    "Trace",
    "TraceFile",
    "Workload",
    "arrival_times_ps",
    "fixed",
    "from_file",
    "read_trace",
    "table",
    "workload",
    "workload_ids",
]
