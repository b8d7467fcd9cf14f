import json
import subprocess
import sys

import pytest

from msllm.errors import UserError
from msllm.tokenization import load_tokenizer


def test_a_folder_without_a_tokenizer_lists_what_it_holds(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(UserError, match=r"has no tokenizer: expected tokenizer.json.*it holds: config.json, model.saf"):
        load_tokenizer(tmp_path)


def test_an_empty_folder_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="it holds: nothing"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("have, lack", [("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")])
def test_half_a_vocabulary_names_the_other_half(tmp_path, have, lack):
    (tmp_path / have).write_text("{}")
    with pytest.raises(UserError, match=f"lacks {lack}, which goes with its {have}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(UserError, match=name):
        load_tokenizer(tmp_path)


def test_a_damaged_config_is_named(vocabulary):
    folder = vocabulary("gpt2")
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json holds a list, expected a JSON object"):
        load_tokenizer(folder)


def test_a_vocabulary_that_is_not_byte_level_is_refused_rather_than_misread(vocabulary):
    with pytest.raises(UserError, match="read as GPT-2's byte-level BPE, and this is not"):
        load_tokenizer(vocabulary("openai-gpt"))
    with pytest.raises(UserError, match="class Qwen2Tokenizer"):
        load_tokenizer(vocabulary("gpt2", tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"}))


def test_a_bert_vocabulary_without_its_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\na\nb\n")
    with pytest.raises(UserError, match=r"lacks \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path)


def test_adding_a_token_that_is_not_named_is_refused(vocabulary):
    with pytest.raises(UserError, match="add_bos_token"):
        load_tokenizer(vocabulary("llama2", tokenizer_config={"tokenizer_class": "LlamaTokenizer", "bos_token": None}))


def test_pad_may_be_absent_and_ids_before_a_text_are_known(vocabulary):
    assert load_tokenizer(vocabulary("gpt2")).pad_token_id is None
    assert load_tokenizer(vocabulary("gpt2")).prefix_ids == []
    assert load_tokenizer(vocabulary("llama2")).prefix_ids == [1]
    assert load_tokenizer(vocabulary("bert-base-chinese")).prefix_ids == [101]


def test_too_short_a_pair_says_the_least_length(vocabulary):
    with pytest.raises(UserError, match="use at least 3"):
        load_tokenizer(vocabulary("bert-base-chinese")).encode_pair("a", "b", max_length=2)


def test_saving_keeps_unknown_keys_and_the_sentencepiece_file(vocabulary, tmp_path):
    folder = vocabulary("llama2", tokenizer_config={"tokenizer_class": "LlamaTokenizer", "model_max_length": 4096})
    load_tokenizer(folder).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/tokenizer_config.json").read_text())["model_max_length"] == 4096
    assert (tmp_path / "saved/tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_neither_transformers_nor_mindspore_is_imported():
    code = (
        "import sys, msllm.tokenization, msllm.data; "
        "print([name for name in ('transformers', 'mindspore', 'torch', 'datasets') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
