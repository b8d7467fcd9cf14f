"""ROUGE beside figures worked by hand and a library of another author, and the first sentences of articles."""

import pytest

from msllm.errors import UserError
from msllm.evaluation.rouge import ChineseTokens, first_sentences, lead_3, rouge


def test_figures_worked_by_hand():
    # Words: the 1, cat, on, mat of 6 and 6. Pairs: only "the cat" of 5 and 5. In order: the cat on mat.
    scores = rouge(["The cat sat on the mat."], ["the cat lay on a mat"], chinese=False)
    assert scores == {"rouge1": pytest.approx(4 / 6), "rouge2": pytest.approx(1 / 5), "rougeL": pytest.approx(4 / 6)}
    # All 3 words of the summary stand in the reference of 6, which ROUGE-L counts in order only: 2 of them.
    scores = rouge(["rain stops the match in Rome"], ["Rome rain stops"], chinese=False)
    assert scores == {
        "rouge1": pytest.approx(2 * 1 * 0.5 / 1.5),
        "rouge2": pytest.approx(2 * (1 / 2) * (1 / 5) / (1 / 2 + 1 / 5)),
        "rougeL": pytest.approx(2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6)),
    }


def test_english_goes_by_stems_and_the_result_is_the_mean():
    assert rouge(["dogs running"], ["dog runs"], chinese=False)["rouge2"] == 1
    scores = rouge(["dogs running", "a cat"], ["dog runs", ""], chinese=False)
    assert set(scores.values()) == {0.5} and list(scores) == ["rouge1", "rouge2", "rougeL"]


def test_chinese_counts_characters_which_the_english_way_drops():
    assert rouge(["比赛取消"], ["比赛取消"], chinese=False)["rouge1"] == 0
    # Characters 比 赛 取 消 and 取 消 比 拼: three in common, the pair 取消, two in order.
    scores = rouge(["比赛取消"], ["取消比拼"], chinese=True)
    assert scores == {"rouge1": pytest.approx(3 / 4), "rouge2": pytest.approx(1 / 3), "rougeL": pytest.approx(2 / 4)}


def test_chinese_tokens():
    tokens = ChineseTokens().tokenize("我们用GPT-2，涨了3.5%，共1,000元。二〇一五 été")
    assert " ".join(tokens) == "我 们 用 gpt 2 涨 了 3.5 共 1,000 元 二 〇 一 五 été"


@pytest.mark.parametrize(
    "reference, summary",
    [
        ("比赛因雨取消", "因雨比赛被取消"),
        ("林志颖公司疑涉虚假营销", "方舟子直指林志颖公司虚假营销虚假"),
        ("日日日日雨", "日日雨雨雨"),
        ("今天雨", "明晨晴朗"),
    ],
)
def test_chinese_equals_rouge_chinese(reference, summary):
    other = pytest.importorskip("rouge_chinese")
    # exclusive=False counts what occurs twice twice; its ROUGE-L is the longest common subsequence of whole texts.
    theirs = other.Rouge(exclusive=False).get_scores(" ".join(summary), " ".join(reference))[0]
    ours = rouge([reference], [summary], chinese=True)
    for name, key in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougeL", "rouge-l")):
        assert ours[name] == pytest.approx(theirs[key]["f"], abs=1e-7)


def test_chinese_with_other_words_equals_rouge_chinese():
    other = pytest.importorskip("rouge_chinese")
    theirs = other.Rouge(exclusive=False).get_scores("我 们 用 gpt 2 涨 3.5", "他 们 用 gpt 涨 了 3.5")[0]
    ours = rouge(["他们用GPT涨了3.5%。"], ["我们用GPT-2，涨3.5%"], chinese=True)
    assert list(ours.values()) == pytest.approx([theirs[f"rouge-{k}"]["f"] for k in "12l"], abs=1e-7)


def test_as_many_references_as_summaries():
    with pytest.raises(UserError, match="1 summaries and 2 references; give one for each"):
        rouge(["a", "b"], ["a"], False)
    with pytest.raises(UserError, match="0 summaries and 0 references"):
        rouge([], [], False)


def sentences(text):
    """All sentences of a text, by the growth of its first n."""
    found = [first_sentences(text, 1)]
    while len(whole := first_sentences(text, len(found) + 1)) > len("".join(found)):
        rest = whole[sum(map(len, found)) :]
        found.append(rest)
    return [part.strip() for part in found]


@pytest.mark.parametrize(
    "expected",
    [
        ["It rained.", "Why?", "Nobody knew!", "The end"],
        ["The U.S. Senate voted 3.5 to 1, Mr. Smith said.", "J. K. Rowling left."],
        ["He lives in the U.S.", "The others left at 5 p.m.", "They came back."],
        ['"Why?" he asked.', "“Because.”", "(It rained.)", "So be it."],
        ["See No. 5 on Jan. 3.", "She said no.", "We met Dr. Who... and left...", "Fine."],
        ["Visit example.com now.", "Apple Inc. rose 3.5%."],
        ["罗马今天下雨3.5小时。", "比赛取消了！", "“为什么？”", "没人知道"],
        ["“好！”，他说。", "真的?", "我不信！？", "是的。"],
    ],
)
def test_where_sentences_end(expected):
    chinese = "。" in "".join(expected)
    assert sentences(("" if chinese else " ").join(expected)) == expected


def test_lead_3_keeps_the_text_as_it_stands():
    assert lead_3(" Headline\n\nOne.  Two. Three.\n") == "Headline\n\nOne.  Two."
    assert lead_3("One. Two. ") == "One. Two." and lead_3("no end") == "no end" and lead_3("") == ""
    assert lead_3("一。二！三？四。") == "一。二！三？"
