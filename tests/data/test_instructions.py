import re
from collections import Counter

import pytest

from msllm.data import instructions
from msllm.data.instructions import LANGUAGES, TASKS, answer, check, chinese_numeral, generate


@pytest.fixture(scope="module")
def parts():
    return generate()


def operands(record):
    """What a question is about, the same for both languages, every wording and every order that does not matter."""
    text, task = record["input"], record["task"]
    if task == "translate":
        return instructions.PHRASES_BACK.get(text, text)
    names = {"上午": "am", "下午": "pm"}
    if task == "opposite":
        names |= {chinese: english for english, chinese in instructions.OPPOSITES_ZH.items()}
    elif task == "weekday":
        names |= dict(zip(instructions.WEEKDAYS_ZH, instructions.WEEKDAYS, strict=True))
        for number, month in enumerate(instructions.MONTHS, start=1):
            text = text.replace(month, str(number))
    else:
        names |= {chinese: english for english, chinese in instructions.NOUNS.items()}
    for chinese, english in names.items():
        text = text.replace(chinese, f" {english} ")
    words = [word for word in re.findall("[A-Za-z]+", text) if word not in ("day", "days", "later")]
    found = words + re.findall(r"\d+", text)
    return tuple(sorted(found) if next(t for t in TASKS if t.name == task).unordered else found)


def test_the_parts_hold_thousands_and_fifty_of_each_task(parts):
    train, test = parts
    assert 4000 <= len(train) <= 10_000
    assert Counter(r["task"] for r in test) == {task.name: 50 for task in TASKS}
    assert Counter(r["task"] for r in train) == {task.name: task.train for task in TASKS}


def test_a_seed_gives_the_same_records_and_another_seed_others(parts):
    assert generate() == parts
    assert generate(seed=1)[1] != parts[1]


def test_the_random_choices_are_those_of_every_python_version():
    draw = instructions._Draw(0)
    assert [draw.number(0, 999) for _ in range(5)] == [844, 757, 420, 258, 511]


def test_no_held_out_operands_are_in_the_training_part(parts):
    train, test = parts
    seen = {(r["task"], operands(r)) for r in train}
    assert len(seen) == len(train)  # asked once: neither in the other language nor in another wording
    assert not seen & {(r["task"], operands(r)) for r in test}


def test_half_of_each_task_is_in_each_language(parts):
    for part in parts:
        for task in TASKS:
            asked = Counter(r["instruction"] in task.zh for r in part if r["task"] == task.name)
            assert abs(asked[True] - asked[False]) <= 1


def test_check_agrees_with_every_output_without_looking_at_it(parts):
    for record in parts[0] + parts[1]:
        assert check({**record, "output": "?"}, record["output"]), record


def test_check_rejects_every_other_answer_of_the_task(parts):
    for part in parts:
        others = {task.name: sorted({r["output"] for r in part if r["task"] == task.name}) for task in TASKS}
        for record in part:
            wrong = [o for o in others[record["task"]] if o != record["output"]][:20]
            for text in ["", record["output"] + "0", record["output"][:-1], *wrong]:
                assert not check(record, text), (record, text)


@pytest.mark.parametrize(
    "instruction, text, right, wrong",
    [
        ("Add the numbers.", "58 + 67", "125", "115"),
        ("计算两个数的差。", "80 - 77", "3", "-3"),
        ("Which number is larger?", "39, 41", "41", "39"),
        ("写出下一个偶数。", "299", "300", "301"),
        ("Find the next even number.", "418", "420", "418"),
        ("用汉字写出这个数。", "305", "三百零五", "三百五"),
        ("Use the 24-hour clock.", "12:05 am", "00:05", "12:05"),
        ("改成24小时制。", "下午03:45", "15:45", "03:45"),
        ("Reverse the word order.", "cat pen tree", "tree pen cat", "cat pen tree"),
        ("按字母顺序排列。", "pen cat tree", "cat pen tree", "pen cat tree"),
        ("Give the opposites.", "wet, far", "dry, near", "dry, far"),
        ("写出反义词。", "大、慢", "小、快", "小、慢"),
        ("Translate into Chinese.", "clean cup", None, "干净的杯"),
        ("翻译成英文。", "干净的碗", "clean bowl", "bowl clean"),
        ("Which weekday is it then?", "Saturday, Dec 31, 3 days later", "Tuesday", "Monday"),
        ("到时候是星期几？", "11月2日是星期五，1天后", "星期六", "星期五"),
        ("Count the letter.", "b: a b b c b", "3", "2"),
        ("数一数这个字母。", "a: b c b b", "0", "1"),
    ],
)
def test_literal_questions_have_these_answers(instruction, text, right, wrong):
    record = {"instruction": instruction, "input": text}
    assert answer(record) == right
    assert right is None or check(record, f" {right}\n")
    assert not check(record, wrong)


def test_a_question_of_no_task_has_no_answer():
    assert answer({"instruction": "Write a poem.", "input": ""}) is None
    assert not check({"instruction": "Write a poem.", "input": ""}, "None")


@pytest.mark.parametrize(
    "number, text", [(10, "十"), (15, "十五"), (105, "一百零五"), (110, "一百一十"), (400, "四百")]
)
def test_chinese_numerals(number, text):
    assert chinese_numeral(number) == text


def test_every_wording_belongs_to_one_task():
    wordings = [wording for task in TASKS for language in LANGUAGES for wording in getattr(task, language)]
    assert len(wordings) == len(set(wordings))
