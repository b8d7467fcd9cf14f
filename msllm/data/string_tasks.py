"""Small tasks whose answers can be checked: sums digit by digit, and strings changed as a prompt says."""

from collections.abc import Callable, Sequence

import numpy as np

from msllm.data.encoding import IGNORED
from msllm.data.order import random_order

STRING_TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "upper": str.upper,
    "first": lambda text: text[0],
    "double": lambda text: "".join(letter * 2 for letter in text),
}


def additions(digits: int = 2, held_out: int = 500, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Returns all sums of two numbers of ``digits`` digits, for training and held out.

    A sum is ids 0 to 9 alone: the digits of a, of b, and of a + b, the last one first, so that a carry is known when
    it is needed. Only the sum is trained.

    Returns:
        Examples with ``input_ids`` and ``labels``, ``3 * digits + 1`` of each.
    """
    count = 10**digits
    a, b = np.divmod(np.arange(count * count), count)
    powers = 10 ** np.arange(digits + 1)
    columns = [x[:, None] // powers % 10 for x in (a, b, a + b)]
    ids = np.concatenate([columns[0][:, digits - 1 :: -1], columns[1][:, digits - 1 :: -1], columns[2]], axis=1)
    order = random_order(len(ids), seed)
    examples = []
    for row in ids[order].tolist():
        prompt = 2 * digits
        examples.append({"input_ids": row, "labels": [IGNORED] * prompt + row[prompt:]})
    return examples[held_out:], examples[:held_out]


def string_answer(names: Sequence[str], text: str) -> str:
    """Returns what the tasks of STRING_TASKS make of ``text``, one after the other."""
    for name in names:
        text = STRING_TASKS[name](text)
    return text


def string_records(prompts: Sequence[Sequence[str]], count: int, length: int, seed: int = 0) -> list[dict[str, str]]:
    """Returns ``count`` records, prompt and completion, of strings of 2 to ``length`` random letters.

    A prompt names what to do and the string, such as "reverse, upper: abc"; nothing else tells the tasks apart.

    Args:
        prompts: names of STRING_TASKS, one after the other; each record draws one of these.
    """
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(count):
        names = prompts[int(rng.random() * len(prompts))]
        letters = 2 + int(rng.random() * (length - 1))
        text = "".join(chr(ord("a") + int(x)) for x in rng.random(letters) * 26)
        records.append({"prompt": f"{', '.join(names)}: {text} = ", "completion": string_answer(names, text)})
    return records
