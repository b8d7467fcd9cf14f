"""Training a small vocabulary."""

from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from msllm.errors import UserError, nearest
from msllm.tokenization.tokenizer import Tokenizer

_SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_BYTES = 256


def train_tokenizer(
    texts: Iterable[str], vocab_size: int | None = None, kind: str = "bpe", pattern: str | None = None
) -> Tokenizer:
    """Trains a tokenizer; its save_pretrained folder loads in transformers.

    Args:
        texts: the training texts.
        vocab_size: ids in all, the special tokens <pad> <unk> <s> </s> (0 to 3) included. Needed for "bpe", where
            fewer come out when the texts hold no more pairs; for "char" None keeps every character, a number the
            most frequent ones.
        kind: "bpe" (byte-level BPE as GPT-2's, Radford et al. 2019, section 2.2: no text is unknown) or "char"
            (an id a character; others become <unk>).
        pattern: for "bpe", a regular expression whose matches are merged within, never across; default GPT-2's.

    Raises:
        UserError: unknown ``kind``, or ``vocab_size`` absent or below the least possible.
    """
    if kind not in ("bpe", "char"):
        raise UserError(f"unknown tokenizer kind {kind!r}{nearest(kind, ['bpe', 'char'])}; expected bpe or char")
    least = len(_SPECIALS) + (_BYTES if kind == "bpe" else 1)
    if (vocab_size is None and kind == "bpe") or (vocab_size is not None and vocab_size < least):
        raise UserError(f"vocab_size {vocab_size} does not do for kind {kind!r}; give a number of at least {least}")
    backend = _bpe(texts, vocab_size, pattern) if kind == "bpe" else _char(texts, vocab_size)
    return Tokenizer(
        backend, {**_SPECIALS, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    )


def _bpe(texts: Iterable[str], vocab_size: int | None, pattern: str | None) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIALS.values()),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _char(texts: Iterable[str], vocab_size: int | None) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    most = None if vocab_size is None else vocab_size - len(_SPECIALS)
    # Ties in frequency fall to the smaller code point, so that the vocabulary depends on the texts alone.
    kept = sorted(sorted(counts), key=lambda c: -counts[c])[:most]
    vocab = {token: i for i, token in enumerate([*_SPECIALS.values(), *sorted(kept)])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=_SPECIALS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(_SPECIALS.values()))
    return backend
