"""Sizes of published models by name."""

import pytest

from msllm.errors import UserError
from msllm.models.presets import PRESETS, config_of, longest

# Billions of parameters, as the papers and model cards say (0.124 etc. without a second copy of a tied head).
BILLIONS = {
    "gpt2": 0.124,
    "gpt2-medium": 0.355,
    "gpt2-large": 0.774,
    "gpt2-xl": 1.558,
    "llama2-7b": 6.738,
    "llama2-13b": 13.016,
    "llama2-70b": 68.977,
    "llama3-8b": 8.030,
    "llama3-70b": 70.554,
    "bloom-560m": 0.559,
    "bloom-1b7": 1.722,
    "bloom-7b1": 7.069,
}


def parameters(config) -> int:
    """Counted by hand from the sizes."""
    kind = config.model_type
    if kind == "llama":
        D, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        kv = D * config.num_key_value_heads // config.num_attention_heads
        return 2 * config.vocab_size * D + L * (2 * D * D + 2 * D * kv + 3 * D * F + 2 * D) + D
    D, L = (config.n_embd, config.n_layer) if kind == "gpt2" else (config.hidden_size, config.n_layer)
    block = 12 * D * D + 13 * D
    ends = config.n_positions * D if kind == "gpt2" else 2 * D  # positions, or the norm of the embedding
    return config.vocab_size * D + ends + L * block + 2 * D


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
    config = config_of(name)
    assert round(parameters(config) / 1e9, 3) == BILLIONS[name]
    assert config.model_type == PRESETS[name]["model_type"]


def test_a_folder_and_a_file_are_read_and_others_refused(tiny_model, tmp_path):
    config = config_of(tiny_model)
    assert config == config_of(tiny_model / "config.json") and longest(config) == 128
    assert longest(config_of("gpt2")) == 1024 and longest(config_of("bloom-560m")) is None
    (tmp_path / "list.json").write_text("[]")
    for wrong, message in (
        ("bloom-7b", "unknown model 'bloom-7b'.*did you mean 'bloom-7b1'"),
        (tmp_path / "list.json", "holds a list, expected an object"),
        (tmp_path, "lacks config.json"),
    ):
        with pytest.raises(UserError, match=message):
            config_of(wrong)
