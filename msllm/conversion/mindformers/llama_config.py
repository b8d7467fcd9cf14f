"""The sizes of a LLaMA as MindFormers 1.9.0 writes them (LlamaConfig of a YAML) and as Hugging Face does."""

from collections.abc import Mapping
from typing import Any

from msllm.conversion.yaml_files import Yaml
from msllm.errors import UserError
from msllm.models.config import ModelConfig
from msllm.models.llama import LlamaConfig

ARCHITECTURE, CONFIG = "LlamaForCausalLM", "LlamaConfig"
# MindFormers' key -> the field of our configuration.
SIZES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_position_embedding": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "theta": "rope_theta",
    "init_method_std": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# What 1.9.0 takes where a YAML leaves a key out.
_DEFAULTS = {
    "hidden_size": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "theta": 10000.0,
    "init_method_std": 0.01,
}
_FLOATS = ("rms_norm_eps", "theta", "init_method_std", "ffn_dim_multiplier")
_CHECKED = {*SIZES, "seq_length", "multiple_of", "ffn_dim_multiplier"} - {"eos_token_id"}  # one, or several
_SCALINGS = {"linear": "linear", "llama3": "LLAMA3"}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def to_llama_config(config: ModelConfig, seq_length: int | None = None, dtype: str = "float32") -> dict[str, Any]:
    """Returns MindFormers' ``model_config`` of a LLaMA. Tokens that the configuration does not name are left to it: it
    takes 0 for padding, for example, and no token sees those.

    Args:
        config: of the model.
        seq_length: tokens of an example; without it, the most that the model takes.
        dtype: of matrix products; parameters, norms, the softmax and rotary angles are float32.

    Raises:
        UserError: not a LLaMA; what MindFormers' LLaMA cannot be: heads wider than their share of the width, biases in
            the feed-forward layers, another rope_scaling, more than one end token.
    """
    if not isinstance(config, LlamaConfig):
        raise UserError(
            f"MindFormers 1.9.0 builds no {config.model_type} any more; give a llama (its checkpoint can still be "
            f"written under the names of r0.8: msllm convert --to mindformers)"
        )
    wrong = [
        reason
        for reason, holds in (
            (f"head_dim {config.head_dim}", config.head_dim * config.num_attention_heads != config.hidden_size),
            ("mlp_bias", config.mlp_bias),
            (f"attention_dropout {config.attention_dropout:g}", config.attention_dropout > 0),
            (f"eos_token_id {config.eos_token_id}", isinstance(config.eos_token_id, list)),
        )
        if holds
    ]
    if wrong:
        raise UserError(f"MindFormers' LLaMA knows no {', '.join(wrong)}; give a model without")
    values = {"type": CONFIG, "batch_size": 1, "seq_length": seq_length or config.max_position_embeddings}
    values |= {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    values = {key: value for key, value in values.items() if value is not None}
    return {
        **values,
        **_scaling(config.rope_scaling or {}),
        "qkv_has_bias": config.attention_bias,
        "attn_proj_has_bias": config.attention_bias,
        "compute_dtype": dtype,
        "rotary_dtype": "float32",
        "param_init_type": "float32",
        "layernorm_compute_type": "float32",
        "softmax_compute_type": "float32",
        "ignore_token_id": -100,
    }


def _scaling(scaling: Mapping) -> dict[str, Any]:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return {"extend_method": "None", "scaling_factor": 1.0}
    if kind not in _SCALINGS:
        raise UserError(f"MindFormers' LLaMA knows no rope_scaling of type {kind}; known are {', '.join(_SCALINGS)}")
    wanted = _LLAMA3 if kind == "llama3" else ("factor",)
    return {"extend_method": _SCALINGS[kind], "scaling_factor": {key: scaling[key] for key in wanted}}


def from_llama_config(values: Mapping[str, Any], where: str) -> LlamaConfig:
    """The inverse of to_llama_config, for any ``model_config`` of MindFormers 1.9.0.

    Keys that say how a model is computed, not which one it is, are not read.

    Args:
        values: the mapping.
        where: its file and place, for errors.

    Raises:
        UserError: a value of the wrong kind; a scaling of positions or a bias of only some projections, which Hugging
            Face's LLaMA does not have; sizes that contradict each other.
    """
    yaml = Yaml(values, where)
    known = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    known |= {key: yaml.get(key, _kind(key), default) for key, default in known.items() if key in _CHECKED}
    own = {ours: known[theirs] for theirs, ours in SIZES.items() if theirs in known}
    own.setdefault("max_position_embeddings", known.get("seq_length", 2048))
    own.setdefault("intermediate_size", _intermediate(known))
    own.setdefault("tie_word_embeddings", False)
    method = str(known.get("extend_method", "None"))
    if method != "None":
        kind = {theirs: ours for ours, theirs in _SCALINGS.items()}.get(method)
        factor = known.get("scaling_factor")
        if kind is None or not isinstance(factor, Mapping):
            raise UserError(
                f"{where}: extend_method is {method} with scaling_factor {factor!r}; read are None, and "
                f"{', '.join(_SCALINGS.values())} with a mapping as scaling_factor"
            )
        own["rope_scaling"] = {"rope_type": kind, **factor}
    biases = {bool(known.get(name, False)) for name in ("qkv_has_bias", "attn_proj_has_bias")}
    if len(biases) > 1:
        raise UserError(
            f"{where}: qkv_has_bias and attn_proj_has_bias differ, and Hugging Face's LLaMA has both biases or none; "
            "set them alike"
        )
    own["attention_bias"] = biases.pop()
    try:
        return LlamaConfig.from_dict({"model_type": "llama", **own})
    except UserError as e:
        raise UserError(f"{where}: {str(e).removeprefix('config.json: ')}") from None


def _kind(key: str) -> type:
    return float if key in _FLOATS else bool if key == "tie_word_embeddings" else int


def _intermediate(known: Mapping[str, Any]) -> int:
    """The width of the feed-forward layers where a YAML does not say it (LlamaFeedForward of MindFormers)."""
    inner = 4 * known["hidden_size"]
    if known.get("ffn_dim_multiplier") is not None:
        inner = int((known["ffn_dim_multiplier"] + 0.01) * inner)
    inner, step = int(2 * inner / 3), known.get("multiple_of", 256)
    return step * -(-inner // step)
