"""Showing what a model will be trained on."""

from rich.console import Console
from rich.text import Text

from msllm.data.encoding import IGNORED, Example, encode_record, trained_count
from msllm.data.formats import Record
from msllm.tokenization import Tokenizer


def preview(record: Record, tokenizer: Tokenizer, max_length: int = 2048, console: Console | None = None) -> None:
    """Prints a record as the model sees it: trained tokens in green, the others dim, special tokens visible.

    Without colours (a file, a pipe) each stretch starts with "[+" when trained and "[ " when not, and ends with "]".

    Args:
        record: see msllm.data.formats.
        tokenizer, max_length: as for encode_record.
        console: where to; standard output by default.
    """
    console = console or Console(highlight=False)
    examples = encode_record(record, tokenizer, max_length)
    if not examples:
        console.print(Text(f"{record.source}: nothing to train on"))
    for example in examples:
        console.print(
            Text(f"{record.source}: {len(example['input_ids'])} tokens, {trained_count(example)} trained"),
            soft_wrap=True,
        )
        text = Text()
        for trained, piece in _stretches(example, tokenizer):
            if console.color_system is None:
                text.append(f"[{'+' if trained else ' '} {piece}]\n")
            else:
                text.append(piece, style="green" if trained else "dim")
        console.print(text, soft_wrap=True)


def _stretches(example: Example, tokenizer: Tokenizer) -> list[tuple[bool, str]]:
    """Runs of tokens that are all trained or all not, as text."""
    ids = example["input_ids"]
    trained = [i > 0 and label != IGNORED for i, label in enumerate(example["labels"])]
    borders = [0, *(i for i in range(1, len(ids)) if trained[i] != trained[i - 1]), len(ids)]
    # Decoded from the start each time: a token's text may depend on the tokens before it.
    texts = [tokenizer.decode(ids[:border], skip_special_tokens=False) for border in borders]
    return [
        (trained[start], text[len(before) :])
        for start, before, text in zip(borders[:-1], texts[:-1], texts[1:], strict=True)
    ]
