"""The commands do what a user asks of them."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm.cli import main


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"word {i}"}]}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def finetune(model, data, output, *more):
    return main(
        [
            "finetune",
            "--model",
            str(model),
            "--data",
            str(data),
            "--output",
            str(output),
            "--max_steps",
            "3",
            "--per_device_train_batch_size",
            "4",
            "--learning_rate",
            "1e-2",
            *more,
        ]
    )


def test_module_and_script_are_one_program():
    run = subprocess.run([sys.executable, "-m", "msllm", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"msllm {msllm.__version__}\n"


def test_help_lists_commands_and_options_with_defaults(capsys):
    assert main(["--help"]) == 0
    assert "finetune" in capsys.readouterr().out
    assert main(["ranktable"]) == 0
    assert "ranktable merge" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "--gradient_accumulation_steps" in text and "default: 5e-05" in text and "--lora.r" in text


def test_finetune_leaves_a_folder_that_transformers_reads(tiny_model, data, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    out = tmp_path / "out"
    assert finetune(tiny_model, data, out, "--val_size", "0.25") == 0
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "loss.png"} <= {
        p.name for p in out.iterdir()
    }
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log] == [1, 2, 3, 3] and "eval_loss" in log[-1]
    ids = np.array([msllm.load_tokenizer(out).encode("say 3, word by word")], np.int32)
    ours = msllm.from_pretrained(out)(Tensor(ids)).asnumpy()
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out)(torch.tensor(ids)).logits.numpy()
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    before = msllm.from_pretrained(tiny_model).state_dict()
    assert all(not np.array_equal(v, before[k]) for k, v in msllm.from_pretrained(out).state_dict().items())


def test_a_config_file_and_flags_on_top(tiny_model, data, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny_model}\ndata: {data}\noutput: {tmp_path / 'a'}\nmax_steps: 2\n"
        f"learning_rate: 0.001\nlr_scheduler_type: constant\n"
    )
    assert main(["finetune", "--config", str(config), "--learning_rate", "0.002"]) == 0
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [e["learning_rate"] for e in log] == [0.002, 0.002]


def test_lora_leaves_an_adapter_that_chats_and_merges(tiny_model, data, tmp_path, capsys):
    out, whole = tmp_path / "adapter", tmp_path / "whole"
    assert (
        finetune(
            tiny_model, data, out, "--tuning", "lora", "--lora.r", "2", "--lora.target_modules", "q_proj", "v_proj"
        )
        == 0
    )
    assert "LoRA on 4 layers" in capsys.readouterr().err
    assert not (out / "model.safetensors").exists()
    ask = ["--prompt", "say 1", "--max_new_tokens", "6", "--json_output"]
    assert main(["generate", "--model", str(out), *ask]) == 0
    adapted = capsys.readouterr().out
    assert main(["merge", "--adapter", str(out), "--output", str(whole)]) == 0
    capsys.readouterr()
    assert main(["generate", "--model", str(whole), *ask]) == 0
    assert capsys.readouterr().out == adapted


def test_packing_trains_on_the_same_tokens(tiny_model, data, tmp_path, capsys):
    """A packed batch of all examples has the loss of an unpacked one: examples do not see each other."""
    first = {}
    for name, more in (("plain", ()), ("packed", ("--packing", "--max_length", "64"))):
        assert (
            main(
                [
                    "finetune",
                    "--model",
                    str(tiny_model),
                    "--data",
                    str(data),
                    "--output",
                    str(tmp_path / name),
                    "--max_steps",
                    "1",
                    "--per_device_train_batch_size",
                    "12",
                    *more,
                ]
            )
            == 0
        )
        first[name] = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])
    assert "packing: 12 examples -> " in capsys.readouterr().err
    assert first["packed"]["loss"] == pytest.approx(first["plain"]["loss"], rel=1e-5)
    assert first["packed"]["grad_norm"] == pytest.approx(first["plain"]["grad_norm"], rel=1e-5)


def test_the_first_loss_of_a_new_model_is_ln_v(tiny_model, data, tmp_path):
    assert finetune(tiny_model, data, tmp_path / "o") == 0
    first = json.loads((tmp_path / "o" / "log.jsonl").read_text().splitlines()[0])
    vocab = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    # Logits start with a spread of 0.02 * |x| = 0.08, and the few different targets average it only a little.
    assert first["loss"] == pytest.approx(np.log(vocab), rel=0.02)


def test_preview_shows_what_is_trained_and_trains_nothing(tiny_model, data, tmp_path, capsys):
    assert main(["finetune", "--model", str(tiny_model), "--data", str(data), "--preview"]) == 0
    text = capsys.readouterr().out
    assert "[+ word 0</s>" in text.replace("\n", "") and sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl"]


def test_generate_answers_a_file_in_batches(tiny_model, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("say one\nsay two three four\nword\n")
    base = ["generate", "--model", str(tiny_model), "--max_new_tokens", "5", "--json_output"]
    assert main([*base, "--prompts_file", str(tmp_path / "prompts.txt"), "--batch_size", "2"]) == 0
    together = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    alone = []
    for line in together:
        assert main([*base, "--prompt", line["prompt"]]) == 0
        alone.append(json.loads(capsys.readouterr().out))
    assert together == alone and len(alone) == 3


def test_the_options_of_a_checkpoint_are_used_unless_given(tiny_model, tmp_path, capsys):
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "m")
    (model / "generation_config.json").write_text(json.dumps({"max_new_tokens": 2, "eos_token_id": 299}))
    for more, count in (((), 2), (("--max_new_tokens", "4"), 4)):
        assert main(["generate", "--model", str(model), "--prompt", "say", "--json_output", *more]) == 0
        out = json.loads(capsys.readouterr().out)
        assert (out["finish_reason"], out["new_tokens"]) == ("length", count)


def test_chat_streams_remembers_and_saves(tiny_model, tmp_path, capsys, monkeypatch):
    saved = tmp_path / "talk.jsonl"
    lines = ["hello", "/unknown", "again", f"/save {saved}", "/reset", "/system Be brief.", "and now", "/help", "/exit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert main(["chat", "--model", str(tiny_model), "--max_new_tokens", "4"]) == 0
    out, err = capsys.readouterr()
    assert "error: unknown command /unknown; /help lists them" in err
    talk = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in talk] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in talk[::2]] == ["hello", "again"]
    assert "/reset" in out and "(system prompt: Be brief.)" in out


def test_convert_reads_torch_files_without_running_code(tiny_model, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    import shutil

    source = shutil.copytree(tiny_model, tmp_path / "source")
    tensors = {k: torch.from_numpy(v.copy()) for k, v in msllm.from_pretrained(tiny_model).state_dict().items()}
    (source / "model.safetensors").unlink()
    torch.save({k: v.to(torch.bfloat16) for k, v in tensors.items()}, source / "pytorch_model.bin")
    assert main(["convert", "--source", str(source), "--output", str(tmp_path / "new")]) == 0
    for name, value in msllm.from_pretrained(tmp_path / "new").state_dict().items():
        assert np.array_equal(value, tensors[name].to(torch.bfloat16).float().numpy())
    torch.save({"x": print}, source / "pytorch_model.bin")
    assert main(["convert", "--source", str(source), "--output", str(tmp_path / "evil")]) == 2
    assert not (tmp_path / "evil").exists()


def test_info_names_versions_device_and_kernels(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("mindspore                2.9.0", "device", "kernels", "threads"):
        assert word in out


def test_the_quick_demo_runs_end_to_end(tmp_path, capsys):
    assert main(["demo", "--quick", "--output", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert "exact match on 60 held-out questions" in out and "msllm chat --model" in out
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["held_out_records"] == 60 and 0 <= results["exact_match"] <= 1
