import itertools
import json

import pytest

from msllm.errors import UserError
from msllm.tokenization import default_chat_template, load_tokenizer, train_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GENERATION = """\
{%- for message in messages %}
    {%- if message.role == "assistant" %}
{{ "A: " }}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}
{{ message.role }}: {{ message | tojson }}
    {%- endif %}
    {%- if loop.last %}{% break %}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
"""
CHAT = [
    {"role": "system", "content": "你是助手 <b>"},
    {"role": "user", "content": ' Hi "you" & me '},
    {"role": "assistant", "content": "Hello😀"},
    {"role": "user", "content": "Bye\n"},
]


@pytest.mark.parametrize("template", [CHATML, LLAMA2, GENERATION, default_chat_template(add_bos=True)])
def test_rendering_equals_transformers(template, vocabulary):
    transformers = pytest.importorskip("transformers")
    folder = vocabulary("llama2", tokenizer_config={"tokenizer_class": "LlamaTokenizer", "chat_template": template})
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    some_tools = [{"type": "function", "function": {"name": "加", "parameters": {}}}]
    for messages, tools, prompt in itertools.product((CHAT, CHAT[:3], CHAT[1:2]), (None, some_tools), (True, False)):
        text = ours.apply_chat_template(messages, add_generation_prompt=prompt, tools=tools)
        assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, tools=tools)
        assert ours.encode(text, add_special_tokens=False) == theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, tools=tools
        )


def test_the_default_template_is_plain_text_and_ends_answers_with_eos(vocabulary):
    tokenizer = load_tokenizer(vocabulary("gpt2"))
    assert tokenizer.chat_template is None
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True) == (
        'System:\n你是助手 <b>\n\nUser:\n Hi "you" & me \n\nAssistant:\nHello😀<|endoftext|>\n\n'
        "User:\nBye\n\n\nAssistant:\n"
    )
    llama = load_tokenizer(vocabulary("llama2"))
    assert llama.apply_chat_template(CHAT[1:2]).startswith("<s>User:\n")


def test_the_default_template_is_saved_with_the_checkpoint(vocabulary, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(vocabulary("gpt2"))
    tokenizer.save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.apply_chat_template(CHAT, tokenize=False) == tokenizer.apply_chat_template(CHAT)
    assert load_tokenizer(tmp_path / "saved").chat_template == default_chat_template()


def test_a_checkpoint_template_survives_saving_over_another(vocabulary, tmp_path):
    saved = tmp_path / "saved"
    load_tokenizer(vocabulary("gpt2")).save_pretrained(saved)
    tokenizer = load_tokenizer(vocabulary("gpt2", tokenizer_config={"chat_template": CHATML}))
    tokenizer.save_pretrained(saved)
    assert load_tokenizer(saved).chat_template == CHATML


def test_the_template_file_wins_over_the_key_and_named_templates_give_the_default(vocabulary):
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    folder = vocabulary("gpt2", tokenizer_config={"chat_template": named})
    assert load_tokenizer(folder).chat_template == "D"
    (folder / "chat_template.jinja").write_text("F")
    assert load_tokenizer(folder).chat_template == "F"


def test_what_ends_a_turn_ends_generation(vocabulary):
    folder = vocabulary(
        "gpt2",
        tokenizer_config={"chat_template": CHATML, "additional_special_tokens": ["<|im_end|>"]},
        generation_config={"eos_token_id": [50256, 7]},
    )
    assert load_tokenizer(folder).eos_token_ids == [50256, 7, 50257]
    assert load_tokenizer(vocabulary("llama2")).eos_token_ids == [2]


def test_tool_calls_become_text_when_the_template_knows_none():
    tokenizer = train_tokenizer(["abc"], kind="char")
    function = {"name": "加", "arguments": {}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert tokenizer.apply_chat_template([call]) == 'Assistant:\n{"name": "加", "arguments": {}}</s>\n\n'
    tokenizer.chat_template = "{{ messages[0].tool_calls[0].function.name }}"
    assert tokenizer.apply_chat_template([call]) == "加"


@pytest.mark.parametrize(
    "template, message",
    [
        (LLAMA2, "roles must alternate"),
        ("{% if %}", "not valid Jinja"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{{ messages[0]['content'] + 1 }}", "refuses these messages"),
    ],
)
def test_template_faults_are_one_line_user_errors(template, message):
    tokenizer = train_tokenizer(["abc"], kind="char")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=message):
        tokenizer.apply_chat_template([{"role": "assistant", "content": "x"}])


def test_the_default_template_names_the_roles_it_knows():
    tokenizer = train_tokenizer(["abc"], kind="char")
    with pytest.raises(UserError, match="unknown role bot: expected system, user, assistant or tool"):
        tokenizer.apply_chat_template([{"role": "bot", "content": "x"}])


def test_the_saved_key_and_file_hold_the_same_template(tmp_path):
    train_tokenizer(["abc"], kind="char").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text()
