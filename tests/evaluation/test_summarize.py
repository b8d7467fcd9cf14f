"""msllm summarize: options, a file, standard input and a test set, on a model that knows its summaries by heart."""

import io
import json
import types

import pytest

from msllm.cli import main
from msllm.data import encode_record, load_records
from msllm.data.summaries import prompt_ids
from msllm.errors import UserError
from msllm.evaluation.summarization import write_summaries
from msllm.generation import generate_ids
from msllm.generation.config import SummaryGenerationConfig
from msllm.tuning.loading import open_checkpoint
from tests.test_cli_errors import fails  # noqa: F401  (a fixture)

PAIRS = [
    ("One two three. Four.", "one, two. Four"),
    ("Word by word by word.", "say word"),
    ("123 1 2 3", "3. 1! 2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"article": a, "summary": s}) + "\n" for a, s in PAIRS))
    return path


@pytest.fixture(scope="module")
def tuned(tiny_model, data, tmp_path_factory):
    """The folder of a model that msllm finetune taught the pairs by heart."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    options = {
        "model": tiny_model,
        "data": data,
        "output": folder,
        "learning_rate": "2e-2",
        "lr_scheduler_type": "constant",
        "num_train_epochs": "50",
        "per_device_train_batch_size": "3",
    }
    assert main(["finetune", *(word for k, v in options.items() for word in (f"--{k}", str(v)))]) == 0
    return folder


@pytest.fixture
def run(capsys):
    """Runs msllm summarize and returns its lines."""

    def summarize(model, *more):
        capsys.readouterr()
        assert main(["summarize", "--model", str(model), *map(str, more)]) == 0
        return capsys.readouterr().out.splitlines()

    return summarize


def test_a_model_writes_the_summaries_that_it_was_taught(tuned, run, tmp_path, monkeypatch):
    expected = [summary for _, summary in PAIRS]
    assert run(tuned, "--text", PAIRS[1][0]) == [expected[1]]
    path = tmp_path / "articles.txt"
    path.write_text("".join(f"{article}\n" for article, _ in PAIRS[:2]) + "\n" + PAIRS[2][0], encoding="utf-8")
    lines = [*expected[:2], "", expected[2]]
    assert run(tuned, "--file", path) == run(tuned, "--file", path, "--batch_size", 1) == lines
    assert run(tuned, "--file", path, "--limit", 2) == lines[:2]
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(PAIRS[0][0].encode())))
    assert run(tuned) == expected[:1]
    assert run(tuned, "--text", PAIRS[0][0], "--num_beams", 2) == expected[:1]


def test_what_ends_a_summary(tuned, run):
    text = PAIRS[0][0]
    assert run(tuned, "--text", text, "--sentences", 1) == ["one, two."]
    assert run(tuned, "--text", text, "--stop", ",") == ["one"]
    assert run(tuned, "--text", text, "--stop", ",", "--num_beams", 2) == ["one"]
    full, stopped, short = (
        json.loads(run(tuned, "--text", text, "--json_output", *more)[0])
        for more in ((), ("--stop", ","), ("--max_new_tokens", 1))
    )
    assert full["article"] == text and full["summary"] == PAIRS[0][1]
    assert [line["finish_reason"] for line in (full, stopped, short)] == ["eos", "stop", "length"]
    assert short["new_tokens"] == 1 < stopped["new_tokens"] < full["new_tokens"]


def test_rouge_of_the_model_beside_the_first_sentences(tuned, run, data, tmp_path):
    output = tmp_path / "run"
    lines = run(tuned, "--data", data, "--output", output, "--batch_size", 2)
    assert lines[0].split() == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert lines[1].split() == ["model", "1.0000", "1.0000", "1.0000"]
    # F1 of words: 3 of 4 and 3; 1 of 5 and 2; 3 of 4 and 3. Of pairs: 1 of 3 and 2; 0; 0 of 3 and 2 ("3 1", "1 2").
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["model"] == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    assert figures["lead_3"]["rouge1"] == pytest.approx((6 / 7 + 2 / 7 + 6 / 7) / 3)
    assert lines[2].split()[0] == "lead-3" and float(lines[2].split()[1]) == pytest.approx(2 / 3, abs=1e-4)
    assert (figures["count"], figures["scored_as"], figures["cut_articles"]) == (3, "en", 0)
    assert figures["generation"]["max_new_tokens"] == 100
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [(row["article"], row["summary"]) for row in rows] == PAIRS
    assert [row["prediction"] for row in rows] == [summary for _, summary in PAIRS]
    assert rows[0]["lead_3"] == PAIRS[0][0]
    assert sorted(path.name for path in output.iterdir()) == ["metrics.json", "predictions.jsonl"]
    (line,) = run(tuned, "--data", data, "--limit", 1, "--json_output", "--language", "zh")
    assert json.loads(line)["count"] == 1 and json.loads(line)["scored_as"] == "zh"


def test_generation_starts_from_the_ids_of_training_and_cuts_long_articles(tiny_model, data, monkeypatch):
    network, tokenizer = open_checkpoint(str(tiny_model))
    seen = []

    def spy(model, prompts, *more):
        seen.extend(prompts)
        return generate_ids(model, prompts, *more)

    monkeypatch.setattr("msllm.evaluation.summarization.generate_ids", spy)
    config = SummaryGenerationConfig(max_new_tokens=28)
    articles = [PAIRS[0][0], "Word by word. " * 50]
    summaries = write_summaries(network, tokenizer, articles, config, batch_size=1)
    assert [summary.cut for summary in summaries] == [False, True]
    long, short = seen  # the longest go first
    assert len(long) == 100 and tokenizer.decode(long).endswith("\nTL;DR:")
    assert long == prompt_ids(articles[1], tokenizer, 100)
    (example,) = encode_record(load_records(data)[0], tokenizer, 128)
    assert example["input_ids"][: len(short)] == short and example["labels"][: len(short)] == [-100] * len(short)
    with pytest.raises(UserError, match="max_new_tokens is 128, the model's context is 128 with the article; lower"):
        write_summaries(network, tokenizer, articles, SummaryGenerationConfig(max_new_tokens=128))
    with pytest.raises(UserError, match='room for 1 tokens of an article and "TL;DR:"'):
        write_summaries(network, tokenizer, articles, SummaryGenerationConfig(max_new_tokens=127))


def test_mistakes_are_one_line(tiny_model, tiny_bert, data, tmp_path, fails):  # noqa: F811
    model = ("summarize", "--model", tiny_model)
    assert "--text and --data were given; give one of them" in fails(*model, "--text", "a", "--data", data)
    assert "--output was given without --data" in fails(*model, "--text", "a", "--output", tmp_path)
    assert "--min_score was given without --data" in fails(*model, "--text", "a", "--min_score", 3)
    assert "is a file, expected a folder" in fails(*model, "--data", data, "--output", data)
    assert "sentences is 0, expected 1 or more" in fails(*model, "--text", "a", "--sentences", 0)
    assert "--text is empty; give an article" in fails(*model, "--text", " ")
    assert "min_score is 3, and " in fails(*model, "--data", data, "--min_score", 3)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"article": "a"}\n')
    assert "bad.jsonl, line 1 lacks the key summary" in fails(*model, "--data", bad)
    line = fails("summarize", "--model", tiny_bert, "--text", "a")
    assert "BertModel, which does not predict the next token" in line
