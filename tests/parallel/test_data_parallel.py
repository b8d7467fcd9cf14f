"""Data-parallel training under msrun: two workers write the losses of one process, stopped and resumed or not."""

import numpy as np
import pytest

from msllm.cli import main
from msllm.errors import UserError
from msllm.files import read_json_lines
from msllm.models.weights import read_weights
from msllm.parallel import run_on_workers

SENTENCES = ["the red fox runs", "a blue bird sings", "some old men talk", "the young child plays a game", "rain falls"]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder of pre-training examples: 12 documents, drawn twice."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    documents = ["\n".join(rng.choice(SENTENCES, 6)) for _ in range(12)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    text, words = str(folder / "text.txt"), str(folder / "words")
    assert main(["train-tokenizer", "--data", text, "--output", words, "--vocab_size", "90"]) == 0
    command = ["pretraining-data", "--data", text, "--tokenizer", words, "--output", str(folder / "records")]
    assert main([*command, "--max_length", "24", "--duplicate_factor", "2", "--shards", "3"]) == 0
    return folder / "records"


def command(examples, output, *more):
    model = ["--hidden_size", "16", "--layers", "1", "--heads", "2", "--intermediate_size", "24"]
    schedule = ["--learning_rate", "1e-2", "--save_steps", "3", "--eval_data", str(examples)]
    return ["pretrain", "--data", str(examples), "--output", str(output), *model, *schedule, *more]


def losses(output):
    return {
        e["step"]: (e["loss"], e["mlm_loss"], e["nsp_loss"])
        for e in read_json_lines(output / "log.jsonl")
        if "loss" in e
    }


def test_two_workers_write_the_losses_of_one_and_resume(examples, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(examples, one, "--per_device_train_batch_size", "8", "--max_steps", "6", "--dropout", "0")) == 0
    half = ["--per_device_train_batch_size", "4", "--dropout", "0"]
    run_on_workers(2, command(examples, two, *half, "--max_steps", "6"), tmp_path / "logs", timeout=150)
    expected = losses(one)
    assert len(expected) == 6
    np.testing.assert_allclose(list(losses(two).values()), list(expected.values()), rtol=1e-5)
    evaluations = [next(e for e in read_json_lines(p / "log.jsonl") if "eval_loss" in e) for p in (one, two)]
    assert evaluations[1]["eval_loss"] == pytest.approx(evaluations[0]["eval_loss"], rel=1e-5)
    assert evaluations[1]["eval_mlm_accuracy"] == evaluations[0]["eval_mlm_accuracy"]
    mine, theirs = read_weights(one), read_weights(two)
    for name, value in mine.items():
        assert np.abs(theirs[name] - value).max() <= 1e-4 * np.abs(value).max() + 1e-6, name
    # A checkpoint of two workers goes on in one process: it knows nothing of their number.
    (two / "log.jsonl").write_text("", encoding="utf-8")
    again = ["--per_device_train_batch_size", "8", "--dropout", "0", "--max_steps", "6", "--resume", "auto"]
    assert main(command(examples, two, *again)) == 0
    for step, values in losses(two).items():
        np.testing.assert_allclose(values, expected[step], rtol=1e-5)
    assert sorted(losses(two)) == [4, 5, 6]


def test_workers_with_dropout_resume_to_the_same_losses(examples, tmp_path):
    both = ["--per_device_train_batch_size", "4", "--max_steps", "4", "--dropout", "0.3", "--save_steps", "2"]
    run_on_workers(2, command(examples, tmp_path / "two", *both), tmp_path / "logs", timeout=150)
    whole = losses(tmp_path / "two")
    again = [*both, "--resume", str(tmp_path / "two" / "checkpoint-2")]
    run_on_workers(2, command(examples, tmp_path / "two", *again), tmp_path / "logs", timeout=150)
    assert losses(tmp_path / "two") == whole and len(whole) == 4


def test_a_worker_that_fails_is_named(examples, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "something").write_text("x")
    with pytest.raises(UserError, match=r"one of 2 workers failed: worker_0: .*is not empty"):
        run_on_workers(2, command(examples, tmp_path / "used"), tmp_path / "logs", timeout=150)
