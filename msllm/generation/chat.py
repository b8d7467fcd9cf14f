"""A conversation with a model: history, system prompt, a context that never overflows."""

from collections.abc import Callable

from msllm.errors import UserError
from msllm.generation.config import GenerationConfig
from msllm.generation.text import stream_text


class ChatSession:
    """A conversation.

    Args:
        model, tokenizer: of one checkpoint; the tokenizer's chat template lays out the messages.
        config: the options of every answer.
        system: the system prompt; None for none.
    """

    def __init__(self, model, tokenizer, config: GenerationConfig, system: str | None = None):
        self.model, self.tokenizer, self.config, self.system = model, tokenizer, config, system
        self.turns: list[dict[str, str]] = []
        self.forgotten = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, the system prompt first."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def reset(self) -> None:
        """Forgets every turn, not the system prompt."""
        self.turns, self.forgotten = [], 0

    def reply(self, text: str, show: Callable[[str], None]) -> str:
        """Answers ``text``, calling ``show`` with each piece; returns the whole answer.

        The oldest exchanges are left out (and counted in ``forgotten``) where the context would overflow.

        Raises:
            UserError: the message alone is longer than the context; the conversation is then as before.
        """
        before = list(self.turns)
        self.turns.append({"role": "user", "content": text})
        try:
            answer, _ = stream_text(self.model, self.tokenizer, self._prompt(), self.config, show)
        except BaseException:
            self.turns = before
            raise
        self.turns.append({"role": "assistant", "content": answer})
        return answer

    def _prompt(self) -> list[int]:
        limit = self.model.max_length
        while True:
            ids = self.tokenizer.encode(
                self.tokenizer.apply_chat_template(self.messages, add_generation_prompt=True), add_special_tokens=False
            )
            if limit is None or len(ids) + min(self.config.max_new_tokens, limit // 4) <= limit:
                return ids
            if len(self.turns) < 2:
                if len(ids) < limit:
                    return ids
                raise UserError(
                    f"the message has {len(ids)} tokens with its template, the model's context is {limit}; shorten it"
                )
            self.turns = self.turns[2:]
            self.forgotten += 1
