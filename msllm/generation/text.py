"""Text in, text out: prompts and answers as strings, stop texts, streaming."""

from collections.abc import Callable, Sequence

from msllm.generation.config import GenerationConfig
from msllm.generation.generate import Generated, generate_ids


class TextStream:
    """Turns the ids of one answer into text pieces, and holds back what may become a stop text.

    Args:
        tokenizer: decodes.
        stop: texts that end the answer.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        self.decoder, self.stop = tokenizer.stream(), tuple(s for s in stop if s)
        self.text, self.held, self.stopped = "", "", False

    def push(self, token_id: int) -> str:
        """Takes the next id; returns the text that is now certain, maybe "". Sets ``stopped`` at a stop text."""
        return self._release(self.decoder.push(token_id))

    def flush(self) -> str:
        """Returns what was held back, at the end of the answer."""
        piece = "" if self.stopped else self._release(self.decoder.flush()) + self.held
        self.text += "" if self.stopped else self.held
        self.held = ""
        return piece

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self.held + new
        found = [text.find(s) for s in self.stop if s in text]
        if found:
            self.stopped, self.held = True, ""
            piece = text[: min(found)]
        else:
            keep = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            piece, self.held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += piece
        return piece


def generate_text(
    model, tokenizer, prompts: Sequence[str], config: GenerationConfig, add_special_tokens: bool = True
) -> list[tuple[str, Generated]]:
    """Continues texts; returns (answer, Generated) for each prompt."""
    ids = [tokenizer.encode(p, add_special_tokens=add_special_tokens) for p in prompts]
    return _run(model, tokenizer, ids, config, None)


def stream_text(
    model, tokenizer, prompt_ids: Sequence[int], config: GenerationConfig, show: Callable[[str], None]
) -> tuple[str, Generated]:
    """Continues one prompt and calls ``show`` with each piece of text as it becomes certain."""
    return _run(model, tokenizer, [prompt_ids], config, show)[0]


def _run(model, tokenizer, prompts, config, show) -> list[tuple[str, Generated]]:
    streams = [TextStream(tokenizer, config.stop) for _ in prompts]

    def on_token(row: int, token_id: int) -> bool:
        piece = streams[row].push(token_id)
        if show is not None and piece:
            show(piece)
        return streams[row].stopped

    results = generate_ids(model, prompts, config, tokenizer, on_token)
    if config.num_beams > 1:  # beams are known at the end only
        for row, result in enumerate(results):
            for token_id in result.ids:
                if on_token(row, token_id):
                    result.finish_reason = "stop"
                    break
    for stream in streams:
        piece = stream.flush()
        if show is not None and piece:
            show(piece)
    return [(stream.text, result) for stream, result in zip(streams, results, strict=True)]
