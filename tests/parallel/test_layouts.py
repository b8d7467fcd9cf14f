"""Training with the Trainer in one layout, and going on in another."""

import mindspore as ms
import numpy as np
import pytest

from msllm import from_pretrained, load_tokenizer
from msllm.cli import main
from msllm.files import read_json, read_json_lines
from msllm.models.weights import read_weights

SIZES = ["--hidden_size", "16", "--layers", "2", "--heads", "2", "--max_positions", "16", "--dropout", "0"]
SCHEDULE = ["--max_steps", "6", "--save_steps", "2", "--learning_rate", "1e-3", "--adam_epsilon", "1e-5"]
ROWS = ["--per_device_train_batch_size"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder of token files."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    words = ["red", "fox", "blue", "bird", "old", "men", "rain", "runs", "zoo"]
    (folder / "text.txt").write_text(" ".join(rng.choice(words, 1500)), encoding="utf-8")
    text, tokenizer = str(folder / "text.txt"), str(folder / "tokenizer")
    assert main(["train-tokenizer", "--data", text, "--output", tokenizer, "--kind", "char"]) == 0
    out = str(folder / "ids")
    command = ["data", "tokenize", "--data", text, "--tokenizer", tokenizer, "--output", out]
    assert main([*command, "--val_share", "0.1", "--whole_files"]) == 0
    return out


def pretrain(tokens, output, *more):
    options = [*ROWS, "4", "--per_device_eval_batch_size", "4"]
    return main(["pretrain", "--data", tokens, "--output", str(output), *SIZES, *SCHEDULE, *options, *more])


def losses(output):
    return {e["step"]: e["loss"] for e in read_json_lines(output / "log.jsonl") if "loss" in e}


@pytest.fixture(scope="module")
def alone(tokens, tmp_path_factory):
    """A run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert pretrain(tokens, folder) == 0
    return folder


def same(mine, alone, steps):
    expected = losses(alone)
    assert sorted(losses(mine)) == steps
    np.testing.assert_allclose([losses(mine)[s] for s in steps], [expected[s] for s in steps], rtol=1e-5)
    ours, theirs = read_weights(mine), read_weights(alone)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.abs(ours[name] - value).max() <= 1e-5 * np.abs(value).max(), name
    logs = [read_json_lines(p / "log.jsonl") for p in (mine, alone)]
    evaluations = [[e["eval_loss"] for e in log if "eval_loss" in e] for log in logs]
    np.testing.assert_allclose(evaluations[0], evaluations[1], rtol=1e-5)


def test_a_run_goes_on_in_any_layout(tokens, alone, tmp_path, capfd):
    run = tmp_path / "run"
    assert pretrain(tokens, run, "--workers", "2", "--parallel.tensor", "2", "--time_limit", "300") == 0
    same(run, alone, [1, 2, 3, 4, 5, 6])
    assert not (run / "parts").exists()
    converted, source = tmp_path / "whole", str(run / "checkpoint-4")
    assert main(["convert", "--source", source, "--output", str(converted), "--tokenizer", str(run)]) == 0
    at_three = from_pretrained(converted)  # a Hugging Face folder
    assert read_weights(converted).keys() == read_weights(run).keys() and len(load_tokenizer(converted))
    exported = tmp_path / "mindspore"
    assert main(["convert", "--source", source, "--output", str(exported), "--to", "mindspore"]) == 0
    ms.transform_checkpoints(str(exported), str(tmp_path / "merged"), "whole", str(exported / "strategy.ckpt"), None)
    merged = ms.load_checkpoint(str(next((tmp_path / "merged").rglob("*.ckpt"))))
    for parameter in at_three.get_parameters():
        assert np.array_equal(merged[parameter.name].asnumpy().reshape(parameter.shape), parameter.asnumpy())
    # As a pipeline, from what two tensor-parallel workers saved after step 2.
    pipeline = ["--parallel.pipeline", "2", "--parallel.micro_batches", "2", "--workers", "2", "--time_limit", "300"]
    assert pretrain(tokens, run, *pipeline, "--resume", str(run / "checkpoint-2")) == 0
    same(run, alone, [1, 2, 3, 4, 5, 6])
    # In one process, from what the two stages saved after step 4.
    assert read_json(run / "checkpoint-4" / "layout.json")["info"]["layout"]["words"] == "pp2"
    assert pretrain(tokens, run, "--resume", str(run / "checkpoint-4")) == 0
    same(run, alone, [1, 2, 3, 4, 5, 6])
    # Owners of flat shares, from what one process saved; and one process again, from what they saved.
    shared = tmp_path / "shared"
    owners = ["--parallel.optimizer", "1", "--workers", "2", "--time_limit", "300", *ROWS, "2"]
    assert pretrain(tokens, shared, *owners, "--resume", str(alone / "checkpoint-2")) == 0
    same(shared, alone, [3, 4, 5, 6])
    assert pretrain(tokens, shared, "--resume", str(shared / "checkpoint-4")) == 0
    same(shared, alone, [3, 4, 5, 6])
    capfd.readouterr()


def test_blocks_that_are_computed_twice_drop_out_the_same(tokens, tmp_path):
    dropout = ["--dropout", "0.3", "--max_steps", "3"]
    assert pretrain(tokens, tmp_path / "once", *dropout) == 0
    assert pretrain(tokens, tmp_path / "twice", *dropout, "--parallel.recompute") == 0
    assert losses(tmp_path / "twice") == losses(tmp_path / "once") and len(losses(tmp_path / "once")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parallel.tensor", "2", "--jit"], "jit compiles whole models"),
        (["--parallel.tensor", "2", "--optim", "lamb"], "optim lamb scales each matrix as a whole"),
        (["--parallel.sequence", "2", "--dropout", "0.1"], "the model drops out 0.1 of its attention weights"),
        (["--parallel.tensor", "4"], "parallel.tensor = 4 does not divide the 2 attention heads"),
        (["--parallel.pipeline", "4"], "2 layers cannot fill"),
        (["--parallel.tensor", "3"], "4 workers cannot be divided by"),
        (["--parallel.expert", "2"], "the model has no experts"),
        (["--parallel.micro_batches", "3"], "a batch of 4 examples cannot be cut into 3 micro-batches"),
        (["--parallel.optimizer", "4"], "--parallel.optimizer is '4', expected one of 0, 1, 2, 3"),
        (["--parallel.tensr", "2"], "unknown option --parallel.tensr (did you mean '--parallel.tensor'?)"),
    ],
)
def test_layouts_that_do_not_fit_are_refused_before_workers_start(options, message, tokens, tmp_path, capsys):
    assert pretrain(tokens, tmp_path / "run", "--workers", "4", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
