"""hetmem: a discrete-event simulator of LLM inference on heterogeneous memory."""

from hetmem import plot
from hetmem._version import __version__
from hetmem.errors import CapacityError, ConfigError, HetmemError, UnsupportedError
from hetmem.hardware.config import machine
from hetmem.hardware.dram import memory
from hetmem.hardware.link import link
from hetmem.hardware.pim import check_design as check_pim_design
from hetmem.model import ModelSpec, load_model
from hetmem.study.compare import Comparison, compare
from hetmem.study.run import Run
from hetmem.study.simulate import simulate
from hetmem.study.sweep import sweep
from hetmem.workload import fixed, from_file
from hetmem.workload.lognormal import lognormal

__all__ = [
    "CapacityError",
    "Comparison",
    "ConfigError",
    "HetmemError",
    "ModelSpec",
    "Run",
    "UnsupportedError",
    "__version__",
    "check_pim_design",
    "compare",
    "fixed",
    "from_file",
    "link",
    "load_model",
    "lognormal",
    "machine",
    "memory",
    "plot",
    "simulate",
    "sweep",
]
