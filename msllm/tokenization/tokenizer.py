"""The tokenizer: ids equal to those of transformers' AutoTokenizer on the same folder."""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from msllm.errors import UserError
from msllm.files import atomic_file, write_json
from msllm.tokenization import chat
from msllm.tokenization.streaming import StreamDecoder, clean_up

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Encodes text to ids, decodes ids to text, renders chats. Made by load_tokenizer or train_tokenizer.

    Attributes:
        bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token: str or None; each has its
            id in ``<name>_id`` (None when absent). ``pad_token_id`` may be None or equal ``eos_token_id``: what is
            padding is said by a batch's attention mask, never by the ids.
        chat_template: the checkpoint's Jinja template or None; None means default_chat_template() is used.
        clean_up_tokenization_spaces: whether decode removes spaces before punctuation.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: dict[str, Any],
        chat_template: str | None = None,
        stop_ids: Iterable[int] = (),
        sentencepiece: bytes | None = None,
    ):
        """Wraps a ``tokenizers`` backend.

        Args:
            backend: the tokenizers.Tokenizer, complete with added tokens.
            config: the content of tokenizer_config.json, special tokens as plain strings.
            chat_template: Jinja source.
            stop_ids: ids that end generation besides the eos token (generation_config.json).
            sentencepiece: the tokenizer.model file that ``backend`` was made from; saved with it.
        """
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self._size = backend.get_vocab_size(with_added_tokens=True)  # slow: it builds the whole vocabulary
        self.config = config
        self.chat_template = chat_template
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces"))
        self._stop_ids = [int(i) for i in stop_ids]
        self._sentencepiece = sentencepiece
        self.bos_token, self.bos_token_id = self._special("bos_token")
        self.eos_token, self.eos_token_id = self._special("eos_token")
        self.unk_token, self.unk_token_id = self._special("unk_token")
        self.sep_token, self.sep_token_id = self._special("sep_token")
        self.pad_token, self.pad_token_id = self._special("pad_token")
        self.cls_token, self.cls_token_id = self._special("cls_token")
        self.mask_token, self.mask_token_id = self._special("mask_token")

    def _special(self, name: str) -> tuple[str | None, int | None]:
        token = self.config.get(name)
        return token, None if token is None else self.backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary proper; len(tokenizer) adds the tokens added to it."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._size

    @functools.cached_property
    def byte_fallback(self) -> bool:
        """Whether characters outside the vocabulary become SentencePiece byte tokens such as <0xE4>."""
        return bool(json.loads(self.backend.to_str())["model"].get("byte_fallback"))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that decode leaves out: special tokens and the added tokens marked special."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def eos_token_ids(self) -> list[int]:
        """Ids that end an answer: the eos token, generation_config.json's, and what the chat template ends a turn with.

        A base model's eos is often <|endoftext|> where its chat template ends a turn with <|im_end|>.
        """
        ids = [] if self.eos_token_id is None else [self.eos_token_id]
        ids += self._stop_ids + self._turn_end_ids()
        return list(dict.fromkeys(ids))

    def _turn_end_ids(self) -> list[int]:
        if self.chat_template is None:
            return []
        answer = "answer"
        try:
            text = self.apply_chat_template(
                [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
            )
        except UserError:
            return []
        ids = self.encode(text.rpartition(answer)[2].strip(), add_special_tokens=False)
        return [i for i in ids[:1] if i in self.special_ids]

    @functools.cached_property
    def prefix_ids(self) -> list[int]:
        """The special ids that encode puts before a text: [bos] for LLaMA, [cls] for BERT, [] for GPT-2."""
        plain = self.backend.encode("x", add_special_tokens=False)
        full = self.backend.post_process(plain, None, True).ids
        return next(full[:i] for i in range(len(full)) if full[i : i + len(plain)] == plain.ids)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of ``text``; special tokens written in the text become their ids, as in transformers."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_pair(
        self, text: str, pair: str | None = None, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Encodes one text or two for a BERT-like model.

        Args:
            text, pair: the texts; ``pair`` may be None.
            max_length: ids to keep, special tokens included; the longer text is cut first.

        Returns:
            ids and token type ids (0 for the first text and its special tokens, 1 for the second).

        Raises:
            UserError: ``max_length`` leaves no room for the special tokens.
        """
        first = self.backend.encode(text, add_special_tokens=False)
        second = None if pair is None else self.backend.encode(pair, add_special_tokens=False)
        if max_length is not None:
            room = max_length - self.backend.num_special_tokens_to_add(pair is not None)
            if room < 0:
                raise UserError(
                    f"max_length {max_length} is too short for the special tokens; use at least {max_length - room}"
                )
            lengths = share(room, len(first), 0 if second is None else len(second))
            first.truncate(lengths[0])
            if second is not None:
                second.truncate(lengths[1])
        encoded = self.backend.post_process(first, second, True)
        return encoded.ids, encoded.type_ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of ``ids`` (any iterable of integers, a numpy array too)."""
        text = self.decode_raw(ids, skip_special_tokens)
        return clean_up(text) if self.clean_up_tokenization_spaces else text

    def decode_raw(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """decode without the clean-up of spaces."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """Returns a decoder for ids that arrive one by one: push(id) -> str, and flush() -> str at the end."""
        return StreamDecoder(self, skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of ``token``, None when the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id, None beyond the vocabulary."""
        return self.backend.id_to_token(int(token_id))

    def apply_chat_template(
        self, messages: Sequence[chat.Message], add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """Returns the text of a conversation; encode it with ``add_special_tokens=False``.

        Args:
            messages: [{"role": ..., "content": ...}, ...].
            add_generation_prompt: end with the words that open an assistant's turn.
            variables: what the template reads besides, such as ``tools`` or ``enable_thinking``.

        Raises:
            UserError: the template is malformed or refuses the messages.
        """
        specials = {name: self.config[name] for name in SPECIAL_TOKENS if self.config.get(name) is not None}
        template = self.chat_template or self._default_template()
        return chat.render(template, messages, add_generation_prompt, **{**specials, **variables})

    def _default_template(self) -> str:
        return chat.default_chat_template(add_bos=self.bos_token_id in self.prefix_ids)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the files that load_tokenizer and transformers' AutoTokenizer read to equal ids.

        The chat template is among them, the default one when the checkpoint had none, so that whoever serves a
        tuned model prompts it as it was trained.
        """
        folder = Path(folder)
        config = {
            **self.config,
            "added_tokens_decoder": {
                str(i): {
                    "content": token.content,
                    "single_word": token.single_word,
                    "lstrip": token.lstrip,
                    "rstrip": token.rstrip,
                    "normalized": token.normalized,
                    "special": token.special,
                }
                for i, token in self.backend.get_added_tokens_decoder().items()
            },
        }
        if not isinstance(self.backend.model, tokenizers.models.WordPiece):
            # Else transformers makes token types too, which GPT-2 adds as words and LLaMA refuses.
            config.setdefault("model_input_names", ["input_ids", "attention_mask"])
        template = self.chat_template
        if template is None and self.eos_token is not None:
            template = self._default_template()
        if template is not None:
            # Readers before transformers 4.52 know only the key, later ones prefer the file.
            config["chat_template"] = template
            with atomic_file(folder / "chat_template.jinja") as tmp:
                tmp.write_text(template, encoding="utf-8")
        with atomic_file(folder / "tokenizer.json") as tmp:
            tmp.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        if self._sentencepiece is not None:
            with atomic_file(folder / "tokenizer.model") as tmp:
                tmp.write_bytes(self._sentencepiece)
        write_json(
            folder / "special_tokens_map.json",
            {name: self.config[name] for name in SPECIAL_TOKENS if self.config.get(name) is not None},
        )
        write_json(folder / "tokenizer_config.json", config)


def share(room: int, first: int, second: int) -> tuple[int, int]:
    """Splits ``room`` between two lengths, cutting the longer first."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)
