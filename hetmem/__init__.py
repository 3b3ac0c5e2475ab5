"""hetmem: a discrete-event simulator of LLM inference on heterogeneous memory.

The public names are loaded when they are first used, so that importing the package costs little.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hetmem._version import __version__

if TYPE_CHECKING:
    from hetmem import plot
    from hetmem.errors import CapacityError, ConfigError, HetmemError, UnsupportedError
    from hetmem.hardware.config import machine
    from hetmem.hardware.device import device
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

# The module of each public name, and what it is called there; nothing where the name is the module.
_HOMES = {
    "CapacityError": ("hetmem.errors", "CapacityError"),
    "Comparison": ("hetmem.study.compare", "Comparison"),
    "ConfigError": ("hetmem.errors", "ConfigError"),
    "HetmemError": ("hetmem.errors", "HetmemError"),
    "ModelSpec": ("hetmem.model", "ModelSpec"),
    "Run": ("hetmem.study.run", "Run"),
    "UnsupportedError": ("hetmem.errors", "UnsupportedError"),
    "check_pim_design": ("hetmem.hardware.pim", "check_design"),
    "compare": ("hetmem.study.compare", "compare"),
    "device": ("hetmem.hardware.device", "device"),
    "fixed": ("hetmem.workload", "fixed"),
    "from_file": ("hetmem.workload", "from_file"),
    "link": ("hetmem.hardware.link", "link"),
    "load_model": ("hetmem.model", "load_model"),
    "lognormal": ("hetmem.workload.lognormal", "lognormal"),
    "machine": ("hetmem.hardware.config", "machine"),
    "memory": ("hetmem.hardware.dram", "memory"),
    "plot": ("hetmem.plot", ""),
    "simulate": ("hetmem.study.simulate", "simulate"),
    "sweep": ("hetmem.study.sweep", "sweep"),
}

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
    "device",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hetmem' has no attribute {name!r}")
    home, own = _HOMES[name]
    module = import_module(home)
    value = globals()[name] = getattr(module, own) if own else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
