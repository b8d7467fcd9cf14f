"""msllm finetune-task: what it leaves, what it keeps, what it refuses before it does any work."""

import json
import shutil

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm.cli import main
from msllm.evaluation.tasks import TASKS, evaluate, read_labelled
from msllm.models import bert
from tests.test_cli_errors import fails  # noqa: F401  (a fixture)

CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}


def command(task, model, data, output, *more):
    words = ("finetune-task", "--task", task, "--model", model, "--data", data, "--output", output, *more)
    return [str(word) for word in words]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_learned_measured_and_saved(tuned, files, task):
    out = tuned(task)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["eval"] == metrics["test"]
    for name in {"accuracy", "macro_f1", "f1", "exact_match"} & metrics["test"].keys():
        assert metrics["test"][name] == 1, name
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    headline = "exact_match" if task == "question-answering" else "accuracy"
    assert log[-1][f"eval_{headline}"] == 1 and log[0]["loss"] > 0.3 > log[-2]["loss"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    truth = {"text-classification": "label", "token-classification": "tags"}.get(task)
    assert len(lines) == metrics["test"]["count"]
    assert all(line["prediction"] == (line[truth] if truth else line["answers"][0]) for line in lines)
    assert (out / "confusion_matrix.png").is_file() == (task == "text-classification")


@pytest.mark.parametrize("task", TASKS)
def test_transformers_reads_the_folder_to_equal_logits(tuned, task):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    out = tuned(task)
    theirs = getattr(transformers, CLASSES[task]).from_pretrained(out)
    ours = msllm.from_pretrained(out)
    assert type(ours).__name__ == type(theirs).__name__ == TASKS[task].architecture
    if task != "question-answering":
        assert [theirs.config.id2label[i] for i in range(len(theirs.config.id2label))] == ours.config.labels
        assert theirs.config.label2id == {label: i for i, label in enumerate(ours.config.labels)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 32  # the model's positions, fewer than the task's default
    encoded = tokenizer(["the film is good", "who ?"], ["ada lives in rome .", "x"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**encoded).to_tuple()
    names = ("input_ids", "attention_mask", "token_type_ids")
    for mine, other in zip(ours(*(Tensor(encoded[n].numpy().astype(np.int32)) for n in names)), expected, strict=True):
        real = encoded["attention_mask"].numpy() == 1 if other.shape[:2] == encoded["input_ids"].shape else slice(None)
        difference = np.abs(mine.asnumpy() - other.numpy())[real].max()
        assert difference < 1e-5 * other.abs().max().item()


def test_figures_of_the_saved_model_are_those_of_the_run(tuned, files):
    out = tuned("token-classification")
    model, tokenizer = msllm.from_pretrained(out), msllm.load_tokenizer(out)
    task = TASKS["token-classification"](32, model.config.labels)
    records = read_labelled(task, files["token-classification"])
    examples, _ = task.encode(records, tokenizer)
    for size in (1, 7):
        _, metrics = evaluate(task, model, records, examples, tokenizer.pad_token_id, size)
        assert metrics == json.loads((out / "metrics.json").read_text())["test"]


def test_tuning_again_keeps_a_head_of_the_same_labels_only(tuned, tiny_bert, files, tmp_path, capfd):
    out = tuned("text-classification")
    before = msllm.from_pretrained(out).state_dict()
    data = tmp_path / "one.tsv"
    data.write_text("the film is good\tpos\nthe play is bad\tneg\n")
    more = ("--max_steps", "1", "--learning_rate", "0")
    assert main(command("text-classification", out, data, tmp_path / "again", *more)) == 0
    after = msllm.from_pretrained(tmp_path / "again").state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert "random values" not in capfd.readouterr().err
    other = ("--labels", "bad", "neg", "pos")
    assert main(command("text-classification", out, data, tmp_path / "other", *more, *other)) == 0
    network = msllm.from_pretrained(tmp_path / "other")
    assert network.config.labels == ["bad", "neg", "pos"] and network.classifier.weight.shape == (3, 32)
    assert np.array_equal(network.state_dict()["bert.pooler.dense.weight"], before["bert.pooler.dense.weight"])
    # Any head will do to start from: a tagger becomes a classifier with the tagger's body.
    tagger = tuned("token-classification")
    assert main(command("text-classification", tagger, data, tmp_path / "third", *more)) == 0
    name = "bert.embeddings.word_embeddings.weight"
    third = msllm.from_pretrained(tmp_path / "third").state_dict()
    assert np.array_equal(third[name], msllm.from_pretrained(tagger).state_dict()[name])


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForPreTraining"])
def test_heads_of_pre_training_are_left_behind(tiny_bert, files, tmp_path, head):
    cls = getattr(bert, head)
    cls.from_body(tiny_bert).save_pretrained(tmp_path / "start", msllm.load_tokenizer(tiny_bert))
    more = ("--max_steps", "1")
    assert (
        main(command("text-classification", tmp_path / "start", files["text-classification"], tmp_path / "out", *more))
        == 0
    )
    assert not any(name.startswith("cls.") for name in msllm.from_pretrained(tmp_path / "out").state_dict())


def test_the_seed_fixes_the_new_head(tiny_bert):
    from msllm.evaluation.task_models import new_model

    cls = bert.BertForSequenceClassification
    one, same, other = (
        new_model(cls, tiny_bert, ["a", "b"], seed).state_dict()["classifier.weight"] for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert 0.1 < one.std() < 0.3  # initializer_range is 0.2


def test_names_for_labels_and_a_test_part_without_labels(tiny_bert, tmp_path):
    (tmp_path / "train.tsv").write_text("label\ttext\n0\tbad film\n1\tgood film\n")
    (tmp_path / "test.tsv").write_text("text\nfine play\n")
    (tmp_path / "names.json").write_text('{"label": "0", "label_desc": "sad"}\n{"label": "1", "label_desc": "happy"}\n')
    more = ("--test_data", tmp_path / "test.tsv", "--label_names", tmp_path / "names.json", "--max_steps", "1")
    assert main(command("text-classification", tiny_bert, tmp_path / "train.tsv", tmp_path / "out", *more)) == 0
    assert msllm.from_pretrained(tmp_path / "out").config.labels == ["sad", "happy"]
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert line["text"] == "fine play" and set(line["scores"]) == {"sad", "happy"} and "label" not in line
    assert sum(line["scores"].values()) == pytest.approx(1)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {}


def test_a_broken_run_goes_on_and_a_new_one_replaces_it(tiny_bert, files, tmp_path):
    data, out = files["text-classification"], tmp_path / "out"
    whole = ("--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "4", "--eval_data", data)
    assert main(command("text-classification", tiny_bert, data, tmp_path / "whole", *whole)) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", out / "checkpoint-2")
    assert main(command("text-classification", tiny_bert, data, out, *whole, "--resume", "auto")) == 0
    mine, other = (msllm.from_pretrained(folder).state_dict() for folder in (out, tmp_path / "whole"))
    assert all(np.array_equal(mine[name], other[name]) for name in other)
    assert main(command("text-classification", tiny_bert, data, out, "--max_steps", "1", "--overwrite")) == 0
    assert not (out / "metrics.json").exists() and not (out / "predictions.jsonl").exists()


def test_a_used_folder_and_a_bad_checkpoint_are_refused_before_the_data_is_read(fails, tiny_bert, tmp_path):  # noqa: F811
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    no_data = tmp_path / "no data.tsv"
    line = fails(*command("text-classification", tiny_bert, no_data, tmp_path / "used"))
    assert "notes.txt" in line and "--overwrite" in line
    line = fails(
        *command("text-classification", tiny_bert, no_data, tmp_path / "new", "--resume", tmp_path / "nothing")
    )
    assert "nothing is no checkpoint" in line
    assert "no data.tsv" in fails(*command("text-classification", tiny_bert, no_data, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_mistakes_are_named(fails, tiny_bert, tiny_model, files, tmp_path):  # noqa: F811
    data, out = files["text-classification"], tmp_path / "out"

    def line(*more, task="text-classification", model=tiny_bert, data=data):
        return fails(*command(task, model, data, out, *more))

    assert "max_length is 33" in (text := line("--max_length", "33")) and "has 32 positions; give 1 to 32" in text
    assert "holds a LlamaForCausalLM" in line(model=tiny_model)
    assert "limit 0 leaves no records" in line("--limit", "0")
    assert "doc_stride is 0" in line("--doc_stride", "0", task="question-answering")
    dev = tmp_path / "dev.tsv"
    dev.write_text("fine\tpos\ndull\tnone\n")
    assert f"{dev}, line 2 has the label 'none'" in (text := line("--eval_data", dev)) and "neg, pos" in text
    dev.write_text("label\ttext\n\tfine\n")
    assert "line 2: label is ''" in line("--eval_data", dev)
    dev.write_text("text\nfine\n")
    assert f"{dev}, line 2 has no label" in line("--eval_data", dev)
    dev.write_text("fine\tpos\ndull\tpos\n")
    assert "the labels are pos; expected two or more" in line(data=dev)
    assert "label_names" in line("--label_names", dev, "--labels", "a", "b")
    assert "text-clasification" in (text := line(task="text-clasification")) and "token-classification" in text
    assert not out.exists()


def test_a_vocabulary_without_special_tokens_is_refused(fails, tiny_bert, files, tmp_path):  # noqa: F811
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    without = {("[OLD]" if word == "[CLS]" else word): i for word, i in vocabulary.items()}
    added = [token for token in whole["added_tokens"] if token["content"] != "[CLS]"]
    changes = {"[CLS]": {"model": {**whole["model"], "vocab": without}, "added_tokens": added, "post_processor": None}}
    changes["the rule that puts [CLS] before"] = {"post_processor": None}
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    for word, change in changes.items():
        (folder / "tokenizer.json").write_text(json.dumps({**whole, **change}))
        line = fails(*command("text-classification", folder, files["text-classification"], tmp_path / "out"))
        assert f"lacks {word}" in line
