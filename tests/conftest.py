"""Fixtures that every folder of tests shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real files, from MSLLM_DATA; tests that ask for it skip by name without it."""
    folder = os.environ.get("MSLLM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MSLLM_DATA names no folder of real files")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random two-layer LLaMA of 128 positions with a small byte-level tokenizer; tests must not write to it."""
    from msllm.models.llama import LlamaConfig, LlamaForCausalLM
    from msllm.tokenization import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = train_tokenizer(["say one two three four, word by word", "1 2 3"], 300)
    config = LlamaConfig.from_dict(
        {
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder, tokenizer)
    return folder
