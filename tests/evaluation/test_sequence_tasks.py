"""msllm finetune-task and predict on a GPT: classes, entailment, similarity and choices."""

import itertools
import json

import numpy as np
import pytest

import msllm
from msllm.cli import main
from msllm.data import IGNORED
from msllm.data.task_inputs import Choices, encode_sequences, read_choices, with_task_tokens
from msllm.data.tasks import LabelledText, read_texts
from msllm.errors import UserError
from msllm.models.pretrained import model_class
from msllm.tokenization import train_tokenizer
from msllm.training.sequence_objectives import collate_sequences
from tests.test_cli_errors import fails  # noqa: F401  (a fixture)

WORDS = ["the play is great and good", "the book is dull and bad", "one two three"]
SIZES = {"n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}


@pytest.fixture(scope="module", params=["openai-gpt", "gpt2"])
def gpt(request, tmp_path_factory):
    """A random GPT of one layer, with its kind of tokenizer."""
    kind = request.param
    folder = tmp_path_factory.mktemp("gpt") / "model"
    tokenizer = train_tokenizer(WORDS, 120, "gpt") if kind == "openai-gpt" else train_tokenizer(WORDS, 300)
    family = model_class({"model_type": kind})
    config = {**SIZES, "vocab_size": len(tokenizer), "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    family(family.config_class.from_dict(config)).save_pretrained(folder, tokenizer)
    return folder


def tune(gpt, task, rows, folder, *more):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--num_train_epochs", "80", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", *more]
    output = folder / "tuned"
    arguments = ["--task", task, "--model", str(gpt), "--data", str(path), "--eval_data", str(path)]
    assert main(["finetune-task", *arguments, "--output", str(output), *options]) == 0
    return output, json.loads((output / "metrics.json").read_text())["eval"]


def predict(capsys, model, *more):
    capsys.readouterr()
    assert main(["predict", "--model", str(model), *more]) == 0
    return capsys.readouterr().out.splitlines()


def test_classes_are_learnt_and_predicted(gpt, tmp_path, capsys):
    rows = [{"text": "the play is great", "label": "pos"}, {"text": "the book is dull", "label": "neg"}]
    rows += [{"text": "a good play", "label": "pos"}, {"text": "a bad book", "label": "neg"}]
    output, figures = tune(gpt, "text-classification", rows, tmp_path)
    assert figures["accuracy"] == 1.0
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(log[0]["task_loss"] + 0.5 * log[0]["lm_loss"], rel=1e-6)
    assert [line.split()[0] for line in predict(capsys, output, "--text", "the play is great")] == ["pos"]
    (pair,) = predict(capsys, output, "--text", "the play is great", "--text_pair", "the book is dull", "--json_output")
    assert set(json.loads(pair)["scores"]) == {"pos", "neg"}


def test_a_run_is_not_resumed_with_another_weight_of_the_words(gpt, tmp_path, fails):  # noqa: F811
    rows = [{"text": "the play is great", "label": "pos"}, {"text": "the book is dull", "label": "neg"}]
    output, _ = tune(gpt, "text-classification", rows, tmp_path, "--max_steps", "4", "--save_steps", "2")
    command = ["finetune-task", "--task", "text-classification", "--model", gpt, "--data", tmp_path / "rows.jsonl"]
    options = ["--max_steps", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--lm_weight", "0"]
    message = fails(*command, "--output", output, *options, "--resume", "auto")
    assert "was written with lm_weight = 0.5, now it is 0" in message


def test_a_classifier_that_was_made_elsewhere_lacks_the_task_tokens(gpt, tmp_path, fails):  # noqa: F811
    kind = msllm.from_pretrained(gpt).config.model_type
    name = {"gpt2": "GPT2", "openai-gpt": "OpenAIGPT"}[kind] + "ForSequenceClassification"
    cls = model_class({"model_type": kind, "architectures": [name]})
    cls.from_body(gpt, ["no", "yes"]).save_pretrained(tmp_path / "other", msllm.load_tokenizer(gpt))
    message = fails("predict", "--model", tmp_path / "other", "--text", "good")
    assert "no start, delimiter or extract token" in message


def test_similarity_does_not_depend_on_the_order(gpt, tmp_path, capsys):
    rows = [{"sentence1": a, "sentence2": b, "label": int(WORDS[0] in (a, b))} for a in WORDS for b in WORDS]
    output, figures = tune(gpt, "similarity", rows, tmp_path)
    assert figures["accuracy"] == 1.0
    one, two = (
        json.loads(predict(capsys, output, "--text", a, "--text_pair", b, "--json_output")[0])["scores"]
        for a, b in (WORDS[:2], WORDS[1::-1])
    )
    assert one["1"] == pytest.approx(two["1"], rel=1e-5)


def test_choices_are_learnt_and_predicted(gpt, tmp_path, capsys):
    rows = [
        {"context": "the play is", "choices": ["bad", "dull"], "label": 1},
        {"context": "the book is", "choices": ["great", "good", "dull"], "label": 2},
    ]
    output, figures = tune(gpt, "multiple-choice", rows, tmp_path, "--lm_weight", "0")
    assert figures == {"accuracy": 1.0, "count": 2}
    assert msllm.from_pretrained(output).config.num_labels == 1
    (line,) = predict(capsys, output, "--context", "the book is", "--choices", "great", "good", "dull")
    assert line.startswith("dull")
    assert main(["predict", "--model", str(output), "--context", "the book is", "--choices", "great"]) == 2
    assert "--choices has 1, expected 2 or more" in capsys.readouterr().err
    (tmp_path / "lines.txt").write_text("the play is\tdull\tbad\n")
    assert predict(capsys, output, "--file", str(tmp_path / "lines.txt"))[0].startswith("dull  ")


def test_the_sequences_of_the_papers_figure():
    tokenizer = with_task_tokens(train_tokenizer(WORDS, 120, "gpt"))
    start, delimiter, extract = tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id
    a, b, c = (tokenizer.encode(text) for text in WORDS)

    def encode(record, **more):
        ((example,), report) = encode_sequences([record], tokenizer, ["x", "y"], more.pop("max_length", 64), **more)
        bounds = np.cumsum([0, *example["lengths"]])
        return [example["input_ids"][i:j] for i, j in itertools.pairwise(bounds)], example["labels"], report

    assert encode(LabelledText(WORDS[0], None, "y"))[:2] == ([[start, *a, extract]], 1)
    pair = LabelledText(WORDS[0], WORDS[1])
    assert encode(pair)[:2] == ([[start, *a, delimiter, *b, extract]], IGNORED)
    both = [[start, *a, delimiter, *b, extract], [start, *b, delimiter, *a, extract]]
    assert encode(pair, both_orders=True)[0] == both
    choices = [[start, *a, delimiter, *b, extract], [start, *a, delimiter, *c, extract]]
    ((example,), _) = encode_sequences([Choices(WORDS[0], (WORDS[1], WORDS[2]), "1")], tokenizer, None, 64)
    assert example == {"input_ids": [*choices[0], *choices[1]], "lengths": list(map(len, choices)), "labels": 1}
    cut, _, report = encode(pair, max_length=9)
    assert cut == [[start, *a[:3], delimiter, *b[:3], extract]]
    assert report.truncated == 1


def test_a_batch_marks_ends_and_what_is_missing():
    examples = [
        {"input_ids": [5, 6, 7, 8, 9], "lengths": [3, 2], "labels": 1},
        {"input_ids": [4, 3, 2], "lengths": [1, 1, 1], "labels": 0},
    ]
    batch = collate_sequences(examples, 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0], [0, 0, 0], [4, 0, 0], [3, 0, 0], [2, 0, 0]]
    assert batch["ends"].tolist() == [2, 4, 6, 9, 12, 15]
    assert batch["missing"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["words"].tolist()[:2] == [[6, 7, IGNORED], [9, IGNORED, IGNORED]]
    assert (batch["words"][2:] == IGNORED).all()


def test_a_folder_of_labels_is_read_turn_by_turn(tmp_path):
    for label, texts in {"neg": ["bad", "worse"], "pos": ["good"], "unsup": ["?"]}.items():
        (tmp_path / label).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / label / f"{i}_1.txt").write_text(text)
    assert [(r.text, r.label) for r in read_texts(tmp_path)] == [("bad", "neg"), ("good", "pos"), ("worse", "neg")]
    assert len(read_texts(tmp_path, 2)) == 2
    (tmp_path / "pos" / "0_1.txt").unlink()
    with pytest.raises(UserError, match=r"no \.txt file in pos"):
        read_texts(tmp_path)


def test_the_split_of_a_hub_dataset_stands_after_a_colon(monkeypatch):
    asked = []

    def rows(name, split):
        asked.append((name, split))
        yield from enumerate([{"text": "good", "label": 1}, {"text": "bad", "label": 0}], 1)

    monkeypatch.setattr("msllm.data.tasks.read_hub_rows", rows)
    assert [r.label for r in read_texts("imdb:test")] == ["1", "0"]
    assert len(read_texts("stanfordnlp/imdb", 1)) == 1
    assert asked == [("imdb", "test"), ("stanfordnlp/imdb", "train")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"context": "a", "choices": ["b"], "label": 0}], "line 1: choices is ['b'], expected a list of two or more"),
        ([{"context": "a", "choices": ["b", "c"], "label": 2}], "label is 2, expected the number of the right choice"),
        ([{"context": " ", "choices": ["b", "c"]}], "line 1: context is ' ', expected a text"),
        ([], "is empty; expected records"),
    ],
)
def test_bad_choices_are_named(rows, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        read_choices(path)
    assert message in str(error.value)


def test_mistakes_are_named(fails, gpt, tiny_model, tmp_path):  # noqa: F811
    path = tmp_path / "mixed.tsv"
    path.write_text("text\tlabel\ngood\t1\nbad\tnegative\n")
    task = ["finetune-task", "--task", "text-classification", "--output", tmp_path / "out", "--data", path, "--model"]
    assert "line 3 has the label 'negative', a name, and" in fails(*task, gpt)
    assert "wants a BERT, GPT or GPT-2" in fails(*task, tiny_model)
    path.write_text("text\tlabel\ngood\t1\nbad\t0\n")
    assert "compares two; add the second" in fails(*[*task[:2], "similarity", *task[3:]], gpt)
    assert "which has no token-classification here" in fails(*[*task[:2], "token-classification", *task[3:]], gpt)
    assert "lm_weight is -1.0, expected 0 or more" in fails(*task, gpt, "--lm_weight", "-1")
