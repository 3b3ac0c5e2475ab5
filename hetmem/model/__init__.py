"""The LLM as work: dimensions and footprints of a model, and the kernels of a step. Pure."""

from hetmem.model.hf_config import ARCHITECTURES, read_hf_config
from hetmem.model.kernels import Kernel, StepShape, expected_experts, head_kernels, layer_kernels, step_totals
from hetmem.model.load import load_model, model_ids
from hetmem.model.spec import FP16, INT4, INT8, PRECISIONS, ModelSpec, Precision

__all__ = [
    "ARCHITECTURES",
    "FP16",
    "INT4",
    "INT8",
    "PRECISIONS",
    "Kernel",
    "ModelSpec",
    "Precision",
    "StepShape",
    "expected_experts",
    "head_kernels",
    "layer_kernels",
    "load_model",
    "model_ids",
    "read_hf_config",
    "step_totals",
]
