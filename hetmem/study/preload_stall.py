"""How long a decode step gets when layers come from an SSD: the system ``m2cache`` reduced to its preloader.

Every layer takes the same time on the GPU and every layer that DRAM does not hold one serial read of ``rho`` times
that; neurons are all cached, so nothing is copied, and the head is next to nothing. What remains of the simulated
system, its queues included, is the preloader.
"""

from functools import lru_cache

import numpy as np
from attrs import evolve

from hetmem.hardware.config import MachineConfig, machine
from hetmem.model import ModelSpec, load_model
from hetmem.study.simulate import simulate
from hetmem.workload import fixed

LAYER_S = 1e-3
FIRST, LAST = 10, 39  # decode tokens of the steady state


@lru_cache
def _model(n_layers: int) -> ModelSpec:
    """Return a model whose kernels are far shorter than a layer is held to take, and whose head is negligible."""
    return evolve(load_model("llama2-7b"), n_layers=n_layers, d_ff=256, vocab=16)


def _machine(stored_bytes: int, rho: float, n_fixed: int, window: int, mode: str) -> MachineConfig:
    base = machine("m2cache", "as-published")
    assert isinstance(base, MachineConfig)
    assert base.neurons is not None
    return evolve(
        base,
        neurons=evolve(
            base.neurons, persistence=1.0, overhead_s=0.0, eager_layer_s=LAYER_S, preload_window=window,
            fixed_bytes=n_fixed * stored_bytes, fixed_mode=mode, ssd_gbs=stored_bytes / (rho * LAYER_S) / 1e9,
        ),
    )  # fmt: skip


@lru_cache(maxsize=512)
def simulated_slowdown(rho: float, n_layers: int, n_fixed: int, window: int, mode: str) -> float:
    """Return the time of decode tokens 10 to 39 over that of their layers alone.

    Parameters
    ----------
    rho
        Time to read a layer over the time to compute one.
    n_fixed, mode
        Layers that DRAM holds, and which: ``contiguous`` or ``interleaved``.
    window
        Layers ahead at which a read is issued.
    """
    model = _model(n_layers)
    stored = (model.layer_params["up"] + model.layer_params["down"]) * 2
    run = simulate(
        "m2cache", model=model, machine=_machine(stored, rho, n_fixed, window, mode), workload=fixed(8, LAST + 2, 1),
        assumptions="as-published",
    )  # fmt: skip
    lasted = (run.steps.column("end_ps") - run.steps.column("start_ps"))[run.steps.column("decode_sequences") > 0]
    return float(np.mean(lasted[FIRST : LAST + 1])) * 1e-12 / (n_layers * LAYER_S)
