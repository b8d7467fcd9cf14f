import json
import sys
import types

import pytest

from msllm.data import Record, load_records, parse_record, train_validation_split
from msllm.errors import UserError

ANSWER = {"role": "assistant", "content": "4"}
QUESTION = {"role": "user", "content": "2+2?"}


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return make


def test_alpaca_with_system_and_history_becomes_messages():
    record = parse_record(
        {
            "instruction": "Translate.",
            "input": "Good morning",
            "output": "Bonjour",
            "system": "You translate.",
            "history": [["Hello", "Salut"]],
        }
    )
    assert [(m["role"], m["content"]) for m in record.messages] == [
        ("system", "You translate."),
        ("user", "Hello"),
        ("assistant", "Salut"),
        ("user", "Translate.\nGood morning"),
        ("assistant", "Bonjour"),
    ]


def test_sharegpt_with_tools_becomes_messages():
    record = parse_record(
        {
            "conversations": [
                {"from": "human", "value": "1+2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 2}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "It is 3."},
            ],
            "system": "Be brief.",
            "tools": '[{"name": "add"}]',
        }
    )
    assert [m["role"] for m in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.messages[2]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    ]
    assert record.tools == [{"name": "add"}]


def test_messages_prompt_completion_and_text_are_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    record = parse_record({"messages": [QUESTION, call, {"role": "tool", "content": "4", "tool_call_id": "x"}, ANSWER]})
    assert record.messages[0] == QUESTION
    assert record.messages[1]["content"] == "" and record.messages[1]["tool_calls"] == call["tool_calls"]
    assert record.messages[2]["tool_call_id"] == "x"
    assert parse_record({"prompt": "a", "completion": " b"}) == Record(prompt="a", completion=" b")
    assert parse_record({"text": "t"}) == Record(text="t")


@pytest.mark.parametrize(
    "raw, message",
    [
        ([1], "r is a list, expected an object"),
        ({}, "r has the keys none; expected instruction and output"),
        ({"question": "q", "answer": "a"}, "r has the keys question, answer; expected"),
        (
            {"instruction": "q", "ouput": "a"},
            r"r lacks the key output \(did you mean 'ouput'\?\); it has instruction, oup",
        ),
        ({"prompt": "q"}, "r lacks the key completion; it has prompt"),
        ({"instruction": "q", "output": 3}, "r: output is a number, expected a string"),
        (
            {"instruction": "q", "output": "a", "history": [["q"]]},
            r"history holds \['q'\], expected \[question, answer\]",
        ),
        ({"instruction": "q", "output": "a", "history": "x"}, "history is a string, expected a list"),
        ({"text": None}, "r: text is null, expected a string"),
        ({"text": "ab\ud83d"}, r"r: text has half a character, '.ud83d', at position 2"),
        ({"messages": {}}, "r: messages is an object, expected a list of turns"),
        ({"messages": []}, "r: messages is empty"),
        ({"messages": [QUESTION]}, r"r has no assistant turn \(roles: user\)"),
        ({"messages": ["hi"]}, "r, turn 1 is a string, expected an object with role and content"),
        (
            {"messages": [QUESTION, {"role": "asistant", "content": "x"}]},
            "turn 2 has the role 'asistant'.* 'assistant'",
        ),
        ({"messages": [{"role": "user", "content": [1]}, ANSWER]}, "turn 1: content is a list, expected a string"),
        ({"messages": [{"role": "user"}, ANSWER]}, "turn 1 lacks the key content; it has role"),
        ({"conversations": [{"value": "x"}]}, "turn 1 lacks the key from; it has value"),
        ({"conversations": [{"from": "humans", "value": "x"}]}, "turn 1 has from 'humans'.*did you mean 'human'"),
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, "turn 1: a function_call is not JSON"),
        ({"conversations": [{"from": "function_call", "value": "[1]"}]}, "turn 1: a function_call is JSON such as"),
        ({"messages": [QUESTION, ANSWER], "tools": "{"}, "r: tools is not JSON"),
    ],
)
def test_a_bad_record_says_what_is_wrong_with_it(raw, message):
    with pytest.raises(UserError, match=message):
        parse_record(raw, "r")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "", "a.json is empty"),
        ("a.jsonl", " \n\n", "a.jsonl is empty"),
        ("a.txt", "", "a.txt is empty"),
        ("a.json", "[]", "a.json holds an empty list"),
        ("a.json", {"text": "x"}, "a.json holds one dict, expected a list of records"),
        ("a.json", "[1,", "a.json is not JSON: .* at line 1, column 4"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "a.jsonl, line 2 is not JSON: .* column 8"),
        ("a.json", '[{"text": "x"}, {"txt": "x"}]', "a.json, record 2 has the keys txt; expected"),
        ("a.jsonl", '{"text": "x"}\n\n{"txt": "x"}', "a.jsonl, line 3 has the keys txt; expected"),
        ("a.jsonl", '{"text": "中"}'.encode("gb18030"), "a.jsonl is not UTF-8 text: byte 10 is 0xd6"),
        ("a.csv", "text\nx", "a.csv has the ending '.csv', expected one of .json, .jsonl, .txt"),
    ],
)
def test_a_bad_file_is_named_with_the_place(write, name, content, message):
    with pytest.raises(UserError, match=message):
        load_records(write(name, content))


def test_a_missing_file_suggests_its_neighbour(write):
    path = write("train.jsonl", '{"text": "x"}')
    with pytest.raises(UserError, match=r"trian.jsonl does not exist \(did you mean 'train.jsonl'\?\)"):
        load_records(path.with_name("trian.jsonl"))


def test_json_lines_are_read_whatever_the_ending(write):
    lines = '{"text": "a\u2028b"}\r\n{"text": "c"}\n'
    for name in ("a.jsonl", "a.json"):
        assert [record.text for record in load_records(write(name, lines))] == ["a\u2028b", "c"]
    assert [record.text for record in load_records(write("b.json", '[\n{"text":\n"a"}]'))] == ["a"]


def test_blank_lines_separate_the_documents_of_a_text_file(write):
    path = write("a.txt", "\ufeffone\ntwo\n\n \n  three\n\n")
    assert [record.text for record in load_records(path)] == ["one\ntwo", "  three"]
    assert [record.text for record in load_records(path, split_text=False)] == ["one\ntwo\n\n \n  three\n\n"]


def test_a_folder_is_read_in_the_order_of_names(write, tmp_path):
    write("b.txt", "second")
    write("a.jsonl", '{"text": "first"}')
    write("notes.md", "no")
    assert [record.text for record in load_records(tmp_path)] == ["first", "second"]


def test_a_folder_without_data_lists_what_it_holds(write, tmp_path):
    write("notes.md", "no")
    with pytest.raises(UserError, match=r"has no \.json, \.jsonl, \.txt file; it holds: notes.md"):
        load_records(tmp_path)


def test_limit_takes_the_first_or_with_a_seed_a_fixed_choice(write):
    path = write("a.json", [{"text": str(n)} for n in range(20)])
    assert [record.text for record in load_records(path, limit=3)] == ["0", "1", "2"]
    chosen = [int(record.text) for record in load_records(path, limit=5, seed=1)]
    assert chosen == [int(record.text) for record in load_records(path, limit=5, seed=1)] == sorted(set(chosen))
    assert chosen not in ([0, 1, 2, 3, 4], [int(r.text) for r in load_records(path, limit=5, seed=2)])
    assert len(load_records(path, limit=50, seed=1)) == 20
    with pytest.raises(UserError, match="limit 0"):
        load_records(path, limit=0)


def test_a_hub_dataset_is_read_and_its_failure_is_one_line(monkeypatch):
    rows = [{"instruction": "q", "input": None, "output": "a"}]
    found = {("me/set", "test"): rows}
    fake = types.SimpleNamespace(load_dataset=lambda name, split: found[name, split])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    (record,) = load_records("me/set", split="test")
    assert record.messages[1] == {"role": "assistant", "content": "a"} and record.source == "me/set, record 1"
    with pytest.raises(UserError, match=r"me/other is not a file here, and .*: .'me/other', 'train'.;"):
        load_records("me/other")


@pytest.mark.parametrize(
    "file, count, roles",
    [
        ("alpaca_en_demo.json", 999, ["user", "assistant"]),
        ("alpaca_zh_demo.json", 1000, ["user", "assistant"]),
        ("identity.json", 91, ["user", "assistant"]),
        ("kto_en_demo.json", 300, ["user", "assistant"]),
        ("glaive_toolcall_zh_demo.json", 300, ["user", "assistant", "tool", "assistant"]),
        ("mllm_demo.json", 6, ["user", "assistant", "user", "assistant"]),
    ],
)
def test_real_files_are_read_whole(data_folder, file, count, roles):
    records = load_records(data_folder / "llama_factory" / file)
    assert len(records) == count
    assert [message["role"] for message in records[0].messages][: len(roles)] == roles


def test_the_split_is_fixed_by_its_seed_and_loses_nothing():
    train, validation = train_validation_split(list(range(100)), 0.1, seed=3)
    assert (train, validation) == train_validation_split(list(range(100)), 0.1, seed=3)
    assert len(validation) == 10 and sorted(train + validation) == list(range(100))
    assert train == sorted(train) and validation == sorted(validation)
    assert validation != train_validation_split(list(range(100)), 10, seed=4)[1]
    assert len(train_validation_split(list(range(100)), 7)[1]) == 7
    for bad in (0, 100, 0.001):
        with pytest.raises(UserError, match="each needs at least 1"):
            train_validation_split(list(range(100)), bad)
