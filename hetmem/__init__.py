"""hetmem: a discrete-event simulator of LLM inference on heterogeneous memory."""

from hetmem._version import __version__

__all__ = ["__version__"]
