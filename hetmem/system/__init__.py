"""The systems: one file each, found here by name."""

from hetmem.errors import UnknownNameError
from hetmem.system.accelerate import Accelerate
from hetmem.system.base import Setup, System
from hetmem.system.deja_vu import DejaVu
from hetmem.system.dgx import Dgx, DgxAttAcc
from hetmem.system.fiddler import Fiddler
from hetmem.system.flexgen import FlexGen
from hetmem.system.h2m2 import H2m2
from hetmem.system.hermes import Hermes
from hetmem.system.hierarchical import Hierarchical
from hetmem.system.lia import Lia
from hetmem.system.lpddr_only import LpddrOnly
from hetmem.system.moe_lightning import MoeLightning
from hetmem.system.multi_hbm import MultiHbm
from hetmem.system.ndp_dimm import NdpDimm
from hetmem.system.neuron_offload import LlmInAFlash, M2Cache
from hetmem.system.papi import A100AttAcc, A100HbmPim, AttAccOnly, Papi, PapiPimOnly
from hetmem.system.powerinfer import PowerInfer
from hetmem.system.resident import Resident
from hetmem.system.zero_inference import ZeroInference

#: Every system, in the order in which comparisons list them.
SYSTEMS: tuple[type[System], ...] = (
    Resident, ZeroInference, FlexGen, Accelerate, DejaVu, PowerInfer, NdpDimm, Hermes, H2m2, LpddrOnly, Hierarchical,
    MultiHbm, Papi, PapiPimOnly, A100AttAcc, A100HbmPim, AttAccOnly, Dgx, DgxAttAcc, M2Cache, LlmInAFlash, MoeLightning,
    Fiddler, Lia,
)  # fmt: skip


def system_ids() -> tuple[str, ...]:
    """Return the names of all systems."""
    return tuple(system.name for system in SYSTEMS)


def system_class(name: str) -> type[System]:
    """Return the system called ``name``; matching ignores case and punctuation.

    Raises
    ------
    UnknownNameError
        With a suggestion.
    """
    from hetmem.catalog import normalize

    for system in SYSTEMS:
        if normalize(system.name) == normalize(name):
            return system
    raise UnknownNameError("system", name, system_ids())


__all__ = ["SYSTEMS", "Setup", "System", "system_class", "system_ids"]
