"""Articles and summaries: the files that are read, and the ids and labels that they become."""

import json

import pytest

from msllm.data import IGNORED, Record, encode_record, encode_records, load_records, parse_record
from msllm.data.loading import load_summaries
from msllm.data.summaries import TL_DR, in_chinese, prompt_ids, summary_text
from msllm.errors import UserError

ARTICLE = "It rained all day in Rome. The match was put off."
# The form of the published files: PART_I has no human_label, four spaces a level, texts on lines of their own.
LCSTS = """<doc id=0>
    <human_label>5</human_label>
    <summary>
        林志颖公司疑涉虚假营销
    </summary>
    <short_text>
        日前，方舟子发文直指林志颖旗下爱碧丽推销假保健品 <转>
    </short_text>
</doc>
<doc id=7>
    <human_label>2</human_label>
    <summary>
        可穿戴 & 技术
    </summary>
    <short_text>
        可穿戴技术十大设计原则
    </short_text>
</doc>
"""


def summarised(article=ARTICLE, summary="Rain stops play.", **fields):
    return Record(article=article, completion=summary, **fields)


def parts(example):
    """The ids that are not trained, and those that are; every label is its own id or ignored."""
    trained = [label for label in example["labels"] if label != IGNORED]
    count = len(example["labels"]) - len(trained)
    assert example["labels"] == [IGNORED] * count + example["input_ids"][count:]
    return example["input_ids"][:count], trained


@pytest.mark.parametrize("key", ["summary", "summarization", "highlights"])
def test_an_article_with_its_summary_is_a_record(key):
    assert parse_record({"article": "a", key: "s", "id": 3}, "f, line 1") == summarised("a", "s", source="f, line 1")


def test_the_paragraphs_of_nlpcc_2017_become_lines_and_its_txt_file_is_read(tmp_path):
    path = tmp_path / "train_with_summ.txt"
    lines = [{"summarization": "下雨了", "article": f"今天下雨。<Paragraph>比赛{n}取消。"} for n in range(3)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    records = load_summaries(path, limit=2)
    assert [r.article for r in records] == ["今天下雨。\n比赛0取消。", "今天下雨。\n比赛1取消。"]
    assert records[1].completion == "下雨了" and records[1].source == f"{path}, line 2"
    path.write_text('{"summarization": "a", "article": "b"}\n{"summarization": \n', encoding="utf-8")
    with pytest.raises(UserError, match=r"train_with_summ\.txt, line 2 is not JSON"):
        load_records(path)


def test_files_of_lcsts_with_and_without_scores(tmp_path):
    path = tmp_path / "PART_III.txt"
    path.write_text(LCSTS, encoding="utf-8")
    first, second = load_records(path)
    assert first == summarised(
        "日前，方舟子发文直指林志颖旗下爱碧丽推销假保健品 <转>", "林志颖公司疑涉虚假营销", source=f"{path}, doc 0"
    )
    assert (second.completion, second.source) == ("可穿戴 & 技术", f"{path}, doc 7")
    assert load_summaries(path, min_score=3) == [first]
    with pytest.raises(UserError, match=r"PART_III\.txt has no doc whose human_label is 6 or more; lower min_score"):
        load_summaries(path, min_score=6)
    unlabelled = "\n".join(line for line in LCSTS.splitlines() if "human_label" not in line)
    path.write_text(unlabelled.replace("\n", "\r\n"), encoding="utf-8")
    assert load_records(path) == [first, second]
    with pytest.raises(UserError, match=r"PART_III\.txt, line 1 \(doc 0\) has no human_label; leave min_score out"):
        load_records(path, min_score=3)


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("    </short_text>\n</doc>\n<doc id=7>", "    </short_text>\n<doc id=7>", "line 1 \\(doc 0\\)"),
        ("可穿戴技术十大设计原则", " ", "line 10 \\(doc 7\\)"),
        ("<human_label>2", "<human_label>two", "line 10 \\(doc 7\\)"),
        ("<summary>\n        可", "<sumary>\n        可", "line 10 \\(doc 7\\)"),
        ("</doc>\n<doc id=7>", "</doc>\nstray\n<doc id=7>", "line 1 \\(doc 0\\)"),
    ],
)
def test_a_bad_doc_of_lcsts_is_named_by_its_line(tmp_path, old, new, line):
    path = tmp_path / "PART_I.txt"
    assert old in LCSTS
    path.write_text(LCSTS.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=rf"PART_I\.txt, {line}: expected <summary> and <short_text>"):
        load_records(path)


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"article": "a"}, "r lacks the key summary; it has article"),
        ({"article": "a", "sumary": "s"}, r"r lacks the key summary \(did you mean 'sumary'\?\)"),
        ({"article": " \n", "summary": "s"}, "r: article is empty; mend or remove it"),
        ({"article": ["a"], "summary": "s"}, "r: article is a list, expected a string"),
        ({"summary": "s"}, "r has the keys summary; expected .*article and summary"),
    ],
)
def test_a_bad_record_says_what_is_wrong(raw, message):
    with pytest.raises(UserError, match=message):
        parse_record(raw, "r")


def test_what_is_measured_needs_articles_and_summaries(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"article": "a", "summary": "s"}\n{"text": "t"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 is no article with its summary; expected"):
        load_summaries(path)
    path.write_text('{"article": "a", "summary": " "}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 1 has an empty summary"):
        load_summaries(path)
    with pytest.raises(UserError, match=r"min_score is 3, and .*a\.jsonl is no file of LCSTS"):
        load_summaries(path, min_score=3)


def test_only_the_summary_and_its_end_are_trained(letters):
    (example,) = encode_record(summarised(" abc. \n", " Rain\n"), letters, 99)
    prompt, trained = parts(example)
    assert letters.decode(prompt, False) == "abc.\nTL<unk>DR:"  # the vocabulary has no semicolon
    assert letters.decode(trained, False) == " Rain</s>"


def test_literal_ids(real):
    (example,) = encode_record(summarised("Hi", "Yes"), real("gpt2"), 99)
    assert example["input_ids"] == [17250, 198, 14990, 26, 7707, 25, 3363, 50256]
    assert example["labels"] == [-100] * 6 + [3363, 50256]


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
@pytest.mark.parametrize(
    "summary, text",
    [("Rain stops play.", " Rain stops play."), ("iPhone发布", "iPhone发布"), ("《雨》停赛", "《雨》停赛")],
)
def test_generation_starts_from_the_ids_before_the_summary(real, name, summary, text):
    tokenizer = real(name)
    for article in (ARTICLE, "今天下雨。比赛取消了😀"):
        (example,) = encode_record(summarised(article, summary), tokenizer, 999)
        prompt, trained = parts(example)
        assert prompt == prompt_ids(article, tokenizer) == tokenizer.encode(article + TL_DR)
        assert trained[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(prompt) == article + TL_DR
        assert tokenizer.decode(example["input_ids"]) == article + TL_DR + text


def test_the_space_goes_by_the_language_of_the_summary():
    assert summary_text(" a b\n") == " a b" and summary_text("比赛") == "比赛"
    assert in_chinese("苹果发布iPhone 6") and not in_chinese("Xi Jinping (习近平) spoke")


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
@pytest.mark.parametrize("article", [ARTICLE * 3, "今天下雨，罗马的比赛取消了。" * 4, "😀" * 20, "walking" * 30])
def test_a_long_article_loses_its_end_and_nothing_else(real, name, article):
    tokenizer = real(name)
    whole = prompt_ids(article, tokenizer)
    (full,) = encode_record(summarised(article, "Rain stops play."), tokenizer, 999)
    answer = parts(full)[1]
    mark = prompt_ids("", tokenizer)
    for max_length in range(len(mark) + len(answer) + 6, len(full["input_ids"])):
        (example,) = encode_record(summarised(article, "Rain stops play."), tokenizer, max_length)
        prompt, trained = parts(example)
        assert trained == answer
        text = tokenizer.decode(prompt)
        assert text.endswith(TL_DR) and article.startswith(text.removesuffix(TL_DR)) and len(text) > len(TL_DR)
        assert max_length - 4 <= len(example["input_ids"]) <= max_length  # a character may have up to four tokens
        assert prompt == prompt_ids(article, tokenizer, max_length - len(answer)) == tokenizer.encode(text)
    assert prompt_ids(article, tokenizer, len(whole)) == whole


def test_a_summary_that_is_too_long_keeps_its_beginning_beside_half_of_the_room(letters):
    (example,) = encode_record(summarised("abcdefghij" * 3, "Z" * 50), letters, 40)
    prompt, trained = parts(example)
    assert letters.decode(prompt, False) == "abcdefghijabc\nTL<unk>DR:" and letters.decode(trained) == " " + "Z" * 19
    (example,) = encode_record(summarised("abcdefghij" * 3, "Z" * 30), letters, 40)  # just leaves one letter
    assert [letters.decode(ids, False) for ids in parts(example)] == ["a\nTL<unk>DR:", " " + "Z" * 30 + "</s>"]
    (example,) = encode_record(summarised("abc", "Z" * 50), letters, 40)  # a short article stays whole
    assert [letters.decode(ids, False) for ids in parts(example)] == ["abc\nTL<unk>DR:", " " + "Z" * 29]


def test_the_report_counts_cut_articles_and_empty_summaries(letters):
    records = [summarised("abc", "d"), summarised("abcdefghij", "d"), summarised("abc", " ")]
    examples, report = encode_records(records, letters, 14)
    assert [len(example["input_ids"]) for example in examples] == [13, 14]
    assert (report.records, report.examples, report.truncated, report.dropped) == (3, 2, 1, 1)
    assert report.trained_tokens == 6


def test_no_room_for_an_article_is_a_user_error(letters):
    with pytest.raises(UserError, match='there is room for 7 tokens of an article and "TL;DR:", which alone has 7'):
        prompt_ids("abc", letters, 7)
    with pytest.raises(UserError, match=r"f, line 3: there is room for 4 tokens .* raise max_length"):
        encode_records([summarised(source="f, line 3")], letters, 9)
