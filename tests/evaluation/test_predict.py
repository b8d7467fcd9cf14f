"""msllm predict, for each kind of model, from options, a file and standard input."""

import io
import json

import numpy as np
import pytest

import msllm
from msllm.cli import main
from msllm.models.bert import BertConfig, BertForMaskedLM, BertForQuestionAnswering
from msllm.models.pretrained import read_config
from tests.test_cli_errors import fails  # noqa: F401  (a fixture)


@pytest.fixture
def run(capsys):
    """Runs msllm predict and returns its lines."""

    def predict(model, *more):
        capsys.readouterr()  # what making the model printed
        assert main(["predict", "--model", str(model), *map(str, more)]) == 0
        return capsys.readouterr().out.splitlines()

    return predict


@pytest.fixture(scope="session")
def masked(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked") / "model"
    BertForMaskedLM.from_body(tiny_bert).save_pretrained(folder, msllm.load_tokenizer(tiny_bert))
    return folder


def test_classes_with_their_probabilities_likeliest_first(tuned, run, tmp_path, monkeypatch):
    model = tuned("text-classification")
    (line,) = run(model, "--text", "the play is great")
    first, score, second, rest = line.split()
    assert (first, second) == ("pos", "neg") and float(score) > 0.5
    assert float(score) + float(rest) == pytest.approx(1, abs=2e-4)
    (tmp_path / "lines.txt").write_text("the play is great\nthe book is dull\r\ndull\tbad\n")
    lines = [json.loads(line) for line in run(model, "--file", tmp_path / "lines.txt", "--json_output")]
    assert [row["prediction"] for row in lines] == ["pos", "neg", lines[2]["prediction"]]
    assert lines[2]["text"] == "dull" and lines[2]["text_b"] == "bad"
    assert list(lines[1]["scores"]) == ["neg", "pos"]
    assert lines[0]["scores"]["pos"] == pytest.approx(float(score), abs=1e-4)
    monkeypatch.setattr("sys.stdin", io.StringIO("the play is great\nthe book is dull\n"))
    assert [row.split()[0] for row in run(model, "--batch_size", 1)] == ["pos", "neg"]


def test_the_pair_matters(tuned, run):
    model = tuned("text-classification")
    (alone,), (pair,) = (run(model, "--text", "the play is great", *more) for more in ((), ("--text_pair", "dull")))
    assert alone != pair


def test_entities_with_their_characters(tuned, run):
    model = tuned("token-classification")
    (line,) = run(model, "--text", "Bob lives in Paris.")
    assert line.startswith("PER Bob 0-3 ") and "; LOC Paris 13-18 " in line
    row = json.loads(run(model, "--text", "Bob lives in Paris.", "--json_output")[0])
    assert [row["text"][e["start"] : e["end"]] for e in row["entities"]] == ["Bob", "Paris"]
    assert all(0.5 < e["score"] <= 1 for e in row["entities"])
    assert run(model, "--text", "lives in .") == ["no entity"]


def test_a_text_that_is_too_long_is_cut_and_said(tuned, capsys):
    model = tuned("token-classification")
    options = ["--text", "Bob lives in Paris. " * 10, "--json_output"]
    capsys.readouterr()
    assert main(["predict", "--model", str(model), *options]) == 0
    captured = capsys.readouterr()
    assert "1 inputs are longer than 32 tokens and were cut" in captured.err
    entities = json.loads(captured.out)["entities"]
    assert entities[0]["text"] == "Bob" and max(e["end"] for e in entities) <= 120  # 30 words are six sentences


def test_answers_with_their_characters(tuned, run, tmp_path):
    model = tuned("question-answering")
    (line,) = run(model, "--question", "where ?", "--context", "Eve lives in Oslo.")
    text, score, *place = line.split()
    assert (text, place) == ("Oslo", ["characters", "13-17"]) and 0.5 < float(score) <= 1
    (tmp_path / "lines.txt").write_text("who ?\tEve lives in Oslo .\nwhere ?\tAda lives in Rome .\n")
    rows = [json.loads(line) for line in run(model, "--file", tmp_path / "lines.txt", "--json_output")]
    assert [row["answer"] for row in rows] == ["Eve", "Rome"]
    assert rows[1]["context"][rows[1]["start"] : rows[1]["end"]] == "Rome" and "id" not in rows[0]


def test_a_long_context_is_read_in_windows_that_fit_the_model(tuned, run, fails):  # noqa: F811
    model = tuned("question-answering")
    asked = ("--question", "where ?", "--context", "Eve lives in Oslo . " * 10)
    (line,) = run(model, *asked, "--json_output")
    row = json.loads(line)
    assert row["context"][row["start"] : row["end"]] == row["answer"] == "Oslo"
    # 32 positions, of which [CLS], "where ?" and twice [SEP] take 5.
    assert [line] == run(model, *asked, "--json_output", "--doc_stride", 14)
    assert "max_length 32 leaves 27 tokens" in fails("predict", "--model", model, *asked, "--doc_stride", "128")


def test_a_question_that_is_cut_is_counted(tiny_bert, tmp_path, capsys):
    tokenizer = msllm.load_tokenizer(tiny_bert)
    config = BertConfig.from_dict(read_config(tiny_bert) | {"max_position_embeddings": 96})
    BertForQuestionAnswering(config).save_pretrained(tmp_path / "model", tokenizer)
    for words, message in ((64, ""), (65, "1 questions are longer than 64 tokens and were cut\n")):
        (tmp_path / "lines.txt").write_text("where ?\tEve lives in Oslo .\n" + "who " * words + "\tEve lives .\n")
        capsys.readouterr()
        assert main(["predict", "--model", str(tmp_path / "model"), "--file", str(tmp_path / "lines.txt")]) == 0
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) == 2 and captured.err == message


def test_words_for_masks_equal_transformers(masked, run):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    row = json.loads(run(masked, "--text", "the [MASK] is [MASK]", "--top_k", 3, "--json_output")[0])
    theirs = transformers.BertForMaskedLM.from_pretrained(masked)
    tokenizer = transformers.AutoTokenizer.from_pretrained(masked)
    with torch.no_grad():
        scores = theirs(**tokenizer("the [MASK] is [MASK]", return_tensors="pt")).logits[0].softmax(-1).numpy()
    for found, place in zip(row["masks"], (2, 4), strict=True):
        best = np.argsort(-scores[place])[:3]
        assert [word["token"] for word in found] == tokenizer.convert_ids_to_tokens(best)
        assert [word["score"] for word in found] == pytest.approx(scores[place][best].tolist(), rel=1e-4)
    (line,) = run(masked, "--text", "the [MASK] is [MASK]")
    assert line.count("|") == 1 and len(line.split()) == 5 * 2 * 2 + 1


def test_mistakes_are_named(fails, tuned, masked, tiny_bert, tmp_path):  # noqa: F811
    model = tuned("text-classification")
    assert "holds a BertModel, predict wants one of" in fails("predict", "--model", tiny_bert, "--text", "x")
    assert "takes --text, not --question" in fails("predict", "--model", model, "--question", "x", "--context", "y")
    answers = tuned("question-answering")
    assert "takes --question and --context" in fails("predict", "--model", answers, "--text", "x")
    assert "add --context" in fails("predict", "--model", answers, "--question", "x")
    assert "add --question" in fails("predict", "--model", answers, "--context", "x")
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert "lines.txt, line 2 is empty" in fails("predict", "--model", model, "--file", tmp_path / "lines.txt")
    assert "line 1 has no tab" in fails("predict", "--model", answers, "--file", tmp_path / "lines.txt")
    both = ("--text", "x", "--file", tmp_path / "lines.txt")
    assert "both a text and --file" in fails("predict", "--model", model, *both)
    pair = ("--text", "bob", "--text_pair", "eve")
    assert "takes one" in fails("predict", "--model", tuned("token-classification"), *pair)
    assert "has no [MASK]" in fails("predict", "--model", masked, "--text", "the film")
    assert "has 36 tokens, the model takes 32" in fails("predict", "--model", masked, "--text", "[MASK] " + "a " * 33)
    assert "top_k is 0" in fails("predict", "--model", masked, "--text", "[MASK]", "--top_k", "0")
