"""Pre-training a GPT on a token file: the loss, the order, resuming, and what is refused."""

import math

import numpy as np
import pytest

import msllm
from msllm import kernels
from msllm.commands.pretrain import pretrain
from msllm.data.token_file import RandomCrops, TokenFile, Windows, write_tokens
from msllm.errors import UserError
from msllm.files import read_json, read_json_lines, write_json
from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
from msllm.tokenization import load_tokenizer, train_tokenizer
from msllm.training import Trainer, TrainingArguments
from msllm.training.blocks import BLOCKS
from tests.training.test_resume import STEPS, log, run_until

SIZES = {"hidden_size": 16, "layers": 2, "heads": 2, "max_positions": 32}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder with train.bin of 2,000 ids, validation.bin of 150 and a tokenizer of 260 ids; not to be written to."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = train_tokenizer(["one two three"], 260)
    tokenizer.save_pretrained(folder)
    rng = np.random.default_rng(0)
    # Each id but tells the next: there is something to learn.
    ids = (np.cumsum(rng.integers(1, 3, 2150)) * 7) % len(tokenizer)
    for name, part in (("train.bin", ids[:2000]), ("validation.bin", ids[2000:])):
        write_tokens(folder / name, [part], tokenizer, "words")
    return folder


def tiny(dropout=0.0, vocab_size=260, n_positions=32):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": n_positions, "vocab_size": vocab_size}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout))


def mean_loss(model, examples):
    tensors, count = BLOCKS.to_device(BLOCKS.collate(examples))
    return float(BLOCKS.loss(model, tensors).asnumpy()) / count, count


def test_the_loss_is_that_of_transformers_and_torch(tokens, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = tiny(n_positions=33).set_train(False)
    rng = np.random.default_rng(1)
    for p in model.get_parameters():  # larger than those of a new model, so that the losses differ from ln V
        p.set_data(type(p.data)(rng.normal(0, 0.3, p.shape).astype(np.float32)))
    model.save_pretrained(tmp_path / "gpt")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt").eval()
    train = TokenFile.open(tokens / "train.bin")
    crops = RandomCrops(train, 32, 5, seed=1)[:]
    ids = torch.tensor(np.stack([c["input_ids"] for c in crops]).astype(np.int64))
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.item()
    ours, count = mean_loss(model, crops)
    assert count == 5 * 32 and abs(ours - expected) < 1e-5 * expected
    # Windows whose last one is short, an empty row beside them, padded further: the loss of each token by itself.
    windows = Windows(TokenFile.open(tokens / "validation.bin"), 32)[:]
    with torch.no_grad():
        total = 0.0
        for window in windows:
            row = torch.tensor(window["input_ids"].astype(np.int64))
            total += torch.nn.functional.cross_entropy(
                theirs(row[None, :-1]).logits[0], row[1:], reduction="sum"
            ).item()
    tensors, count = BLOCKS.to_device(BLOCKS.collate([*windows, {"input_ids": []}], 3, 33))
    assert count == 149 and tensors["attention_mask"].shape == (len(windows) + 1, 33)
    assert abs(float(BLOCKS.loss(model, tensors).asnumpy()) - total) < 1e-5 * total


def test_collating_pads_and_moves_the_labels():
    batch = BLOCKS.collate([{"input_ids": np.array([1, 2, 3, 4])}, {"input_ids": [5, 6]}, {"input_ids": []}], 9)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3], [5, 9, 9], [9, 9, 9]],
        "labels": [[2, 3, 4], [6, -100, -100], [-100, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [0, 0, 0]],
    }
    assert all(value.dtype == np.int32 for value in batch.values())
    tensors, count = BLOCKS.to_device(batch)
    assert count == 4 and tensors["targets"].asnumpy().tolist() == batch["labels"].reshape(-1).tolist()
    assert "attention_mask" not in BLOCKS.to_device(BLOCKS.collate([{"input_ids": [1, 2, 3]}]))[0]
    assert BLOCKS.collate([{"input_ids": [1, 2, 3]}], pad_to_multiple_of=4)["labels"].tolist() == [[2, 3, -100, -100]]


def arguments(**more):
    values = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "eval_steps": 4}
    values |= {"learning_rate": 1e-2, "save_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2, "seed": 5}
    return TrainingArguments(**{**values, **more})


def test_a_run_killed_at_any_step_and_resumed_writes_the_same_log(tokens, tmp_path):
    train, held_out = (TokenFile.open(tokens / name) for name in ("train.bin", "validation.bin"))
    tiny(0.2).save_pretrained(tmp_path / "start")

    def trainer(folder):
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "start")
        crops = RandomCrops(train, 16, STEPS * 4, 5)
        return Trainer(model, arguments(), crops, folder, Windows(held_out, 16), objective=BLOCKS)

    trainer(tmp_path / "whole").train()
    expected = log(tmp_path / "whole")
    assert len({e["loss"] for e in expected if "loss" in e}) == STEPS
    for step in (1, 4, 7):
        folder = tmp_path / f"killed-{step}"
        run_until(trainer(folder), step)
        trainer(folder).train(resume="auto")
        assert log(folder) == expected, step
    other = trainer(tmp_path / "killed-1")
    other.train_data = RandomCrops(train, 16, STEPS * 4, 6)
    other.state.fingerprint = other._fingerprint()
    with pytest.raises(
        UserError, match=r"data = 36 examples, random crops of 16 from 2000 tokens .* seed 5, now it is"
    ):
        other.train(resume=str(tmp_path / "killed-1" / "checkpoint-8"))


def test_the_command_trains_a_new_gpt2_and_goes_on_from_it(tokens, tmp_path, capsys):
    first = tmp_path / "first"
    training = arguments(max_steps=30, gradient_accumulation_steps=1, per_device_train_batch_size=8, eval_steps=10)
    pretrain(str(tokens), training, str(first), **SIZES, dropout=0.0)
    entries = read_json_lines(first / "log.jsonl")
    losses = [e["loss"] for e in entries if "loss" in e]
    assert losses[0] == pytest.approx(math.log(260), rel=0.01) and losses[-1] < losses[0] - 1
    assert len([e for e in entries if "eval_loss" in e]) == 3 and entries[-1]["eval_loss"] < losses[0] - 1
    config, tokenizer = read_json(first / "config.json"), load_tokenizer(first)
    assert (config["model_type"], config["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
    assert [config[f"{n}_token_id"] for n in ("bos", "eos", "pad")] == [
        getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")
    ]
    assert (config["n_positions"], config["n_inner"], config["attn_pdrop"]) == (32, None, 0.0)
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(f"msllm generate --model {first} --prompt TEXT")
    # What was trained is what is read: the same loss, and a run that goes on starts from it.
    windows = Windows(TokenFile.open(tokens / "validation.bin"), 32)[:]
    assert mean_loss(msllm.from_pretrained(first), windows)[0] == pytest.approx(entries[-1]["eval_loss"], rel=1e-5)
    again = arguments(max_steps=2, learning_rate=0.0, warmup_steps=0)
    pretrain(str(tokens / "train.bin"), again, str(tmp_path / "more"), str(tokens), str(first), sampling="sequential")
    more = read_json_lines(tmp_path / "more" / "log.jsonl")
    assert more[-1]["eval_loss"] == pytest.approx(entries[-1]["eval_loss"], rel=1e-5)


def test_the_command_resumes_to_the_same_losses(tokens, tmp_path):
    def run(**how):
        pretrain(str(tokens), arguments(max_steps=6, save_steps=2), str(tmp_path / "run"), **SIZES, **how)

    run()
    expected = log(tmp_path / "run")
    run(resume=str(tmp_path / "run" / "checkpoint-2"))
    assert log(tmp_path / "run") == expected and len(expected) == 6 + 2


def test_an_epoch_of_random_crops_is_as_many_as_fit(tokens, tmp_path):
    training = arguments(
        max_steps=-1, num_train_epochs=2, per_device_train_batch_size=50, gradient_accumulation_steps=1
    )
    pretrain(str(tokens), training, str(tmp_path / "random"), **SIZES, block_size=16)
    # 2,000 tokens are 125 crops of 16; two epochs of them, all different, are 5 steps of 50.
    assert log(tmp_path / "random")[-1]["step"] == 5
    training = arguments(
        max_steps=-1, num_train_epochs=1, per_device_train_batch_size=32, gradient_accumulation_steps=1
    )
    pretrain(str(tokens), training, str(tmp_path / "windows"), **SIZES, block_size=16, sampling="sequential")
    assert log(tmp_path / "windows")[-1]["step"] == 4  # 1,999 targets are 125 windows


def test_a_compiled_step_gets_one_shape_without_a_look_at_the_examples(tokens, tmp_path, monkeypatch):
    train, held_out = (TokenFile.open(tokens / name) for name in ("train.bin", "validation.bin"))
    chosen = kernels.active()
    kernels.use("stock")
    monkeypatch.setattr(RandomCrops, "__getitem__", None)
    try:
        parts = RandomCrops(train, 16, 40), tmp_path, Windows(held_out, 16)
        trainer = Trainer(tiny(), arguments(jit=True), *parts, objective=BLOCKS)
    finally:
        kernels.use(chosen)
    assert trainer.fixed_length == 16


def test_what_does_not_fit_together_is_refused(tokens, tmp_path):
    out = str(tmp_path / "out")

    def refused(match, data=tokens, eval_data=None, model=None, **options):
        with pytest.raises(UserError, match=match):
            pretrain(str(data), arguments(), out, eval_data, model, **options)
        assert not (tmp_path / "out").exists()

    empty, records, llama = tmp_path / "empty", tmp_path / "records", tmp_path / "bert"
    for folder in (empty, records, llama):
        folder.mkdir()
    write_json(records / "manifest.json", {})
    write_json(llama / "config.json", {"model_type": "bert"})
    refused("has neither train.bin nor manifest.json", empty)
    refused("cannot read .*no.bin: No such file", tokens / "no.bin", model=None)
    refused("holds token ids, for a GPT, and the model is a bert; .* msllm pretraining-data", family="bert")
    refused("holds BERT's pairs of sentences, and the model is a gpt2; .* msllm data tokenize", records, family="gpt2")
    refused("the model is a bert", model=str(llama))
    refused("family is gpt2 and .* holds a bert", model=str(llama), family="gpt2")
    refused("unknown family 'gpt'", family="gpt")
    refused("block_size and sampling are options for a GPT", records, block_size=8)
    refused("hidden_size, dropout and model were given", model=str(llama), hidden_size=8, dropout=0.0)
    refused("intermediate_size is 5, and that of an openai-gpt", family="openai-gpt", intermediate_size=5)
    refused("block_size is 33, expected 1 to 32, the model", **SIZES, block_size=33)
    refused("block_size is 0", **SIZES, block_size=0)
    refused(
        "train.bin has 2000 tokens, and an example of block_size 4000 takes at least 4001",
        **{**SIZES, "max_positions": 4000},
    )
    # A validation file of another tokenizer.
    other = train_tokenizer(["else"], kind="char")
    write_tokens(tmp_path / "other.bin", [[4, 5]], other, "elsewhere")
    refused(
        r"other.bin was written with .* of elsewhere .7 tokens., and the tokenizer of .* has .* .260 tokens.",
        eval_data=str(tmp_path / "other.bin"),
    )
    # A model that knows fewer ids than the data hold.
    tiny(vocab_size=200).save_pretrained(tmp_path / "small", load_tokenizer(tokens))
    refused("the tokenizer has 260 ids, the model 200", model=str(tmp_path / "small"))


def test_a_new_model_of_named_sizes(tokens, tmp_path):
    """config_name takes a config.json, as of a published model, and starts from random weights."""
    config = {"model_type": "llama", "vocab_size": 270, "hidden_size": 16, "intermediate_size": 24}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    write_json(tmp_path / "config.json", config)
    arguments = TrainingArguments(max_steps=1, per_device_train_batch_size=2)
    pretrain(str(tokens), arguments, str(tmp_path / "out"), config_name=str(tmp_path / "config.json"))
    model = msllm.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.vocab_size == 270
    assert model.config.hidden_size == 16 and model.config.max_position_embeddings == 16
    first = read_json_lines(tmp_path / "out" / "log.jsonl")[0]["loss"]
    assert abs(first - math.log(270)) < 0.1
    for wrong, message in (
        ({"config_name": "llama2-7c"}, "unknown model 'llama2-7c'.*did you mean 'llama2-7b'"),
        ({"config_name": "llama2-7b", "model": str(tmp_path / "out")}, "model and config_name were given"),
        ({"config_name": "llama2-7b", "layers": 3}, "layers and config_name were given"),
        ({"config_name": "llama2-7b", "family": "gpt2"}, "family is gpt2 and llama2-7b is a llama"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(str(tokens), arguments, str(tmp_path / "other"), **wrong)
