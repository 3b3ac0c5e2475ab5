"""Dimensions and footprints against published checkpoints, and every refusal of a bad field."""

import csv
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.model import (
    FP16,
    INT4,
    INT8,
    PRECISIONS,
    ModelSpec,
    Precision,
    StepShape,
    load_model,
    model_ids,
    step_totals,
)
from hetmem.model.load import from_entry

SMALL = {
    "id": "small", "n_layers": 2, "d_model": 64, "n_heads": 8, "n_kv_heads": 2, "head_dim": 8, "d_ff": 96,
    "gated_ffn": True, "activation": "silu", "vocab": 1000, "tied_embeddings": False, "max_context": 512,
}  # fmt: skip

POSITIVE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab", "max_context")

# Parameters of the released checkpoints (number of elements in their safetensors files).
CHECKPOINTS = {
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "falcon-40b": 41_303_293_952,
    "codellama-34b": 33_743_970_304,
    "qwen-72b": 72_287_920_128,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
}


@pytest.fixture(scope="module")
def dims(shared_data: Callable[[str], Path]) -> list[dict[str, str]]:
    with shared_data("models/model_dims.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("model", "params"), CHECKPOINTS.items())
def test_parameters_equal_the_checkpoint(model: str, params: int) -> None:
    assert load_model(model).params == params


def test_catalogue_has_the_tabulated_models_and_dimensions(dims: list[dict[str, str]]) -> None:
    assert model_ids() == tuple(row["model"] for row in dims)
    for row in dims:
        spec = load_model(row["model"])
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "gated_ffn", "vocab",
                     "tied_embeddings", "n_experts", "experts_per_token", "max_context",
                     "parallel_attn_mlp"):  # fmt: skip
            assert int(getattr(spec, name)) == int(row[name]), (spec.id, name)
        assert spec.activation == row["activation"].strip("*")  # the star marks an assumption


def test_footprints_agree_with_the_table(dims: list[dict[str, str]]) -> None:
    for row in dims:
        spec = load_model(row["model"])
        for ours, text in (
            (spec.params, row["params_total_e9"]),
            (spec.params_active, row["params_active_e9"]),
        ):
            rounding = 0.5 * 10.0 ** -len(text.partition(".")[2])
            assert abs(ours / 1e9 - float(text)) <= 1e-3 * float(text) + rounding, spec.id
        layer = spec.layer_params
        attention, mlp = float(row["attn_params_per_layer_e6"]), float(row["ffn_params_per_layer_e6"])
        assert (layer["qkv"] + layer["proj"]) / 1e6 == pytest.approx(attention, rel=1e-3)
        assert (layer["up"] + layer["down"]) / 1e6 == pytest.approx(mlp, rel=1e-3)
        assert spec.kv_bytes_per_token() == int(row["kv_bytes_per_token_fp16"])


def test_tensor_groups_of_a_small_model() -> None:
    spec = ModelSpec(**SMALL)
    assert spec.layer_params == {
        "qkv": 64 * (64 + 2 * 16),
        "proj": 64 * 64,
        "up": 64 * 192,
        "down": 96 * 64,
        "router": 0,
        "norms": 128,
    }
    assert spec.outer_params == {"embedding": 64_000, "final_norm": 64, "head": 64_000}
    assert spec.params == spec.params_active == 2 * (6144 + 4096 + 12288 + 6144 + 128) + 128_064


def test_biases_norms_and_positions_are_counted() -> None:
    spec = ModelSpec(**SMALL)

    def more(**changes: object) -> int:
        return attrs.evolve(spec, **changes).params - spec.params

    assert more(biases=("qkv",)) == 2 * (64 + 2 * 16)
    assert more(biases=("qkv", "proj", "up", "down")) == 2 * (96 + 64 + 192 + 64)
    assert more(norm="layer") == 2 * 2 * 64 + 64
    assert more(qk_norm=True) == 2 * 2 * 8
    assert more(rotary=False, learned_positions=514) == 514 * 64
    assert more(parallel_attn_mlp=True, norms_per_layer=1) == -2 * 64
    assert more(tied_embeddings=True) == -64_000


def test_experts_multiply_what_is_stored_not_what_is_active() -> None:
    dense, moe = ModelSpec(**SMALL), ModelSpec(**SMALL, n_experts=6, experts_per_token=2)
    mlp = 64 * 192 + 96 * 64
    assert moe.params - dense.params == 2 * (5 * mlp + 6 * 64)
    assert moe.params_active - dense.params == 2 * (mlp + 6 * 64)


def test_precision_scales_each_operand_alone() -> None:
    spec = load_model("llama2-70b")
    assert spec.weight_bytes() == 2 * spec.params
    assert spec.weight_bytes(INT8) == spec.params
    assert spec.weight_bytes(INT4) == spec.params // 2
    assert spec.kv_bytes_per_token(INT4) == spec.kv_bytes_per_token(FP16) == 327_680
    assert spec.kv_bytes_per_token(Precision(kv_bits=8)) == 163_840
    assert spec.layer_bytes(INT8) == spec.layer_params
    assert spec.outer_bytes(INT8) == spec.outer_params


def test_bytes_are_rounded_up() -> None:
    spec = ModelSpec(**SMALL | {"n_layers": 1, "vocab": 1001})
    odd = Precision(weights_bits=3)
    assert spec.outer_bytes(odd)["head"] == -(-1001 * 64 * 3 // 8)
    assert spec.kv_bytes_per_token(Precision(kv_bits=3)) == 12


def test_precision_presets() -> None:
    assert Precision.named("int4") is PRECISIONS["int4"]
    with pytest.raises(UnknownNameError, match="unknown precision 'fp61'; did you mean 'fp16'"):
        Precision.named("fp61")
    for bits in (0, 65, 4.0, True, "8"):
        with pytest.raises(ConfigError, match=r"precision\.kv_bits"):
            Precision(kv_bits=bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama2-70b", "LLaMA2_70B", "llama2 70b"])
def test_ids_match_without_case_and_punctuation(name: str) -> None:
    assert load_model(name).id == "llama2-70b"


def test_an_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'lama2-70b'; did you mean 'llama2-70b'"):
        load_model("lama2-70b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, bad) for name in POSITIVE for bad in (0, -1, 1.0, True, "8", None)),
        ("n_kv_heads", 3),
        ("head_dim", 7),
        ("gated_ffn", 1),
        ("tied_embeddings", "yes"),
        ("activation", "tanh"),
        ("norm", "batch"),
        ("norms_per_layer", 1),
        ("norms_per_layer", 3),
        ("n_experts", -1),
        ("n_experts", 8),
        ("experts_per_token", 1),
        ("biases", ("head",)),
        ("biases", ("qkv", "qkv")),
        ("biases", "qkv"),
        ("learned_positions", 511),
        ("learned_positions", -1),
        ("rotary", 0),
        ("parallel_attn_mlp", 0),
        ("qk_norm", None),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(field: str, value: object) -> None:
    named = {("n_kv_heads", 3): "n_heads", ("n_experts", 8): "experts_per_token"}.get((field, value), field)
    with pytest.raises(ConfigError) as caught:
        ModelSpec(**SMALL | {field: value})  # type: ignore[arg-type]
    assert caught.value.path == f"small.{named}"
    assert "\n" not in str(caught.value)


def test_more_experts_per_token_than_experts() -> None:
    with pytest.raises(ConfigError, match=r"small\.experts_per_token: expected 1 to n_experts 4"):
        ModelSpec(**SMALL, n_experts=4, experts_per_token=5)


def test_a_catalogue_entry_is_read_strictly() -> None:
    facts = {key: value for key, value in SMALL.items() if key != "id"}

    def entry(values: dict[str, object]) -> catalog.Entry:
        return catalog.Entry(
            "models", "mine", {key: catalog.Fact(value, "x", "assumed") for key, value in values.items()}
        )

    assert from_entry(entry(facts)) == ModelSpec(**SMALL | {"id": "mine"})
    with pytest.raises(ConfigError, match=r"models\.mine\.n_layer: unknown key; did you mean 'n_layers'"):
        from_entry(entry(facts | {"n_layer": 3}))
    del facts["vocab"], facts["d_ff"]
    with pytest.raises(ConfigError, match=r"models\.mine: required keys missing: d_ff, vocab"):
        from_entry(entry(facts))


@pytest.mark.parametrize("model", model_ids())
def test_no_key_of_an_entry_is_inert(model: str) -> None:
    """Another value of any one key changes the footprint, the cache, the work of a step or the context."""
    spec = load_model(model)
    changes: dict[str, object] = {
        "n_heads": 2 * spec.n_heads,
        "n_kv_heads": 1,
        "head_dim": 2 * spec.head_dim,
        "max_context": spec.max_context - 1,
        "activation": "silu" if spec.activation == "relu" else "relu",
        "norm": "rms",
        "biases": ["down"],
    }

    def outputs() -> tuple[object, ...]:
        spec = load_model(model)
        return spec.params, spec.max_context, step_totals(spec, StepShape.decode(3, 300))

    before = outputs()
    for key, value in catalog.entry("models", model).values().items():
        changed = changes.get(key)
        if changed is None:
            changed = not value if isinstance(value, bool) else value + 1
        with catalog.patched("models", model, key, changed):
            assert outputs() != before, key
    assert outputs() == before
