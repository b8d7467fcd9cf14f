r"""Training records: the formats that are read, and the one form they become.

Files are .json (a list), .jsonl (a record a line) and .txt, in UTF-8; the format is told from each record's keys.

Alpaca (``input``, ``system`` and ``history``, earlier question-answer pairs, are optional)::

    {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour",
     "system": "You are a translator.", "history": [["Hello", "Salut"]]}

ShareGPT (``from``: human, gpt, system, function_call, observation; ``system`` and ``tools`` are optional)::

    {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}

Messages, as in OpenAI's API (roles system, user, assistant, tool; ``tool_calls`` and ``tools`` are optional)::

    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}

Prompt and completion (joined as they are, without a chat template)::

    {"prompt": "The capital of France is", "completion": " Paris."}

Article and summary, one after the other with "TL;DR:" between them; NLPCC 2017 names the summary ``summarization`` (and
writes ``<Paragraph>`` for a line feed), CNN/Daily Mail ``highlights``; LCSTS's .txt files are read as well, see
msllm.data.summaries::

    {"article": "It rained all day. The match was put off.", "summary": "Rain stops play."}

Text, for pre-training; or a .txt file, whose documents are separated by blank lines::

    {"text": "Once upon a time ..."}
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msllm.errors import UserError, nearest
from msllm.files import json_fault

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
SUMMARY_KEYS = ("summary", "summarization", "highlights")
_EXPECTED = (
    "instruction and output (Alpaca), conversations (ShareGPT), messages, prompt and completion, article and summary, "
    "or text"
)


@dataclass(frozen=True)
class Record:
    """One training record: ``messages``, or ``prompt`` with ``completion``, or ``article`` with it, or ``text``.

    Attributes:
        messages: [{"role": ..., "content": ...}, ...] with at least one assistant turn; a turn that calls tools has
            ``tool_calls`` in OpenAI's form.
        completion: what follows the prompt, or the article's summary.
        tools: the tool descriptions that the chat template shows the model.
        source: where it comes from, for error messages: "train.jsonl, record 3".
    """

    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    article: str | None = None
    tools: Any = None
    source: str = "record"


def parse_record(raw: Any, source: str = "record") -> Record:
    """Recognises the format of one decoded JSON record.

    Args:
        raw: the record, a mapping.
        source: named in errors.

    Raises:
        UserError: not a mapping, keys missing, a value of the wrong type, an unknown role, an empty conversation or
            one without an assistant turn.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"{source} is {_type(raw)}, expected an object with {_EXPECTED}")
    if "messages" in raw or "conversations" in raw:
        key = "messages" if "messages" in raw else "conversations"
        return Record(messages=_conversation(raw, key, source), tools=_tools(raw.get("tools"), source), source=source)
    if "instruction" in raw:
        return Record(messages=_alpaca(raw, source), source=source)
    if "prompt" in raw or "completion" in raw:
        return Record(
            prompt=_string(raw, "prompt", source), completion=_string(raw, "completion", source), source=source
        )
    if "article" in raw:
        return _summarised(raw, source)
    if "text" in raw:
        return Record(text=_string(raw, "text", source), source=source)
    raise UserError(
        f"{source} has the keys {', '.join(map(str, raw)) or 'none'}; expected {_EXPECTED}; rename its keys"
    )


def _alpaca(raw: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], ...]:
    messages = []
    if raw.get("system"):
        messages.append({"role": "system", "content": _string(raw, "system", source)})
    history = raw.get("history") or []
    if not isinstance(history, list):
        raise UserError(f"{source}: history is {_type(history)}, expected a list of [question, answer] pairs")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{source}: history holds {pair!r}, expected [question, answer] pairs of strings")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = _string(raw, "instruction", source)
    if raw.get("input"):
        question += "\n" + _string(raw, "input", source)
    answer = _string(raw, "output", source)
    return (*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer})


def _summarised(raw: Mapping[str, Any], source: str) -> Record:
    article = _string(raw, "article", source)
    summary = _string(raw, next((key for key in SUMMARY_KEYS if key in raw), SUMMARY_KEYS[0]), source)
    if "summarization" in raw:
        article, summary = (text.replace("<Paragraph>", "\n") for text in (article, summary))
    if not article.strip():
        raise UserError(f"{source}: article is empty; mend or remove it")
    return Record(article=article, completion=summary, source=source)


def _conversation(raw: Mapping[str, Any], key: str, source: str) -> tuple[Mapping[str, Any], ...]:
    turns = raw[key]
    if not isinstance(turns, list):
        raise UserError(f"{source}: {key} is {_type(turns)}, expected a list of turns")
    if not turns:
        raise UserError(f"{source}: {key} is empty, expected turns of a user and an assistant; remove the record")
    messages = [_turn(turn, f"{source}, turn {n}") for n, turn in enumerate(turns, 1)]
    if raw.get("system"):
        messages.insert(0, {"role": "system", "content": _string(raw, "system", source)})
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(
            f"{source} has no assistant turn (roles: {', '.join(m['role'] for m in messages)}), so there "
            f"is nothing to learn; remove the record or add the answer"
        )
    return tuple(messages)


def _turn(turn: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(turn, Mapping):
        raise UserError(f"{source} is {_type(turn)}, expected an object with role and content, or from and value")
    if "role" in turn:
        role = turn["role"]
        if role not in ROLES:
            raise UserError(
                f"{source} has the role {role!r}{nearest(str(role), ROLES)}; expected one of {', '.join(ROLES)}"
            )
        if turn.get("tool_calls") and role == "assistant":
            return {**turn, "content": turn.get("content") or ""}
        return {**turn, "content": _string(turn, "content", source)}
    sender = _string(turn, "from", source)
    if sender not in _SHAREGPT_ROLES:
        raise UserError(
            f"{source} has from {sender!r}{nearest(sender, _SHAREGPT_ROLES)}; "
            f"expected one of {', '.join(_SHAREGPT_ROLES)}"
        )
    value = _string(turn, "value", source)
    if sender == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, source)}
    return {"role": _SHAREGPT_ROLES[sender], "content": value}


def _calls(value: str, source: str) -> list[dict[str, Any]]:
    calls = _decode(value, "a function_call", source)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise UserError(
            f'{source}: a function_call is JSON such as {{"name": "add", "arguments": {{"a": 1}}}}, not {value[:60]!r}'
        )
    return [{"type": "function", "function": call} for call in calls]


def _tools(value: Any, source: str) -> Any:
    if isinstance(value, str):
        value = _decode(value, "tools", source) if value.strip() else None
    return value or None


def _decode(value: str, what: str, source: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError as e:
        raise UserError(
            f"{source}: {what} is not JSON ({json_fault(e)} at character {e.pos}): {value[:60]!r}; mend it"
        ) from None


def _string(raw: Mapping[str, Any], key: str, source: str) -> str:
    if key not in raw:
        raise UserError(
            f"{source} lacks the key {key}{_near(key, raw)}; it has {', '.join(map(str, raw)) or 'none'}; "
            f"expected {_EXPECTED}"
        )
    if not isinstance(raw[key], str):
        raise UserError(f"{source}: {key} is {_type(raw[key])}, expected a string")
    try:
        raw[key].encode()
    except UnicodeEncodeError as e:  # JSON may spell half of a surrogate pair, which is no character
        raise UserError(
            f"{source}: {key} has half a character, {raw[key][e.start]!a}, at position {e.start}; remove or complete it"
        ) from None
    return raw[key]


def _near(key: str, found: Iterable[Any]) -> str:
    return nearest(key, [str(name) for name in found])


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
