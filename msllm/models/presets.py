"""Sizes of published models by name, for work that needs a configuration and no weights: planning, compiling, training
from nothing. The values are those of each model's config.json."""

from pathlib import Path

from msllm.errors import UserError, nearest
from msllm.files import read_json
from msllm.models.config import ModelConfig


def _gpt2(width: int, layers: int, heads: int) -> dict:
    return {"model_type": "gpt2", "vocab_size": 50257, "n_embd": width, "n_layer": layers, "n_head": heads}


def _llama(width: int, inner: int, layers: int, heads: int, **more) -> dict:
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def _bloom(width: int, layers: int, heads: int) -> dict:
    return {
        "model_type": "bloom",
        "vocab_size": 250880,
        "hidden_size": width,
        "n_layer": layers,
        "n_head": heads,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }


_LLAMA3 = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192, "num_key_value_heads": 8}
_LLAMA3 |= {"bos_token_id": 128000, "eos_token_id": 128001}

PRESETS = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama2-7b": _llama(4096, 11008, 32, 32),
    "llama2-13b": _llama(5120, 13824, 40, 40),
    "llama2-70b": _llama(8192, 28672, 80, 64, num_key_value_heads=8),
    "llama3-8b": _llama(4096, 14336, 32, 32, **_LLAMA3),
    "llama3-70b": _llama(8192, 28672, 80, 64, **_LLAMA3),
    "bloom-560m": _bloom(1024, 24, 16),
    "bloom-1b7": _bloom(2048, 24, 16),
    "bloom-7b1": _bloom(4096, 30, 32),
}


def longest(config: ModelConfig) -> int | None:
    """Returns the tokens that a model of this configuration takes at most, None where there is no bound."""
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def example_length(config: ModelConfig, most: int = 4096) -> int:
    """Returns the tokens of an example where nobody says: what the model takes, at most ``most``."""
    return min(longest(config) or most, most)


def check_length(config: ModelConfig, length: int, option: str) -> None:
    """Raises UserError, which names the option, where the model does not take examples of ``length`` tokens."""
    most = longest(config)
    if length < 1 or (most is not None and length > most):
        bound = "or more" if most is None else f"to {most}, what the model takes"
        raise UserError(f"{option} is {length}, expected 1 {bound}; change it")


def config_of(name: str | Path) -> ModelConfig:
    """Returns the configuration of a preset, of a Hugging Face folder, or of a config.json.

    Raises:
        UserError: neither a preset nor a path; as from_pretrained for a folder's config.json.
    """
    if str(name) not in PRESETS and not Path(name).exists():
        raise UserError(
            f"unknown model {str(name)!r}{nearest(str(name), PRESETS)}; give a Hugging Face folder, a config.json, or "
            f"one of {', '.join(PRESETS)}"
        )
    from msllm.models.pretrained import model_class, read_config  # MindSpore takes seconds: after the name's mistakes

    if str(name) in PRESETS:
        values, where = PRESETS[str(name)], str(name)
    elif Path(name).is_file():
        values, where = read_json(name), str(name)
        if not isinstance(values, dict):
            raise UserError(f"{name} holds a {type(values).__name__}, expected an object as in config.json")
    else:
        values, where = read_config(name), f"{name}/config.json"
    return model_class(values, where).config_class.from_dict(values)
