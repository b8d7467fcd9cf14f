"""Training a vocabulary."""

import functools
import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from msllm.errors import UserError, nearest
from msllm.tokenization import spm
from msllm.tokenization.loading import END_OF_WORD, word_bpe
from msllm.tokenization.tokenizer import Tokenizer

_SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_BERT_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
_BYTES = 256
# Words may hold hyphens and apostrophes ("t-shirt", "man's"); every other mark is a word of its own.
_WORDS = r"\w+(?:[-'’]\w+)*|[^\w\s]"
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}，。；：！？、（）【】《》「」]"


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int | None = None,
    kind: str = "bpe",
    pattern: str | None = None,
    lowercase: bool = False,
    min_frequency: int | None = None,
    model_type: str | None = None,
    byte_fallback: bool | None = None,
    character_coverage: float | None = None,
) -> Tokenizer:
    """Trains a tokenizer, the same for the same texts; its save_pretrained folder loads in transformers.

    Args:
        texts: the training texts.
        vocab_size: ids in all, the special tokens included; fewer come out when the texts hold no more. For "char"
            and "word" it may be None, which keeps all; a number keeps the most frequent.
        kind: one of
            "bpe": byte-level BPE as GPT-2's (Radford et al. 2019, section 2.2); no text is unknown.
            "char": an id a character.
            "word": an id a word; decoding puts a space between words, but none before a full stop, after an opening
            bracket or between Chinese characters.
            "gpt": GPT's BPE of lower-cased words (Radford et al. 2018, section 4.1; Sennrich et al. 2016).
            "wordpiece": BERT's (Devlin et al. 2019, section 3), Chinese characters one by one.
            "sentencepiece": spaces are characters like others (Kudo and Richardson 2018); saves a tokenizer.model.
            The special tokens are <pad> <unk> <s> </s> (0 to 3), of "wordpiece" [PAD] [UNK] [CLS] [SEP] [MASK]
            (0 to 4).
        pattern: for "bpe", a regular expression whose matches are merged within, never across; default GPT-2's. For
            "word", one whose matches are the words, what lies between them is dropped.
        lowercase: for all but "char" and "gpt", which always does, lower-cases texts in training and in every
            encoding. "bpe" and "word" compose accents too (NFC), "wordpiece" removes them, as BERT's.
        min_frequency: for "bpe", "gpt", "word" and "wordpiece", words, merges and (of "gpt" and "wordpiece")
            characters that are rarer are left out; default 1.
        model_type: for "sentencepiece", "unigram" (default; Kudo 2018) or "bpe".
        byte_fallback: for "sentencepiece", whether unknown characters become their bytes; default True.
        character_coverage: for "sentencepiece", the share of the texts' characters that get an id; default 0.9995,
            as is usual for Chinese; 1.0 keeps every character.

    Raises:
        UserError: unknown ``kind``, an option that it does not have, or a ``vocab_size`` that does not do.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string, expected several; put it in a list")
    if kind not in _KINDS:
        raise UserError(f"unknown tokenizer kind {kind!r}{nearest(kind, _KINDS)}; expected {', '.join(_KINDS)}")
    values = {
        "pattern": pattern,
        "lowercase": lowercase or None,
        "min_frequency": min_frequency,
        "model_type": model_type,
        "byte_fallback": byte_fallback,
        "character_coverage": character_coverage,
    }
    given = {name: value for name, value in values.items() if value is not None}
    allowed = list(inspect.signature(_KINDS[kind]).parameters)[2:]
    for name in given:
        if name not in allowed:
            raise UserError(f"kind {kind!r} has no option {name}; it has {', '.join(allowed) or 'none'}; leave it out")
    return _KINDS[kind](texts, vocab_size, **given)


def _check_size(kind: str, vocab_size: int | None, least: int, optional: bool = False) -> None:
    if (vocab_size is None and not optional) or (vocab_size is not None and vocab_size < least):
        raise UserError(f"vocab_size {vocab_size} does not do for kind {kind!r}; give a number of at least {least}")


def _bpe(
    texts: Iterable[str],
    vocab_size: int | None,
    pattern: str | None = None,
    lowercase: bool = False,
    min_frequency: int = 1,
) -> Tokenizer:
    _check_size("bpe", vocab_size, len(_SPECIALS) + _BYTES)
    backend = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        backend.normalizer = _lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(_SPECIALS.values()),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, {**_SPECIALS, **_PLAIN})


def _lowercase() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def _char(texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    _check_size("char", vocab_size, len(_SPECIALS) + 1, optional=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    most = None if vocab_size is None else vocab_size - len(_SPECIALS)
    backend = _word_level(sorted(_by_frequency(counts)[:most]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return Tokenizer(backend, {**_SPECIALS, **_PLAIN})


def _word(
    texts: Iterable[str],
    vocab_size: int | None,
    pattern: str = _WORDS,
    lowercase: bool = False,
    min_frequency: int = 1,
) -> Tokenizer:
    _check_size("word", vocab_size, len(_SPECIALS) + 1, optional=True)
    normalizer = _lowercase() if lowercase else None
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    counts = _count_words(texts, normalizer, split)
    most = None if vocab_size is None else vocab_size - len(_SPECIALS)
    backend = _word_level([word for word in _by_frequency(counts) if counts[word] >= min_frequency][:most])
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = split
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("^"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[.,;:!?%)\]}…])"), ""),
            decoders.Replace(Regex(r"(?<=[(\[{]) "), ""),
            decoders.Replace(Regex(rf"(?<={_CJK}) (?={_CJK})"), ""),
            decoders.Strip(" ", left=1, right=0),
        ]
    )
    return Tokenizer(backend, {**_SPECIALS, **_PLAIN})


def _word_level(words: list[str]) -> tokenizers.Tokenizer:
    tokens = dict.fromkeys([*_SPECIALS.values(), *words])  # a pattern may take "<s>" for a word
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=_SPECIALS["unk_token"]))
    backend.add_special_tokens(list(_SPECIALS.values()))
    return backend


def _by_frequency(counts: Counter[str]) -> list[str]:
    # Ties fall to the smaller code point, so that the vocabulary depends on the texts alone.
    return sorted(counts, key=lambda token: (-counts[token], token))


def _count_words(
    texts: Iterable[str], normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        text = text if normalizer is None else normalizer.normalize_str(text)
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    return counts


def _wordpiece(
    texts: Iterable[str], vocab_size: int | None, lowercase: bool = False, min_frequency: int = 1
) -> Tokenizer:
    _check_size("wordpiece", vocab_size, len(_BERT_SPECIALS) + 1)
    specials = list(_BERT_SPECIALS.values())
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=_BERT_SPECIALS["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _train_pieces(backend, texts, trainers.WordPieceTrainer, specials, vocab_size, min_frequency)
    trained = tokenizers.Tokenizer(
        models.WordPiece(backend.get_vocab(with_added_tokens=False), unk_token=_BERT_SPECIALS["unk_token"])
    )
    trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trained.decoder = decoders.WordPiece(prefix="##")
    trained.post_processor = processors.BertProcessing(
        *((token, trained.token_to_id(token)) for token in (_BERT_SPECIALS["sep_token"], _BERT_SPECIALS["cls_token"]))
    )
    trained.add_special_tokens(specials)
    config = {
        **_BERT_SPECIALS,
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "clean_up_tokenization_spaces": True,
    }
    return Tokenizer(trained, config)


def _gpt(texts: Iterable[str], vocab_size: int | None, min_frequency: int = 1) -> Tokenizer:
    _check_size("gpt", vocab_size, len(_SPECIALS) + 1)
    specials, unknown = list(_SPECIALS.values()), _SPECIALS["unk_token"]
    backend = word_bpe({}, [], unknown)
    trainer = functools.partial(trainers.BpeTrainer, end_of_word_suffix=END_OF_WORD)
    _train_pieces(backend, texts, trainer, specials, vocab_size, min_frequency, END_OF_WORD)
    model = json.loads(backend.to_str())["model"]
    trained = word_bpe(model["vocab"], [tuple(pair) for pair in model["merges"]], unknown)
    trained.add_special_tokens(specials)
    return Tokenizer(
        trained, {**_SPECIALS, "tokenizer_class": "OpenAIGPTTokenizer", "clean_up_tokenization_spaces": False}
    )


def _train_pieces(
    backend: tokenizers.Tokenizer,
    texts: Iterable[str],
    trainer: Callable[..., trainers.Trainer],
    specials: list[str],
    vocab_size: int,
    min_frequency: int,
    suffix: str | None = None,
) -> None:
    """Trains a vocabulary of pieces of words; the caller makes its model anew.

    The trainer numbers the pieces of one character in the order of a hash table, which differs from run to run, and
    breaks ties by number. Handed in as special tokens they have their numbers, and limit_alphabet=0 keeps the trainer
    from adding others; in a model that is made anew they are pieces like all others.

    Args:
        suffix: what the last piece of a word ends in; without it all but the first begin with ##.
    """
    texts = list(texts)
    words = _count_words(texts, backend.normalizer, backend.pre_tokenizer)
    alphabet = _alphabet(words, vocab_size - len(specials), min_frequency, suffix)
    options = {"special_tokens": [*specials, *alphabet], "limit_alphabet": 0, "show_progress": False}
    backend.train_from_iterator(texts, trainer(vocab_size=vocab_size, min_frequency=min_frequency, **options))


def _alphabet(words: Counter[str], room: int, min_frequency: int, suffix: str | None) -> list[str]:
    """The characters that get an id, the most frequent first to get one; marked, too, where words end or go on so."""
    counts: Counter[str] = Counter()
    marked: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        marked.update(word[1:] if suffix is None else word[-1])
    kept: list[str] = []
    for character in _by_frequency(counts):
        form = f"##{character}" if suffix is None else character + suffix
        forms = [character, form] if character in marked else [character]
        if counts[character] < min_frequency or len(kept) + len(forms) > room:
            break
        kept += forms
    return sorted(kept, key=lambda piece: (len(piece), piece))


def _sentencepiece(
    texts: Iterable[str],
    vocab_size: int | None,
    lowercase: bool = False,
    model_type: str = "unigram",
    byte_fallback: bool = True,
    character_coverage: float = 0.9995,
) -> Tokenizer:
    if model_type not in ("unigram", "bpe"):
        raise UserError(
            f"unknown model_type {model_type!r}{nearest(model_type, ['unigram', 'bpe'])}; expected unigram or bpe"
        )
    if not 0.98 <= character_coverage <= 1:
        raise UserError(f"character_coverage {character_coverage} does not do; give a share from 0.98 to 1")
    _check_size("sentencepiece", vocab_size, len(_SPECIALS) + (_BYTES if byte_fallback else 0) + 1)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"normalization_rule_name": "identity"}
        if lowercase:
            options = {"normalization_rule_tsv": str(_lowercase_rules(Path(folder) / "rules.tsv"))}
        model = _train_sentencepiece(
            texts,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            **options,
        )
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(model)
        backend = spm.build(path, prefix_space=True, legacy=True)
    backend.add_special_tokens(list(_SPECIALS.values()))
    config = {
        **_SPECIALS,
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "legacy": True,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(backend, config, sentencepiece=model)


def _train_sentencepiece(texts: Iterable[str], **options: Any) -> bytes:
    model = BytesIO()
    # The library wants lines, and passes over those beyond max_sentence_length without a word.
    lines = (line for text in texts for line in text.splitlines())
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            max_sentence_length=2**30,
            num_threads=4,  # sums of floats, and so the pieces, depend on it
            minloglevel=2,
            **options,
        )
    except RuntimeError as e:
        reason = str(e).rpartition("] ")[2].removesuffix(" with --character_coverage option.")
        raise UserError(
            f"sentencepiece cannot train with vocab_size {options['vocab_size']}: "
            f"{reason or 'there is no text to train on; give texts that are not empty'}"
        ) from None
    return model.getvalue()


def _lowercase_rules(path: Path) -> Path:
    """Writes lower-casing as a rule file of SentencePiece, for readers that use tokenizer.model alone."""
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000 and chr(i) != "\n"]
    lowered = normalizers.Lowercase().normalize_str("\n".join(characters)).split("\n")
    rules = [
        f"{ord(character):X}\t{' '.join(f'{ord(c):X}' for c in lower)}\n"
        for character, lower in zip(characters, lowered, strict=True)
        if character != lower
    ]
    path.write_text("".join(rules), encoding="ascii")
    return path


_KINDS: dict[str, Callable[..., Tokenizer]] = {
    "bpe": _bpe,
    "char": _char,
    "word": _word,
    "gpt": _gpt,
    "wordpiece": _wordpiece,
    "sentencepiece": _sentencepiece,
}
