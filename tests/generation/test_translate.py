"""Translation: greedy and beam search over a random model, beside a plain search without cache or batches."""

import io
import sys

import numpy as np
import pytest
from mindspore import Tensor

from msllm.cli import main
from msllm.errors import UserError
from msllm.files import read_json_lines
from msllm.generation import GenerationConfig, generate_ids
from msllm.generation.translate import translate
from msllm.models.transformer import TransformerConfig, TransformerForTranslation
from msllm.models.weights import read_weights
from msllm.tokenization import train_tokenizer

BOS, EOS = 2, 3


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig.from_dict(
        {
            "vocab_size": 40,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "attention_heads": 2,
            "ffn_dim": 24,
            "max_positions": 24,
            "eos_token_id": EOS,
            "decoder_start_token_id": BOS,
        }
    )
    network = TransformerForTranslation(config).set_train(False)
    rng = np.random.default_rng(3)
    for p in network.get_parameters():
        p.set_data(Tensor(rng.normal(size=p.shape).astype(np.float32) * (0.6 if p.ndim > 1 else 0.3)))
    return network


def log_probs(model, source, target):
    logits = model(Tensor(np.array([source], np.int32)), None, Tensor(np.array([[BOS, *target]], np.int32))).asnumpy()
    x = logits[0, -1].astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def plain_beam_search(model, source, beams, steps, penalty):
    """Every step looks at all continuations of all beams; a hypothesis that ends is set aside."""
    running, finished = [(0.0, [])], []
    for _ in range(steps):
        grown = [
            (score + p, [*ids, token])
            for score, ids in running
            for token, p in enumerate(log_probs(model, source, ids))
        ]
        grown.sort(key=lambda g: -g[0])
        finished += [(s / len(ids) ** penalty, ids) for s, ids in grown[:beams] if ids[-1] == EOS]
        running = [g for g in grown if g[1][-1] != EOS][:beams]
    finished += [(s / len(ids) ** penalty, ids) for s, ids in running]
    return max(finished)[1]


SOURCES = [[5, 6, 7, EOS], [30, EOS], [9, 9, 12, 13, 14, 15, EOS]]


def test_greedy_in_a_batch_equals_one_by_one_without_a_cache(model):
    found = generate_ids(model, SOURCES, GenerationConfig(max_new_tokens=8))
    for source, result in zip(SOURCES, found, strict=True):
        target = []
        while len(target) < 8 and target[-1:] != [EOS]:
            target.append(int(log_probs(model, source, target).argmax()))
        assert result.ids == target


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_beam_search(model, penalty):
    config = GenerationConfig(max_new_tokens=6, num_beams=3, length_penalty=penalty)
    found = generate_ids(model, SOURCES, config)
    assert [f.ids for f in found] == [plain_beam_search(model, s, 3, 6, penalty) for s in SOURCES]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("translator") / "model"
    tokenizer = train_tokenizer(["ein haus, zwei häuser", "a house, two houses"], kind="char", vocab_size=40)
    config = TransformerConfig.from_dict({**model.config.to_dict(), "vocab_size": len(tokenizer)})
    TransformerForTranslation(config).save_pretrained(path, tokenizer)
    return path


def test_translations_keep_their_order_and_blank_lines(folder):
    from msllm.tuning.loading import open_checkpoint

    network, tokenizer = open_checkpoint(str(folder))
    config = GenerationConfig(num_beams=2, max_new_tokens=12)
    lines = ["haus", "", "zwei häuser", "ein"]
    together = translate(network, tokenizer, lines, config, batch_size=2)
    assert together[1] == ""
    assert together == [translate(network, tokenizer, [line], config)[0] for line in lines]
    with pytest.raises(UserError, match=r"sentence 2 .* has 31 tokens, the model takes 24"):
        translate(network, tokenizer, ["ein", "a" * 30], config)


def test_command(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "in.txt").write_text("haus\nzwei\n", encoding="utf-8")
    assert main(["translate", "--model", str(folder), "--file", str(tmp_path / "in.txt"), "--max_new_tokens", "5"]) == 0
    from_file = capsys.readouterr().out
    assert len(from_file.splitlines()) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"haus\nzwei\n")))
    assert main(["translate", "--model", str(folder), "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out == from_file


def test_command_refuses_what_does_not_translate(tiny_model, capsys):
    assert main(["translate", "--model", str(tiny_model), "--text", "x"]) == 2
    assert "LlamaForCausalLM, which does not translate" in capsys.readouterr().err


def test_train_translator_and_resume(tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text("".join(f"wort {i}\tword {i}\n" for i in range(40)), encoding="utf-8")
    small = ["--vocab_size", "300", "--d_model", "16", "--layers", "1", "--heads", "2", "--ffn_dim", "16"]
    steps = ["--train_batch_tokens", "64", "--max_steps", "4", "--save_steps", "1", "--average_last", "2"]
    output = ["--output", str(tmp_path / "out"), "--eval_source", str(tmp_path / "pairs.tsv")]
    command = ["train-translator", "--source", str(tmp_path / "pairs.tsv"), *small, *steps, *output]
    assert main(command) == 0
    assert "the result is the mean of steps 3 and 4" in capsys.readouterr().err
    assert main(command) == 2 and "not empty" in capsys.readouterr().err
    whole = {e["step"]: e["loss"] for e in read_json_lines(tmp_path / "out" / "log.jsonl") if "loss" in e}
    averaged = read_weights(tmp_path / "out")
    assert main([*command, "--resume", "auto"]) == 0  # from step 3
    again = {e["step"]: e["loss"] for e in read_json_lines(tmp_path / "out" / "log.jsonl") if "loss" in e}
    assert again == whole and len(whole) == 4
    last, end = read_weights(tmp_path / "out" / "checkpoint-3"), read_weights(plain_end(command, tmp_path))
    for name, value in averaged.items():
        np.testing.assert_allclose(value, (last[name] + end[name]) / 2, rtol=1e-6, atol=1e-7)
    assert main(["translate", "--model", str(tmp_path / "out"), "--text", "wort 7"]) == 0
    assert main([*command, "--resume", "auto", "--label_smoothing", "0.2"]) == 2
    assert "label_smoothing = 0.1, now it is 0.2" in capsys.readouterr().err


def plain_end(command, tmp_path):
    """The folder of the same run without an average."""
    options = ["--average_last", "1", "--output", str(tmp_path / "plain")]
    assert main([*command, *options]) == 0
    return tmp_path / "plain"


def test_no_translation_gets_longer_than_its_source_by_more_than_fifty(model, monkeypatch):
    from msllm.generation import generate

    monkeypatch.setattr(generate, "LONGER_THAN_SOURCE", 2)
    for beams in (1, 3):
        config = GenerationConfig(max_new_tokens=20, num_beams=beams, eos_token_id=[])
        found = generate_ids(model, SOURCES, config)
        assert [len(f.ids) for f in found] == [len(s) + 2 for s in SOURCES]
        assert [f.ids for f in found] == [generate_ids(model, [s], config)[0].ids for s in SOURCES]


def test_options_that_contradict_are_refused(tmp_path, capsys):
    (tmp_path / "a.tsv").write_text("a\tb\n")
    command = ["train-translator", "--source", str(tmp_path / "a.tsv"), "--output", str(tmp_path / "out")]
    for more, words in (
        (["--average_last", "5"], "raise save_total_limit to 4"),
        (["--eval_target", "x"], "eval_source is missing"),
        (["--dropout", "1.0"], "dropout is 1.0"),
        (["--label_smoothing", "1.0"], "label_smoothing is 1.0"),
    ):
        assert main([*command, "--vocab_size", "300", *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
