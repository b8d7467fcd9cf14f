"""Decoding one id at a time, so that the pieces joined are the decoded whole."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msllm.tokenization.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# No clean-up rule is longer than this many characters.
_CLEAN_UP_REACH = 4


class StreamDecoder:
    """Turns ids into text as they arrive: ``"".join(push(id) for id in ids) + flush() == decode(ids)``.

    Text is held back while a later id could still change it: an unfinished UTF-8 character, a run of
    SentencePiece byte tokens, or spaces that the tokenizer's clean-up may remove.
    """

    def __init__(self, tokenizer: "Tokenizer", skip_special_tokens: bool = True):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        # A token's text depends on what stands before it (SentencePiece drops the first space), so a window is
        # decoded that starts with tokens already shown: ids[:_shown] is the context, the rest is new.
        self._window: list[int] = []
        self._shown = 0
        self._unclean = ""

    def push(self, token_id: int) -> str:
        """Takes the next id; returns the text that is now certain, often "" or one word."""
        if token_id in self._skipped:
            return ""
        self._window.append(int(token_id))
        token = self._tokenizer.id_to_token(token_id)
        if token is not None and self._tokenizer.byte_fallback and _BYTE_TOKEN.fullmatch(token):
            return ""  # one bad byte turns the whole run into replacement characters: wait for its end
        text = self._fresh()
        if not text or text.endswith("\ufffd"):
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return self._clean(text)

    def flush(self) -> str:
        """Returns the text still held back, unfinished characters as U+FFFD, and starts afresh."""
        text = self._clean(self._fresh(), last=True)
        self._window, self._shown = [], 0
        return text

    def _fresh(self) -> str:
        context = self._tokenizer.decode_raw(self._window[: self._shown], self._skip_special_tokens)
        return self._tokenizer.decode_raw(self._window, self._skip_special_tokens)[len(context) :]

    def _clean(self, text: str, last: bool = False) -> str:
        if not self._tokenizer.clean_up_tokenization_spaces:
            return text
        text = self._unclean + text
        end = len(text) if last else _settled(text)
        self._unclean = text[end:]
        return clean_up(text[:end])


def clean_up(text: str) -> str:
    """transformers' clean-up of English spacing: "do n't ." becomes "don't."."""
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(ending, ending[1:])
    return text


def _settled(text: str) -> int:
    """The longest prefix of ``text`` that no clean-up rule can join with what follows."""
    for end in range(len(text), 0, -1):
        if " " not in text[max(0, end - _CLEAN_UP_REACH) : end]:
            return end
        # Rules start with a space and remove only spaces next to a mark: one between two words is a safe cut.
        if text[end - 1].isalnum() and text[end : end + 1] == " " and text[end + 1 : end + 2].isalnum():
            return end
    return 0
