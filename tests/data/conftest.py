import pytest

from msllm.tokenization import load_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def real(data_folder):
    """Returns a function that loads a real vocabulary, or skips."""

    def load(name):
        if not (data_folder / "tokenizers" / name).is_dir():
            pytest.skip(f"{data_folder}/tokenizers/{name} is not there")
        return load_tokenizer(data_folder / "tokenizers" / name)

    return load


@pytest.fixture(scope="session")
def letters():
    """An id a character: ids 0 to 3 are pad, unk, bos, eos."""
    return train_tokenizer(["abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?!\n"], kind="char")
