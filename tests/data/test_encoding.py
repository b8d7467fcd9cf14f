import pytest

from msllm.data import IGNORED, Record, collate, encode_record, encode_records, load_records, parse_record
from msllm.errors import UserError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
# No line feed or special token between prompt and answer: tokens merge across every border.
MERGING = (
    "{% for message in messages %}{{ message.role + ':' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# Shows the thoughts of the last answer only, as reasoning models do.
THINKING = (
    "{% for message in messages %}{{ message.role + '>' }}{% if message.role == 'assistant' and not loop.last %}"
    "{{ message.content.split('</think>')[-1] }}{% else %}{{ message.content }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant>' }}{% endif %}"
)
TEMPLATES = {"default": None, "chatml": CHATML, "llama2": LLAMA2, "merging": MERGING, "thinking": THINKING}


def chat(*contents, **fields):
    roles = ("user", "assistant")
    return Record(messages=tuple({"role": roles[i % 2], "content": c} for i, c in enumerate(contents)), **fields)


def trained_texts(example, tokenizer):
    """The text of each stretch of trained tokens."""
    runs, last = [], None
    for i, label in enumerate(example["labels"]):
        assert label in (IGNORED, example["input_ids"][i])
        if label != IGNORED:
            if last != i - 1:
                runs.append([])
            runs[-1].append(label)
            last = i
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def assert_prompts_are_prefixes(record, tokenizer):
    """Before each answer's trained tokens stand exactly the ids that generation would start from."""
    examples = encode_record(record, tokenizer, 10**6)
    for i, message in enumerate(record.messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(record.messages[:i], add_generation_prompt=True, tools=record.tools)
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        assert any(
            example["input_ids"][: len(ids)] == ids
            and example["labels"][len(ids) - 1] == IGNORED
            and example["labels"][len(ids) : len(ids) + 1] not in ([], [IGNORED])
            for example in examples
        ), (record.source, i)
    return examples


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_the_prompt_at_generation_is_a_prefix_of_the_training_ids(template, name, real, data_folder):
    tokenizer = real(name)
    tokenizer.chat_template = TEMPLATES[template]
    for file in ("alpaca_en_demo", "alpaca_zh_demo", "kto_en_demo", "glaive_toolcall_zh_demo", "identity"):
        for record in load_records(data_folder / "llama_factory" / f"{file}.json", limit=5, seed=0):
            for example in assert_prompts_are_prefixes(record, tokenizer):
                stops = [i for i, label in enumerate(example["labels"]) if label in tokenizer.eos_token_ids]
                assert stops and stops[-1] == len(example["labels"]) - 1


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["gpt2", "llama2"])
@pytest.mark.parametrize("answers", [("\n\nTwo", "  def f():\n"), (" 你好😀", "ing"), ("'s it", "' s"), ("1", "2")])
def test_it_holds_where_tokens_merge_and_the_text_is_kept(template, name, answers, real):
    tokenizer = real(name)
    tokenizer.chat_template = TEMPLATES[template]
    record = chat("walk", answers[0], "again\n", answers[1])
    examples = assert_prompts_are_prefixes(record, tokenizer)
    ids = examples[-1]["input_ids"]
    text = tokenizer.apply_chat_template(record.messages)
    whole = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False).replace(tokenizer.eos_token, "").split() == (
        whole.replace(tokenizer.eos_token, "").split()
    )


def test_a_merging_border_is_really_there(real):
    # Otherwise the test above would prove nothing.
    tokenizer = real("gpt2")
    assert tokenizer.encode("assistant:'s")[:3] != tokenizer.encode("assistant:")
    assert tokenizer.encode("walking") != tokenizer.encode("walk") + tokenizer.encode("ing")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (example,) = encode_record(chat("walk", "ing"), tokenizer, 64)
    assert example["input_ids"] == tokenizer.encode("walk") + tokenizer.encode("ing") + [50256]


def test_an_answer_split_from_its_prompt_gets_no_space_of_its_own(real):
    tokenizer = real("llama2")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (example,) = encode_record(chat("walk", "ing"), tokenizer, 64)
    assert tokenizer.decode(example["input_ids"]) == "walking"
    assert example["labels"][-1] == 2


def test_every_answer_is_trained_with_its_eos_and_nothing_else(letters):
    record = chat("Hi?", "Yes.", "Why?", "So.")
    (example,) = encode_record(record, letters, 999)
    assert trained_texts(example, letters) == ["Yes.</s>", "So.</s>"]
    assert letters.decode(example["input_ids"], False) == (
        "User:\nHi?\n\nAssistant:\nYes.</s>\n\nUser:\nWhy?\n\nAssistant:\nSo.</s>"
    )


def test_literal_ids_and_labels(real):
    (example,) = encode_record(chat("Hi", "Yes"), real("gpt2"), 99)
    assert example["input_ids"] == [12982, 25, 198, 17250, 198, 198, 48902, 25, 198, 5297, 50256]
    assert example["labels"] == [-100] * 9 + [5297, 50256]


def test_the_turn_mark_of_chatml_is_trained_but_not_the_line_feed_after_it(real):
    tokenizer = real("gpt2")
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    (example,) = encode_record(chat("Hi", "Yes", "Why", "So"), tokenizer, 99)
    assert trained_texts(example, tokenizer) == ["Yes<|im_end|>", "So<|im_end|>"]


def test_an_answer_without_a_mark_gets_the_eos_and_turns_become_examples(real):
    tokenizer = real("gpt2")
    tokenizer.chat_template = MERGING
    first, second = encode_record(chat("Hi", "Yes", "Why", "So"), tokenizer, 99)
    assert tokenizer.decode(first["input_ids"], False) == "user:Hi\nassistant:Yes<|endoftext|>"
    assert tokenizer.decode(second["input_ids"], False) == "user:Hi\nassistant:Yes\nuser:Why\nassistant:So<|endoftext|>"
    assert trained_texts(second, tokenizer) == ["So<|endoftext|>"]


def test_thoughts_are_trained_and_then_dropped_as_the_template_does(letters):
    letters.chat_template = THINKING
    try:
        first, second = encode_record(chat("Q", "hm</think>A", "R", "so</think>B"), letters, 999)
    finally:
        letters.chat_template = None
    assert [trained_texts(e, letters) for e in (first, second)] == [
        ["hm<unk><unk>think<unk>A</s>"],
        ["so<unk><unk>think<unk>B</s>"],
    ]
    assert "hm" not in letters.decode(second["input_ids"])


def test_tool_turns_are_context_and_tool_calls_are_trained(real):
    record = parse_record(
        {
            "conversations": [
                {"from": "human", "value": "1+2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": [1, 2]}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "It is 3."},
            ],
            "tools": '[{"name": "add"}]',
        }
    )
    tokenizer = real("gpt2")
    (example,) = encode_record(record, tokenizer, 999)
    assert trained_texts(example, tokenizer) == [
        '{"name": "add", "arguments": [1, 2]}<|endoftext|>',
        "It is 3.<|endoftext|>",
    ]
    assert tokenizer.decode(example["input_ids"]).startswith('Tools:\n[{"name": "add"}]\n\nUser:\n1+2?')


def test_a_completion_continues_its_prompt(real):
    (example,) = encode_record(Record(prompt="The capital is", completion=" Paris."), real("gpt2"), 99)
    assert example["input_ids"] == [464, 3139, 318, 6342, 13, 50256]
    assert example["labels"] == [-100, -100, -100, 6342, 13, 50256]
    llama = real("llama2")
    (example,) = encode_record(Record(prompt="The capital is", completion=" Paris."), llama, 99)
    assert example["input_ids"] == [*llama.encode("The capital is Paris."), 2]


def test_texts_train_every_token_once_in_pieces_that_share_one(letters):
    pieces = encode_record(Record(text="abcdefgh"), letters, 4)
    ids = [*letters.encode("abcdefgh"), 3]
    assert [piece["input_ids"] for piece in pieces] == [ids[0:4], ids[3:7], ids[6:9]]
    assert all(piece["labels"] == piece["input_ids"] for piece in pieces)
    assert [ids[0], *(label for piece in pieces for label in piece["labels"][1:])] == ids
    assert [len(p["input_ids"]) for p in encode_record(Record(text="abc"), letters, 4)] == [4]
    assert [len(p["input_ids"]) for p in encode_record(Record(text="abcd"), letters, 4)] == [4, 2]


def test_a_long_prompt_keeps_its_end_and_the_answer_whole(letters):
    record = Record(prompt="abcdefghij", completion="XYZ")
    (example,) = encode_record(record, letters, 8)
    assert letters.decode(example["input_ids"], False) == "ghijXYZ</s>"
    assert trained_texts(example, letters) == ["XYZ</s>"]
    (example,) = encode_record(Record(prompt="abcdefghij", completion="UVWXYZ"), letters, 8)
    assert letters.decode(example["input_ids"], False) == "ghijUVWX"  # half is the prompt's, the answer loses its end


def test_a_cut_prompt_keeps_its_bos(real):
    llama = real("llama2")
    (example,) = encode_record(Record(prompt="one two three four five", completion=" six"), llama, 5)
    assert example["input_ids"] == [1, *llama.encode("four five six", add_special_tokens=False)[-3:], 2]


def test_a_long_conversation_loses_its_last_turns(letters):
    record = chat("Hi?", "Yes.", "Why?", "So.")
    (whole,) = encode_record(record, letters, 999)
    (example,) = encode_record(record, letters, 40)
    assert example["input_ids"] == whole["input_ids"][:40]
    assert trained_texts(example, letters) == ["Yes.</s>"]


def test_the_report_counts_what_was_cut_and_dropped(letters):
    records = [
        Record(prompt="abc", completion="d"),
        Record(prompt="abcdefgh", completion="i"),
        Record(prompt="a", completion=" "),
        chat("a", ""),
    ]
    examples, report = encode_records(records, letters, 6)
    assert len(examples) == 2
    assert (report.records, report.examples, report.truncated, report.dropped) == (4, 2, 1, 2)
    assert (report.tokens, report.trained_tokens) == (11, 4)
    assert str(report) == "4 records -> 2 examples, 11 tokens of which 4 trained; 1 truncated, 2 dropped"


def test_nothing_left_to_train_is_a_user_error(letters):
    with pytest.raises(UserError, match="none of the 1 records has a token to train on within max_length 1"):
        encode_records([Record(prompt="abc", completion="d")], letters, 1)


def test_a_tokenizer_without_eos_cannot_train_answers(real):
    with pytest.raises(UserError, match="no eos_token, so the model could not learn to stop"):
        encode_record(chat("a", "b"), real("bert-base-chinese"), 9)


def test_a_record_that_the_template_refuses_is_named(letters):
    letters.chat_template = "{{ raise_exception('system role not supported') }}"
    try:
        with pytest.raises(UserError, match=r"f\.json, record 3, turn 2: .* system role not supported"):
            encode_record(chat("a", "b", source="f.json, record 3"), letters, 9)
        letters.chat_template = "{% if add_generation_prompt %}G{% else %}{{ messages[1].content | upper }}{% endif %}"
        with pytest.raises(UserError, match="neither continues its generation prompt nor shows the answer"):
            encode_record(chat("a", "b"), letters, 9)
    finally:
        letters.chat_template = None


def test_eos_is_trained_when_it_is_also_the_padding(real):
    tokenizer = real("gpt2")
    examples, _ = encode_records([chat("Hi", "Yes"), chat("Hi", "Yes, I am here")], tokenizer, 99)
    batch = collate(examples, pad_token_id=tokenizer.eos_token_id)
    assert batch["labels"][0, 9:].tolist() == [5297, 50256, -100, -100, -100, -100]
    assert batch["input_ids"][0, 10:].tolist() == [50256] * 5
    assert batch["attention_mask"][0].tolist() == [1] * 11 + [0] * 4
