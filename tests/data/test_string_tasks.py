"""Sums digit by digit, and strings changed as a prompt says."""

from msllm.data import IGNORED
from msllm.data.string_tasks import additions, string_answer, string_records


def number(digits):
    return int("".join(map(str, digits)))


def test_every_sum_is_there_once_and_right():
    train, held_out = additions(2, 500)
    assert (len(train), len(held_out)) == (9500, 500)
    seen = set()
    for example in train + held_out:
        ids, labels = example["input_ids"], example["labels"]
        a, b, c = number(ids[:2]), number(ids[2:4]), number(ids[:3:-1])
        assert a + b == c
        assert labels == [IGNORED] * 4 + ids[4:]
        seen.add((a, b))
    assert len(seen) == 10000
    assert additions(2, 500)[1] == held_out
    assert additions(1, 10)[1][0]["input_ids"] != additions(1, 10, seed=1)[1][0]["input_ids"]


def test_strings_are_changed_in_the_order_of_the_prompt():
    assert string_answer(["reverse", "upper"], "abc") == "CBA"
    assert string_answer(["double", "first"], "xy") == "x"
    assert string_answer(["sort"], "cab") == "abc"
    records = string_records([["copy"], ["double", "upper"]], 200, 5)
    assert records == string_records([["copy"], ["double", "upper"]], 200, 5)
    prompts = {r["prompt"].partition(":")[0] for r in records}
    assert prompts == {"copy", "double, upper"}
    for r in records:
        names, _, text = r["prompt"].removesuffix(" = ").partition(": ")
        assert 2 <= len(text) <= 5 and string_answer(names.split(", "), text) == r["completion"]
