"""Model dimensions from a Hugging Face ``config.json``.

Read: the architectures in :data:`ARCHITECTURES`, with the defaults of the ``transformers`` configuration
classes where published files leave a field out. Not read: dtype, rope scaling and quantisation (precision is
a choice of the run). Sliding-window attention is not modelled: such a model is taken with a context no longer
than its window, within which full attention is the same thing.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from hetmem.errors import ConfigError
from hetmem.model.spec import ModelSpec

_CONTEXT = "max_position_embeddings"
_DECODER = (
    "hidden_size", "intermediate_size", _CONTEXT, "num_attention_heads", "num_hidden_layers", "vocab_size",
)  # fmt: skip
_ACTIVATION_NAMES = {
    "relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}  # fmt: skip
_ALL_LINEAR = ("qkv", "proj", "up", "down")


@frozen
class _Config:
    """The fields of one file, their types checked; ``null`` counts as absent, as in ``transformers``."""

    path: str
    values: Mapping[str, Any]

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}", problem)

    def missing(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(key for key in keys if self.values.get(key) is None)

    def require(self, *keys: str) -> None:
        if absent := self.missing(keys):
            raise self.error(", ".join(absent), f"required field{'s' * (len(absent) > 1)} missing")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int = 0) -> int:
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not int or value < 1:
            raise self.error(key, f"expected a positive integer, not {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(key, f"expected true or false, not {value!r}")
        return value

    def activation(self, key: str, default: str) -> str:
        value = self.values.get(key) or default
        if not isinstance(value, str) or value not in _ACTIVATION_NAMES:
            raise self.error(key, f"expected one of {', '.join(_ACTIVATION_NAMES)}, not {value!r}")
        return _ACTIVATION_NAMES[value]

    def refuse(self, key: str, default: Any, only: Any, reason: str) -> None:
        value = default if self.values.get(key) is None else self.values[key]
        if value != only:
            raise self.error(key, f"{value!r} is not modelled ({reason}); only {only!r} is")


def _decoder(config: _Config, *required: str) -> dict[str, Any]:
    """Return what the Llama-shaped families share; defaults of ``required`` fields differ by family."""
    config.require(*_DECODER, *required)
    d_model, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    return {
        "n_layers": config.integer("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": config.integer("num_key_value_heads", n_heads),
        "head_dim": config.integer("head_dim", _per_head(config, d_model, n_heads)),
        "d_ff": config.integer("intermediate_size"),
        "gated_ffn": True,
        "activation": config.activation("hidden_act", "silu"),
        "vocab": config.integer("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", False),
        "max_context": config.integer(_CONTEXT),
    }


def _per_head(config: _Config, d_model: int, n_heads: int) -> int:
    if d_model % n_heads and not config.has("head_dim"):
        raise config.error("hidden_size", f"{d_model} is not a multiple of num_attention_heads {n_heads}")
    return d_model // n_heads


def _windowed(config: _Config, spec: dict[str, Any], applies: bool) -> dict[str, Any]:
    context = spec["max_context"]
    window = config.integer("sliding_window", context) if applies else context
    return spec | {"max_context": min(context, window)}


def _llama(config: _Config) -> dict[str, Any]:
    attention = ("qkv", "proj") if config.flag("attention_bias", False) else ()
    mlp = ("up", "down") if config.flag("mlp_bias", False) else ()
    return _decoder(config) | {"biases": attention + mlp}


def _mistral(config: _Config) -> dict[str, Any]:
    return _windowed(config, _decoder(config, "num_key_value_heads"), applies=True)


def _mixtral(config: _Config) -> dict[str, Any]:
    spec = _decoder(config, "num_key_value_heads", "num_local_experts", "num_experts_per_tok")
    experts = {
        "n_experts": config.integer("num_local_experts"),
        "experts_per_token": config.integer("num_experts_per_tok"),
    }
    return _windowed(config, spec, applies=True) | experts


def _qwen(config: _Config) -> dict[str, Any]:
    """Qwen 1: ``intermediate_size`` counts gate and up together; keys and values have every head."""
    config.require(*(key for key in _DECODER if key != _CONTEXT), "kv_channels", "seq_length")
    config.refuse("no_bias", True, True, "biases beyond QKV")
    both = config.integer("intermediate_size")
    if both % 2:
        raise config.error("intermediate_size", f"expected an even number (gate and up), not {both}")
    n_heads = config.integer("num_attention_heads")
    return {
        "n_layers": config.integer("num_hidden_layers"),
        "d_model": config.integer("hidden_size"),
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": config.integer("kv_channels"),
        "d_ff": both // 2,
        "gated_ffn": True,
        "activation": "silu",
        "vocab": config.integer("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", False),
        "max_context": config.integer("seq_length"),
        "biases": ("qkv",),
    }


def _qwen2(config: _Config) -> dict[str, Any]:
    spec = _decoder(config, "num_key_value_heads") | {"biases": ("qkv",)}
    return _windowed(config, spec, applies=config.flag("use_sliding_window", False))


def _qwen3(config: _Config) -> dict[str, Any]:
    spec = _decoder(config, "num_key_value_heads", "head_dim") | {
        "qk_norm": True,
        "biases": ("qkv", "proj") if config.flag("attention_bias", False) else (),
    }
    return _windowed(config, spec, applies=config.flag("use_sliding_window", False))


def _qwen3_moe(config: _Config) -> dict[str, Any]:
    config.require("moe_intermediate_size", "num_experts", "num_experts_per_tok")
    config.refuse("decoder_sparse_step", 1, 1, "dense layers between")
    config.refuse("mlp_only_layers", [], [], "dense layers between")
    return _qwen3(config) | {
        "d_ff": config.integer("moe_intermediate_size"),
        "n_experts": config.integer("num_experts"),
        "experts_per_token": config.integer("num_experts_per_tok"),
    }


def _opt(config: _Config) -> dict[str, Any]:
    config.require(*(key for key in _DECODER if key != "intermediate_size"), "ffn_dim")
    d_model, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    config.refuse("word_embed_proj_dim", d_model, d_model, "a projected embedding")
    config.refuse("do_layer_norm_before", True, True, "norms after the blocks")
    config.refuse("layer_norm_elementwise_affine", True, True, "norms without parameters")
    context = config.integer(_CONTEXT)
    return {
        "n_layers": config.integer("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": _per_head(config, d_model, n_heads),
        "d_ff": config.integer("ffn_dim"),
        "gated_ffn": False,
        "activation": config.activation("activation_function", "relu"),
        "vocab": config.integer("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", True),
        "max_context": context,
        "norm": "layer",
        "biases": _ALL_LINEAR if config.flag("enable_bias", True) else (),
        "rotary": False,
        "learned_positions": context + 2,  # the table starts with two rows that no position uses
    }


def _falcon(config: _Config) -> dict[str, Any]:
    config.require("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
    d_model, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    new = config.flag("new_decoder_architecture", False)
    parallel = config.flag("parallel_attn", True)
    if new:
        n_kv_heads = config.integer("num_kv_heads", n_heads)
    else:
        n_kv_heads = 1 if config.flag("multi_query", True) else n_heads
    return {
        "n_layers": config.integer("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": _per_head(config, d_model, n_heads),
        "d_ff": config.integer("ffn_hidden_size", 4 * d_model),
        "gated_ffn": False,
        "activation": config.activation("activation", "gelu"),
        "vocab": config.integer("vocab_size"),
        "tied_embeddings": config.flag("tie_word_embeddings", True),
        "max_context": config.integer(_CONTEXT, 2048),
        "parallel_attn_mlp": parallel,
        "norm": "layer",
        "norms_per_layer": config.integer("num_ln_in_parallel_attn", 2 if new else 1) if parallel else 2,
        "biases": _ALL_LINEAR if config.flag("bias", False) else (),
        "rotary": not config.flag("alibi", False),
    }


_READERS: dict[str, tuple[str, Callable[[_Config], dict[str, Any]]]] = {
    "LlamaForCausalLM": ("llama", _llama),
    "OPTForCausalLM": ("opt", _opt),
    "FalconForCausalLM": ("falcon", _falcon),
    "MistralForCausalLM": ("mistral", _mistral),
    "MixtralForCausalLM": ("mixtral", _mixtral),
    "QWenLMHeadModel": ("qwen", _qwen),
    "Qwen2ForCausalLM": ("qwen2", _qwen2),
    "Qwen3ForCausalLM": ("qwen3", _qwen3),
    "Qwen3MoeForCausalLM": ("qwen3_moe", _qwen3_moe),
}
ARCHITECTURES = tuple(_READERS)


def read_hf_config(path: str | Path) -> ModelSpec:
    """Return the model described by the ``config.json`` at ``path``.

    Its id is the name of the folder of a ``config.json``, else the name of the file.

    Raises
    ------
    ConfigError
        When the file cannot be read, is not JSON, is of an unknown architecture (with the fields of a
        Llama-shaped decoder that it lacks), or lacks a field or has one out of range; it names the field.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # JSON and UTF-8 errors both
        raise ConfigError(str(path), f"is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(str(path), "expected a JSON object")
    config = _Config(str(path), values)
    fields = _READERS[_architecture(config)][1](config)
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    try:
        return ModelSpec(id=name or path.stem, **fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.path}", error.problem) from None


def _architecture(config: _Config) -> str:
    """Return the architecture that the file names, or the one its ``model_type`` implies."""
    named = config.values.get("architectures")
    if isinstance(named, list) and named:
        if named[0] in ARCHITECTURES:
            return str(named[0])
        key, found = "architectures", named[0]
    else:
        for architecture, (model_type, _) in _READERS.items():
            if config.values.get("model_type") == model_type:
                return architecture
        key = "model_type" if config.has("model_type") else "architectures"
        found = config.values.get(key)
    absent = ", ".join(config.missing(_DECODER)) or "no field, but the layout of its layers is not known"
    known = ", ".join(ARCHITECTURES)
    raise config.error(key, f"unknown architecture {found!r} (known: {known}); the file lacks {absent}")
