"""Figures against cases worked by hand, brute force and other libraries."""

import numpy as np
import pytest

from msllm.data.questions import Question
from msllm.evaluation.answers import answer_f1, answer_metrics, best_answers, chinese_words, exact_match, is_chinese
from msllm.evaluation.classification import classification_figures, figures_table, plot_confusion
from msllm.evaluation.entities import entities, entity_metrics


def test_classification_by_hand():
    true, predicted = "aaabbc", "aabbba"
    metrics = classification_figures(true, predicted, ["a", "b", "c", "never"])
    assert metrics["accuracy"] == pytest.approx(4 / 6) and metrics["count"] == 6
    assert metrics["per_class"]["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert metrics["per_class"]["b"] == pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "support": 2})
    assert metrics["per_class"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.8 + 0) / 3)  # a class that nobody names does not count
    assert metrics["confusion_matrix"] == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert list(classification_figures(true, predicted)["per_class"]) == ["a", "b", "c"]


def test_the_table_and_the_picture_of_a_confusion_matrix(tmp_path):
    metrics = classification_figures(["good", "bad", "bad"], ["good", "bad", "good"], ["good", "bad"])
    lines = figures_table(metrics["per_class"]).splitlines()
    assert lines[1].split() == ["good", "0.5000", "1.0000", "0.6667", "1"]
    assert len({len(line) for line in lines}) == 1
    plot_confusion(metrics["confusion_matrix"], ["good", "bad"], tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-X I-X O B-Y", [("X", 0, 2), ("Y", 3, 4)]),
        ("B-X B-X", [("X", 0, 1), ("X", 1, 2)]),
        ("I-X I-X O", [("X", 0, 2)]),  # conlleval: an I that continues nothing begins
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),
        ("O I-X B-X", [("X", 1, 2), ("X", 2, 3)]),
        ("O O", []),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
    ],
)
def test_entities_of_bio(tags, expected):
    assert entities(tags.split(), "BIO") == expected


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-X I-X E-X S-Y", [("X", 0, 3), ("Y", 3, 4)]),
        ("B-X E-X", [("X", 0, 2)]),
        ("B-X I-X", []),
        ("I-X E-X", []),
        ("B-X I-Y E-X", []),
        ("B-X B-X E-X", [("X", 1, 3)]),
        ("B-X E-X E-X", [("X", 0, 2)]),
        ("B-X S-X E-X", [("X", 1, 2)]),
    ],
)
def test_entities_of_bioes(tags, expected):
    assert entities(tags.split(), "BIOES") == expected


def random_tags(rng, marks, length=12):
    choices = ["O", *(f"{m}-{kind}" for m in marks for kind in ("X", "Y"))]
    return [choices[i] for i in rng.integers(0, len(choices), length)]


def test_bio_equals_nltk():
    chunk = pytest.importorskip("nltk.chunk")
    rng = np.random.default_rng(0)
    for _ in range(300):
        tags = random_tags(rng, "BI")
        tree = chunk.conlltags2tree([(str(i), "N", tag) for i, tag in enumerate(tags)], strict=False)
        expected = [(t.label(), int(t[0][0]), int(t[-1][0]) + 1) for t in tree if not isinstance(t, tuple)]
        assert entities(tags, "BIO") == expected, tags


def test_bioes_is_what_its_definition_says():
    rng = np.random.default_rng(1)
    for _ in range(300):
        tags = random_tags(rng, "BIIES")
        expected = [(t[2:], i, i + 1) for i, t in enumerate(tags) if t[0] == "S"]
        for i in range(len(tags)):
            for end in range(i + 2, len(tags) + 1):
                for kind in "XY":
                    middle = [f"I-{kind}"] * (end - i - 2)
                    if tags[i:end] == [f"B-{kind}", *middle, f"E-{kind}"]:
                        expected.append((kind, i, end))
        assert sorted(entities(tags, "BIOES"), key=lambda e: e[1]) == sorted(expected, key=lambda e: e[1]), tags


def test_entity_figures_by_hand():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC"]]
    metrics = entity_metrics(true, predicted, "BIO")
    # Found are four entities, three are there, one is right: London in the first sentence.
    assert metrics["precision"] == 1 / 4 and metrics["recall"] == 1 / 3 and metrics["f1"] == pytest.approx(2 / 7)
    assert metrics["accuracy"] == 3 / 6 and metrics["count"] == 2
    assert metrics["per_type"]["LOC"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert metrics["per_type"]["PER"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert entity_metrics([["NN", "VB"]], [["NN", "NN"]], None) == {"accuracy": 0.5, "count": 1}
    assert entity_metrics([["O"]], [["O"]], "BIO")["f1"] == 0


def test_english_answers_by_hand():
    assert exact_match("The Eiffel Tower!", "eiffel tower", False)
    assert not exact_match("Eiffel", "eiffel tower", False)
    assert answer_f1("a big red dog", "the red dog barks", False) == pytest.approx(2 * (2 / 3) * (2 / 3) / (4 / 3))
    assert answer_f1("red red", "red", False) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert answer_f1("cat", "dog", False) == 0


def test_chinese_answers_by_hand():
    assert exact_match("《战国无双3》。", "战国无双3", True) and not exact_match("战国", "战国无双", True)
    assert chinese_words("光荣和ω-force 于2009年") == ["光", "荣", "和", "ωforce", "于", "2009", "年"]
    assert chinese_words("364.6公里") == ["364.6", "公", "里"]
    # Both share 光荣 and force, the longest run is 光荣: 2 of 3 words and 2 of 4.
    assert answer_f1("光荣force", "光荣和force", True) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert answer_f1("光荣", "光荣。", True) == 1 and answer_f1("甲", "乙", True) == 0


def test_the_best_of_several_answers_counts():
    questions = [Question("1", "谁？", "c", (("甲", 0), ("甲乙", 0))), Question("2", "where", "c", (("Rome", 0),))]
    assert answer_metrics(questions, ["甲乙", "Paris"], True) == {"exact_match": 0.5, "f1": 0.5, "count": 2}
    assert not is_chinese(questions) and is_chinese(questions[:1])


def test_the_best_span_is_that_of_brute_force():
    rng = np.random.default_rng(2)
    question = Question("1", "q", "abcdefghijklmnop")
    windows = [
        {"question": 0, "context": 2, "offsets": [(i, i + 1) for i in range(begin, begin + 8)]} for begin in (0, 4, 8)
    ]
    for _ in range(50):
        # Windows are padded to 12: what stands behind the context, and before it, is no answer however likely.
        outputs = [(rng.normal(0, 2, 12).astype(np.float32), rng.normal(0, 2, 12).astype(np.float32)) for _ in windows]
        spans = {}  # one in two windows is one answer, as likely as the better of them
        for w, window in enumerate(windows):
            for i in range(8):
                for j in range(i, min(i + 3, 8)):
                    score = float(outputs[w][0][2 + i]) + float(outputs[w][1][2 + j])
                    place = window["offsets"][i][0], window["offsets"][j][1]
                    spans[place] = max(score, spans.get(place, score))
        best = max(spans, key=spans.get)
        (answer,) = best_answers([question], windows, outputs, max_answer_length=3)
        assert (answer.start, answer.end) == best and answer.text == question.context[slice(*best)]
        total = sum(np.exp(v) for v in spans.values())
        assert answer.score == pytest.approx(np.exp(spans[best]) / total)
