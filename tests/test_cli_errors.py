"""A user's mistakes: one line on standard error that names the value and the next step, exit code 2, nothing lost."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from msllm.cli import main


@pytest.fixture
def fails(capsys):
    """Runs a command line that must fail, and returns its one line of error."""

    def run(*argv):
        code = main([str(a) for a in argv])
        err = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        line = err[-1]
        assert line.startswith("error: ") and "Traceback" not in "\n".join(err)
        return line

    return run


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of the tiny model folder that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [{"instruction": f"say {w}", "output": w} for w in ("one", "two", "three", "four")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_unknown_command_and_option_get_the_nearest_spelling(fails):
    assert "did you mean 'finetune'" in fails("finetun")
    assert "did you mean '--learning_rate'" in fails("finetune", "--lerning_rate", "1")
    assert "did you mean '--tuning'" in fails("finetune", "--tunning", "lora")
    assert "did you mean 'merge'" in fails("ranktable", "merg")
    assert "after parallel comes verify, compile, plan" in fails("parallel", "zzz")


def test_hyphens_and_underscores_spell_one_option(fails):
    for option in ("--learning-rate", "--learning_rate"):
        assert "--learning_rate is 'fast'" in fails("finetune", "--model", "m", "--data", "d", f"{option}=fast")
    assert "unknown option --lerning-rate (did you mean" in fails("finetune", "--lerning-rate", "1")


def test_values_of_the_wrong_kind_are_named(fails, tmp_path):
    common = ("finetune", "--model", "m", "--data", "d", "--output", tmp_path / "o")
    assert "--learning_rate is 'fast', expected a number" in fails(*common, "--learning_rate", "fast")
    assert "--limit is 'x', expected a whole number" in fails(*common, "--limit", "x")
    assert "--tuning is 'lor' (did you mean 'lora'?), expected one of full, lora" in fails(*common, "--tuning", "lor")
    assert "expected one of bert, gpt2, openai-gpt; see" in fails("pretrain", "--family", "x")
    assert "missing: --data; see msllm finetune --help" in fails("finetune", "--model", "m")
    assert "lr_scheduler_type is 'linea'" in fails(*common, "--lr_scheduler_type", "linea")
    assert "per_device_train_batch_size is 0" in fails(*common, "--per_device_train_batch_size", "0")
    assert "add --tuning lora" in fails(*common, "--lora.r", "4")
    assert "output" in fails("finetune", "--model", "m", "--data", "d")


def test_a_folder_that_is_none_or_lacks_files(fails, copy, data, tmp_path):
    assert "nowhere is not a folder" in fails("chat", "--model", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "lacks config.json; found: nothing" in fails("chat", "--model", tmp_path / "empty")
    (copy / "model.safetensors").unlink()
    line = fails("generate", "--model", copy, "--prompt", "x")
    assert "lacks model.safetensors" in line and "found: " in line and "tokenizer.json" in line
    (copy / "tokenizer.json").unlink()
    assert "tokenizer.json" in fails("finetune", "--model", copy, "--data", data, "--output", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_unknown_model_type_lists_the_known(fails, copy):
    change_config(copy, model_type="lama")
    line = fails("chat", "--model", copy)
    assert "'lama' (did you mean 'llama'?); known are bert, bloom, gpt2, llama" in line
    change_config(copy, model_type="llama", architectures=["LlamaForSequenceClassification"])
    assert "LlamaForCausalLM" in fails("chat", "--model", copy)


def test_a_truncated_file_names_the_tensor(fails, copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "cut short: tensor " in (line := fails("chat", "--model", copy)) and "of shape (" in line
    path.write_bytes(whole[:5])
    assert "cut short" in fails("chat", "--model", copy)
    path.write_bytes(b"\x10" + bytes(7) + b"not json at all!" + bytes(64))
    assert "is not a safetensors file" in fails("chat", "--model", copy)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("warmup_rato: 0.1", "warmup_rato (did you mean 'warmup_ratio'?)"),
        ("parallel: {pipelin: 2}", "parallel.pipelin (did you mean 'parallel.pipeline'?)"),
    ],
)
def test_a_misspelt_key_of_a_file_of_options_is_named(fails, tmp_path, text, named):
    (tmp_path / "run.yaml").write_text(text + "\n")
    line = fails("pretrain", "--config", tmp_path / "run.yaml", "--data", "d", "--output", tmp_path / "out")
    assert line == f"error: the file of --config has an unknown key {named}; see msllm pretrain --help"


def test_config_and_weights_that_disagree_name_the_tensor_and_both_shapes(fails, copy):
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    shape = tensors[name].shape
    save_file({**tensors, name: np.zeros((shape[0] + 1, shape[1]), np.float32)}, copy / "model.safetensors")
    line = fails("chat", "--model", copy)
    assert name in line and str((shape[0] + 1, shape[1])) in line and str(tuple(shape)) in line
    save_file({k: v for k, v in tensors.items() if k != name}, copy / "model.safetensors")
    assert f"first {name}" in fails("chat", "--model", copy)
    save_file({**tensors, "model.layers.7.x": np.zeros(1, np.float32)}, copy / "model.safetensors")
    assert "model.layers.7.x" in fails("chat", "--model", copy)
    save_file(tensors, copy / "model.safetensors")
    change_config(copy, num_key_value_heads=3)
    assert "num_key_value_heads = 3" in fails("chat", "--model", copy)


def test_torch_files_are_sent_to_convert(fails, copy, tmp_path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert f"msllm convert --source {copy}" in fails("chat", "--model", copy)
    assert "cannot be read as tensors only" in fails("convert", "--source", copy, "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"instruction": ', "JSON"),
        (b'{"instruction": "a", "output": "b"}\n{"instruction": "c", "answer": "d"}\n', "line 2"),
    ],
    ids=["empty", "not UTF-8", "not JSON", "a key is missing"],
)
def test_bad_data_files(fails, tiny_model, tmp_path, content, expected):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    line = fails("finetune", "--model", tiny_model, "--data", path, "--output", tmp_path / "o")
    assert expected in line and "bad.jsonl" in line
    if expected == "line 2":
        assert "answer" in line and "output" in line
    assert not (tmp_path / "o").exists()


def test_an_output_folder_in_use_is_left_alone(fails, tiny_model, data, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "log.jsonl").write_text("precious")
    line = fails("finetune", "--model", tiny_model, "--data", data, "--output", tmp_path / "o")
    assert "--overwrite" in line and "--resume" in line
    assert (tmp_path / "o" / "log.jsonl").read_text() == "precious"


def test_a_prompt_longer_than_the_context(fails, tiny_model):
    line = fails("generate", "--model", tiny_model, "--prompt", "word " * 300)
    assert "the model's context is 128" in line


def test_nan_loss_stops_and_keeps_the_last_checkpoint(fails, tiny_model, data, tmp_path):
    line = fails(
        "finetune",
        "--model",
        tiny_model,
        "--data",
        data,
        "--output",
        tmp_path / "o",
        "--learning_rate",
        "1e30",
        "--max_grad_norm",
        "0",
        "--lr_scheduler_type",
        "constant",
        "--save_steps",
        "1",
        "--per_device_train_batch_size",
        "2",
        "--max_steps",
        "30",
    )
    assert "step " in line and "learning rate 1e+30" in line
    kept = tmp_path / "o" / "checkpoint-1"
    assert str(tmp_path / "o" / "checkpoint-") in line and kept.parent.is_dir()


def test_a_lora_target_that_matches_nothing_lists_the_linear_names(fails, tiny_model, data, tmp_path):
    line = fails(
        "finetune",
        "--model",
        tiny_model,
        "--data",
        data,
        "--output",
        tmp_path / "o",
        "--tuning",
        "lora",
        "--lora.target_modules",
        "c_attn",
    )
    assert "down_proj, gate_proj, k_proj" in line
    assert not (tmp_path / "o").exists()


def test_a_bert_does_not_chat(fails, tmp_path):
    from msllm.models.bert import BertConfig, BertModel
    from msllm.tokenization import train_tokenizer

    values = {
        "vocab_size": 300,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    BertModel(BertConfig.from_dict(values)).save_pretrained(tmp_path / "bert", train_tokenizer(["some text"], 280))
    assert "BertModel, which does not predict the next token" in fails("chat", "--model", tmp_path / "bert")


def test_ctrl_c_while_mindspore_is_imported_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "msllm", "generate", "--model", str(tmp_path), "--prompt", "hi"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libmindspore_core" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1 and errors.startswith("error: ")
