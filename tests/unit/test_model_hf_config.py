"""Hugging Face configurations of every family give the catalogue's numbers; bad files are one-line errors."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.model import ARCHITECTURES, ModelSpec, load_model, read_hf_config


def llama_like(architecture: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "hidden_act": "silu", "torch_dtype": "float16"} | fields


LLAMA2_70B = llama_like(
    "LlamaForCausalLM", model_type="llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, vocab_size=32000, max_position_embeddings=4096,
    tie_word_embeddings=False,
)  # fmt: skip
LLAMA_7B = llama_like(
    "LlamaForCausalLM", model_type="llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, vocab_size=32000, max_position_embeddings=2048,
)  # fmt: skip
OPT_13B = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "activation_function": "relu",
    "do_layer_norm_before": True, "ffn_dim": 20480, "hidden_size": 5120, "max_position_embeddings": 2048,
    "num_attention_heads": 40, "num_hidden_layers": 40, "vocab_size": 50272, "word_embed_proj_dim": 5120,
}  # fmt: skip
FALCON_40B = {
    "architectures": ["FalconForCausalLM"], "model_type": "falcon", "alibi": False, "bias": False,
    "hidden_size": 8192, "multi_query": True, "new_decoder_architecture": True, "num_attention_heads": 128,
    "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": True, "vocab_size": 65024,
}  # fmt: skip
MIXTRAL_8X7B = llama_like(
    "MixtralForCausalLM", model_type="mixtral", hidden_size=4096, intermediate_size=14336,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, num_local_experts=8,
    num_experts_per_tok=2, vocab_size=32000, max_position_embeddings=32768, sliding_window=None,
)  # fmt: skip
MISTRAL_7B = llama_like(
    "MistralForCausalLM", model_type="mistral", hidden_size=4096, intermediate_size=14336,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, vocab_size=32000,
    max_position_embeddings=32768, sliding_window=4096,
)  # fmt: skip
QWEN_72B = {
    "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 8192, "kv_channels": 128,
    "intermediate_size": 49152, "num_hidden_layers": 80, "num_attention_heads": 64, "vocab_size": 152064,
    "seq_length": 32768, "no_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_7B = llama_like(
    "Qwen2ForCausalLM", model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
    num_attention_heads=28, num_key_value_heads=4, vocab_size=152064, max_position_embeddings=131072,
    sliding_window=65536, use_sliding_window=False, tie_word_embeddings=False,
)  # fmt: skip
QWEN3_8B = llama_like(
    "Qwen3ForCausalLM", model_type="qwen3", attention_bias=False, hidden_size=4096, intermediate_size=12288,
    num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936,
    max_position_embeddings=40960, sliding_window=None, use_sliding_window=False, tie_word_embeddings=False,
)  # fmt: skip
QWEN3_30B_A3B = llama_like(
    "Qwen3MoeForCausalLM", model_type="qwen3_moe", attention_bias=False, hidden_size=2048,
    intermediate_size=6144, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
    decoder_sparse_step=1, mlp_only_layers=[], num_hidden_layers=48, num_attention_heads=32,
    num_key_value_heads=4, head_dim=128, vocab_size=151936, max_position_embeddings=40960,
    tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Return a function that writes a configuration and gives its path."""

    def write(values: Any, name: str = "some-model") -> Path:
        path = tmp_path / name / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("llama2-70b", LLAMA2_70B),
        ("llama-7b", LLAMA_7B),
        ("opt-13b", OPT_13B),
        ("falcon-40b", FALCON_40B),
        ("mixtral-8x7b", MIXTRAL_8X7B),
        ("qwen-72b", QWEN_72B),
        ("qwen3-8b", QWEN3_8B),
        ("qwen3-30b-a3b", QWEN3_30B_A3B),
    ],
)
def test_a_published_config_equals_the_catalogue(config: Any, model: str, values: dict[str, Any]) -> None:
    assert load_model(config(values, model)) == load_model(model)


@pytest.mark.parametrize(
    ("values", "params"), [(MISTRAL_7B, 7_241_732_096), (QWEN2_7B, 7_615_616_512)], ids=["mistral", "qwen2"]
)
def test_families_outside_the_catalogue(config: Any, values: dict[str, Any], params: int) -> None:
    """Mistral-7B-v0.1 and Qwen2.5-7B, number of elements in their safetensors files."""
    assert load_model(config(values)).params == params


def test_one_model_per_architecture_was_tried() -> None:
    tried = (
        LLAMA2_70B,
        OPT_13B,
        FALCON_40B,
        MISTRAL_7B,
        MIXTRAL_8X7B,
        QWEN_72B,
        QWEN2_7B,
        QWEN3_8B,
        QWEN3_30B_A3B,
    )
    assert {values["architectures"][0] for values in tried} == set(ARCHITECTURES)


def test_context_ends_with_the_sliding_window(config: Any) -> None:
    assert load_model(config(MISTRAL_7B)).max_context == 4096
    assert load_model(config(MISTRAL_7B | {"sliding_window": None})).max_context == 32768
    assert load_model(config(QWEN2_7B)).max_context == 131072
    assert load_model(config(QWEN2_7B | {"use_sliding_window": True})).max_context == 65536


def test_older_falcon_layouts(config: Any) -> None:
    """Falcon-7B: multi-query, one norm; 6,921,720,704 elements in its files."""
    small = FALCON_40B | {"new_decoder_architecture": False, "hidden_size": 4544, "num_attention_heads": 71,
                          "num_hidden_layers": 32}  # fmt: skip
    spec = load_model(config(small))
    assert (spec.n_kv_heads, spec.norms_per_layer, spec.params) == (1, 1, 6_921_720_704)
    assert load_model(config(small | {"multi_query": False})).n_kv_heads == 71
    serial = load_model(config(small | {"parallel_attn": False, "alibi": True, "bias": True}))
    assert (serial.parallel_attn_mlp, serial.norms_per_layer, serial.rotary) == (False, 2, False)
    assert serial.biases == ("qkv", "proj", "up", "down")
    assert load_model(config(FALCON_40B | {"num_ln_in_parallel_attn": 1})).norms_per_layer == 1


def test_llama_biases_and_relu(config: Any) -> None:
    spec = load_model(config(LLAMA2_70B | {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}))
    assert (spec.biases, spec.activation) == (("qkv", "proj", "up", "down"), "relu")


def test_the_architecture_follows_from_the_model_type(config: Any) -> None:
    values = {key: value for key, value in QWEN3_8B.items() if key != "architectures"}
    assert load_model(config(values)) == load_model(config(QWEN3_8B))


def test_the_name_of_a_model_is_its_folder_or_file(config: Any, tmp_path: Path) -> None:
    path = config(LLAMA2_70B, "tuned")
    assert load_model(path).id == load_model(str(path)).id == load_model(str(path.parent)).id == "tuned"
    assert load_model(path.parent) == load_model(path)
    other = path.rename(tmp_path / "mine.json")
    assert load_model(str(other)) == attrs.evolve(load_model("llama2-70b"), id="mine")


@pytest.mark.parametrize(
    ("values", "where", "problem"),
    [
        ('{"hidden_size": 3', "", "is not JSON"),
        ("[1]", "", "expected a JSON object"),
        ({}, ": architectures", "unknown architecture None"),
        ({"architectures": ["GPT2LMHeadModel"], "n_embd": 768, "vocab_size": 50257}, ": architectures",
         "lacks hidden_size, intermediate_size, max_position_embeddings, num_attention_heads, num_hidden"),
        (LLAMA2_70B | {"architectures": ["GemmaForCausalLM"]}, ": architectures", "lacks no field, but the"),
        ({"model_type": "mamba"}, ": model_type", "unknown architecture 'mamba'"),
        ({"architectures": ["LlamaForCausalLM"], "vocab_size": 5},
         ": hidden_size, intermediate_size, max_position_embeddings, num_attention_heads, num_hidden_layers",
         "required fields missing"),
        (LLAMA2_70B | {"vocab_size": None}, ": vocab_size", "required field missing"),
        (MISTRAL_7B | {"num_key_value_heads": None}, ": num_key_value_heads", "required field missing"),
        (MIXTRAL_8X7B | {"num_local_experts": None}, ": num_local_experts", "required field missing"),
        (QWEN3_8B | {"head_dim": None}, ": head_dim", "required field missing"),
        (QWEN3_30B_A3B | {"num_experts": None}, ": num_experts", "required field missing"),
        (OPT_13B | {"ffn_dim": None}, ": ffn_dim", "required field missing"),
        (QWEN_72B | {"kv_channels": None}, ": kv_channels", "required field missing"),
        (FALCON_40B | {"vocab_size": None}, ": vocab_size", "required field missing"),
        (LLAMA2_70B | {"hidden_size": "8192"}, ": hidden_size", "expected a positive integer, not '8192'"),
        (LLAMA2_70B | {"num_hidden_layers": 80.0}, ": num_hidden_layers", "expected a positive integer"),
        (LLAMA2_70B | {"num_hidden_layers": True}, ": num_hidden_layers", "expected a positive integer"),
        (LLAMA2_70B | {"vocab_size": 0}, ": vocab_size", "expected a positive integer"),
        (LLAMA2_70B | {"tie_word_embeddings": 1}, ": tie_word_embeddings", "expected true or false"),
        (LLAMA2_70B | {"hidden_act": "mish"}, ": hidden_act", "expected one of relu, silu"),
        (LLAMA2_70B | {"hidden_act": ["silu"]}, ": hidden_act", "expected one of relu, silu"),
        (LLAMA2_70B | {"num_attention_heads": 60}, ": hidden_size", "8192 is not a multiple of"),
        (LLAMA2_70B | {"num_key_value_heads": 7}, ": some-model.n_heads", "not a multiple of n_kv_heads 7"),
        (OPT_13B | {"word_embed_proj_dim": 512}, ": word_embed_proj_dim", "512 is not modelled"),
        (OPT_13B | {"do_layer_norm_before": False}, ": do_layer_norm_before", "is not modelled"),
        (QWEN3_30B_A3B | {"mlp_only_layers": [3]}, ": mlp_only_layers", "is not modelled"),
        (QWEN3_30B_A3B | {"decoder_sparse_step": 2}, ": decoder_sparse_step", "is not modelled"),
        (QWEN_72B | {"no_bias": False}, ": no_bias", "is not modelled"),
        (QWEN_72B | {"intermediate_size": 49151}, ": intermediate_size", "expected an even number"),
    ],
)  # fmt: skip
def test_a_bad_file_names_file_and_field(config: Any, values: Any, where: str, problem: str) -> None:
    path = config(values)
    with pytest.raises(ConfigError) as caught:
        load_model(str(path))
    assert caught.value.path == f"{path}{where}"
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read: No such file"):
        load_model(str(tmp_path / "absent.json"))
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        read_hf_config(tmp_path / "config.json")
    with pytest.raises(UnknownNameError):
        load_model(str(tmp_path))


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_model(path)


def test_reading_gives_a_model_spec(config: Any) -> None:
    assert isinstance(read_hf_config(config(QWEN3_8B)), ModelSpec)
