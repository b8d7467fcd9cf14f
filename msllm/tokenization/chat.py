"""Chat templates: Jinja programs, in the dialect of transformers, that turn a list of messages into one text."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from msllm.errors import UserError

Message = Mapping[str, Any]

# A role's name on a line of its own: no new tokens, and a line feed that does not merge with the word after it,
# so that an answer's first token is the same in training and in generation.
_DEFAULT = (
    "{% if tools %}Tools:\n{{ tools | tojson }}\n\n{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + ': expected system, user, assistant or tool') }}"
    "{% endif %}"
    "{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def default_chat_template(add_bos: bool = False) -> str:
    """The chat template of a checkpoint that has none: plain text, roles system, user, assistant and tool.

    Args:
        add_bos: start with the bos token, for models whose texts all start with it (LLaMA).

    Returns:
        The Jinja template. Each assistant turn ends with the eos token.
    """
    return ("{{ bos_token }}" if add_bos else "") + _DEFAULT


def render(template: str, messages: Sequence[Message], add_generation_prompt: bool, **variables: Any) -> str:
    """Returns the text of ``messages``; UserError when the template is malformed or refuses them."""
    if "tool_calls" not in template:
        messages = [_spell_tool_calls(message) for message in messages]
    try:
        return _compile(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **{"tools": None, **variables}
        )
    except jinja2.TemplateSyntaxError as e:
        raise UserError(
            f"the chat template is not valid Jinja: {e.message} at its line {e.lineno}; "
            f"mend chat_template.jinja or the chat_template of tokenizer_config.json"
        ) from None
    except (jinja2.TemplateError, TypeError) as e:
        roles = ", ".join(str(message.get("role")) for message in messages) or "none"
        raise UserError(
            f"the chat template refuses these messages (roles: {roles}): {e}; change the messages or the template"
        ) from None


def _spell_tool_calls(message: Message) -> Message:
    # A template that knows nothing of tool calls would drop them: their JSON becomes the answer.
    if not message.get("tool_calls"):
        return message
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in message["tool_calls"]]
    content = "\n".join(([message["content"]] if message.get("content") else []) + calls)
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


class _Generation(jinja2.ext.Extension):
    """Accepts transformers' {% generation %} blocks; the answer's place is found by rendering, so they add nothing."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    # The sandbox matters: a template comes with the weights, from whoever published them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment.from_string(template)


def _tojson(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)
