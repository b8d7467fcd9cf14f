"""BERT's pre-training examples: pairs of segments with masked tokens (Devlin et al. 2019, section 3.1, appendix A.2).

N examples, T tokens of one; B and T of a batch.
"""

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from msllm.data.documents import WHOLE_WORDS, Corpus, encode_documents, segment_pairs
from msllm.data.encoding import IGNORED
from msllm.errors import UserError, nearest
from msllm.files import read_text
from msllm.tokenization import Tokenizer

_SPECIALS = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


def read_documents(paths: str | Path | Sequence[str | Path]) -> list[list[str]]:
    """Reads text files of a sentence a line, with a blank line between documents; a file's end ends a document too.

    Returns:
        The sentences of each document.

    Raises:
        UserError: a file is missing, not UTF-8, or holds no sentence.
    """
    documents: list[list[str]] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found: list[list[str]] = [[]]
        for line in read_text(path).split("\n"):
            if line.strip():
                found[-1].append(line.strip())
            elif found[-1]:
                found.append([])
        found = [document for document in found if document]
        if not found:
            raise UserError(f"{path} is empty; expected a sentence a line and a blank line between documents")
        documents += found
    return documents


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainingData(Sequence):
    """Examples without padding, in flat arrays of about six bytes a token.

    data[i] is a dict of lists and a number: ``input_ids``, ``token_type_ids``, ``labels`` (-100 where nothing is
    predicted) and ``next_sentence_label`` (0: the second segment follows the first; 1: it does not).

    Attributes:
        ids: int32, the tokens of all examples one after the other, masks in place.
        ends: int64 (N,), where each example ends in ``ids``.
        first_lengths: int32 (N,), the tokens of token type 0: [CLS], the first segment, [SEP].
        places: int32, the places in ``ids`` from an example's first token on that are predicted.
        targets: int32, the tokens that stood there.
        target_ends: int64 (N,), where each example ends in ``places`` and ``targets``.
        next_sentence_labels: int8 (N,).
        settings: how the examples were made: the options of build_pretraining, the vocabulary's size and checksum.
    """

    ids: np.ndarray
    ends: np.ndarray
    first_lengths: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    target_ends: np.ndarray
    next_sentence_labels: np.ndarray
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        ids, places, targets, first_length, next_sentence_label = self.flat(range(len(self))[index])
        labels = np.full(len(ids), IGNORED, np.int32)
        labels[places] = targets
        return {
            "input_ids": ids.tolist(),
            "token_type_ids": [0] * first_length + [1] * (len(ids) - first_length),
            "labels": labels.tolist(),
            "next_sentence_label": next_sentence_label,
        }

    def flat(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
        """Example ``i`` as Collector.add takes it."""
        tokens = slice(self.ends[i - 1] if i else 0, self.ends[i])
        predicted = slice(self.target_ends[i - 1] if i else 0, self.target_ends[i])
        return (
            self.ids[tokens],
            self.places[predicted],
            self.targets[predicted],
            int(self.first_lengths[i]),
            int(self.next_sentence_labels[i]),
        )


class Collector:
    """Gathers examples in flat arrays that grow."""

    def __init__(self):
        names = ("ids", "lengths", "first_lengths", "places", "targets", "predicted", "next")
        self._arrays = {name: array("i") for name in names}

    def add(
        self, input_ids: np.ndarray, places: np.ndarray, targets: np.ndarray, first_length: int, label: int
    ) -> None:
        """Appends an example: int32 arrays as in PretrainingData, and its next_sentence_label."""
        for name, values in (("ids", input_ids), ("places", places), ("targets", targets)):
            self._arrays[name].frombytes(values.astype(np.int32, copy=False).tobytes())
        self._arrays["lengths"].append(len(input_ids))
        self._arrays["predicted"].append(len(places))
        self._arrays["first_lengths"].append(first_length)
        self._arrays["next"].append(label)

    def data(self, settings: dict[str, Any]) -> PretrainingData:
        """Returns the examples added."""
        flat = {name: np.array(values, np.int32) for name, values in self._arrays.items()}
        return PretrainingData(
            ids=flat["ids"],
            ends=flat["lengths"].cumsum(dtype=np.int64),
            first_lengths=flat["first_lengths"],
            places=flat["places"],
            targets=flat["targets"],
            target_ends=flat["predicted"].cumsum(dtype=np.int64),
            next_sentence_labels=flat["next"].astype(np.int8),
            settings=settings,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Masking:
    """What mask_tokens does to a token.

    Attributes:
        mask_token_id: the id of [MASK].
        special: bool (V,), the tokens that are neither masked nor drawn.
        share: of the tokens that are no special ones, this share is predicted, at least one.
        max_predictions: the most tokens of an example that are predicted; None: no more than the share.

    Where only whole words may be predicted and none is short enough for these numbers, one longer word is.
    """

    mask_token_id: int
    special: np.ndarray
    share: float = 0.15
    max_predictions: int | None = None

    def __post_init__(self):
        if not 0 < self.share < 1:
            raise UserError(f"a mask share of {self.share} does not do; give a number between 0 and 1, such as 0.15")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise UserError(f"max_predictions {self.max_predictions} does not do; give 1 or more, or leave it out")

    @cached_property
    def ordinary(self) -> np.ndarray:
        """The tokens that are no special ones, int32."""
        return np.flatnonzero(~self.special).astype(np.int32)

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float = 0.15, max_predictions: int | None = None) -> "Masking":
        """Takes mask and special tokens from a tokenizer."""
        special = np.zeros(len(tokenizer), bool)
        special[[*tokenizer.special_ids, *(getattr(tokenizer, f"{name}_id") for name in _SPECIALS)]] = True
        return cls(tokenizer.mask_token_id, special, share, max_predictions)


def mask_tokens(
    input_ids: np.ndarray, masking: Masking, rng: np.random.Generator, starts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Masks tokens to predict: of those chosen 80% become [MASK], 10% another token, 10% stay as they are.

    Args:
        input_ids: int (T,).
        masking: how many, and which may be.
        rng: draws.
        starts: bool (T,), where words start; a word's tokens are chosen together or not at all. None: a token is a
            word. A word that would exceed the number to choose is passed over, save the first drawn where no word
            fits: every example with an ordinary token has something to predict.

    Returns:
        input_ids with the masks, and labels: the tokens that were chosen, -100 elsewhere; int32 (T,).
    """
    places = np.flatnonzero(~masking.special[input_ids])
    budget = max(1, round(masking.share * len(places)))
    if masking.max_predictions is not None:
        budget = min(budget, masking.max_predictions)
    if starts is None:
        chosen = places[rng.random(len(places)).argsort(kind="stable")[:budget]]
    else:
        chosen = _choose_words(places, np.cumsum(starts)[places], budget, rng)
    masked = np.array(input_ids, np.int32)
    labels = np.full(len(masked), IGNORED, np.int32)
    labels[chosen] = masked[chosen]
    fate, other = rng.random((2, len(chosen)))
    masked[chosen[fate < 0.8]] = masking.mask_token_id
    swapped = fate >= 0.9
    masked[chosen[swapped]] = masking.ordinary[(other[swapped] * len(masking.ordinary)).astype(np.int64)]
    return masked, labels


def _choose_words(places: np.ndarray, words: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    firsts = np.flatnonzero(np.diff(words, prepend=-1))
    bounds = [*firsts.tolist(), len(places)]
    chosen: list[int] = []
    drawn = rng.random(len(firsts)).argsort(kind="stable").tolist()
    for word in drawn:
        if len(chosen) + bounds[word + 1] - bounds[word] <= budget:
            chosen += range(bounds[word], bounds[word + 1])
            if len(chosen) == budget:
                break
    if drawn and not chosen:
        chosen += range(bounds[drawn[0]], bounds[drawn[0] + 1])
    return places[np.array(chosen, np.int64)]


def build_pretraining(
    documents: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    max_length: int = 128,
    *,
    mask_share: float = 0.15,
    max_predictions: int | None = None,
    whole_words: str | None = None,
    short_share: float = 0.1,
    duplicate_factor: int = 1,
    seed: int = 0,
    max_positions: int | None = None,
    tokenizer_name: str = "the tokenizer",
) -> PretrainingData:
    """Makes examples [CLS] A [SEP] B [SEP], the same for the same arguments.

    Sentences of a document are taken until they have max_length tokens. Cut in two at a sentence, they are A and B;
    or, half of the time and whenever there is but one sentence, B comes from another document, and what was to be B
    starts the next example. The longer segment loses tokens at its front or back until both fit.

    Args:
        documents: see read_documents.
        tokenizer: with [PAD], [UNK], [CLS], [SEP] and [MASK].
        max_length: most tokens of an example, special tokens included.
        mask_share, max_predictions: see Masking.
        whole_words: masks the tokens of a word together: "english" (a token and those after it that start with ##) or
            "chinese" (jieba's words). None: each token by itself.
        short_share: how many examples aim at a random shorter length, as texts in use are shorter than max_length.
        duplicate_factor: how often the documents are used, each time with other pairs and masks.
        seed: of all that is drawn.
        max_positions: the longest sequence the model takes.
        tokenizer_name: where the tokenizer comes from, for messages.

    Raises:
        UserError: fewer than two documents with text, special tokens that the vocabulary lacks, or options out of
            range.
    """
    _check_special_tokens(tokenizer, tokenizer_name)
    _check_options(max_length, max_positions, whole_words, short_share, duplicate_factor)
    masking = Masking.of(tokenizer, mask_share, max_predictions)
    corpus = encode_documents(documents, tokenizer, whole_words)
    if len(corpus) < 2:
        raise UserError(
            f"next sentences are drawn from other documents, which takes 2 with text, and there is {len(corpus)}; "
            f"put a blank line between documents"
        )
    examples = Collector()
    for repetition in range(duplicate_factor):
        rng = np.random.Generator(np.random.PCG64((seed, repetition)))
        for first, second, label in segment_pairs(corpus, max_length - 3, short_share, rng):
            examples.add(*_masked_pair(corpus, first, second, tokenizer, masking, rng), label)
    masks = {"mask_share": mask_share, "max_predictions": max_predictions, "whole_words": whole_words}
    pairs = {"short_share": short_share, "duplicate_factor": duplicate_factor, "seed": seed}
    words = {"tokenizer": tokenizer_name, "vocab_size": len(tokenizer), "vocabulary": vocabulary_checksum(tokenizer)}
    return examples.data({"max_length": max_length, **masks, **pairs, **words})


def _masked_pair(
    corpus: Corpus, first: slice, second: slice, tokenizer: Tokenizer, masking: Masking, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns ids, places, targets and first_length of an example, as Collector.add takes them."""
    cls, sep, border = [tokenizer.cls_token_id], [tokenizer.sep_token_id], [True]
    ids = np.concatenate([cls, corpus.ids[first], sep, corpus.ids[second], sep])
    first_length, starts = first.stop - first.start + 2, None
    if corpus.starts is not None:
        starts = np.concatenate([border, corpus.starts[first], border, corpus.starts[second], border])
        starts[[1, first_length]] = True  # a segment may begin inside a word
    ids, labels = mask_tokens(ids, masking, rng, starts)
    places = np.flatnonzero(labels != IGNORED)
    return ids, places, labels[places], first_length


def vocabulary_checksum(tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of the tokens in the order of their ids."""
    vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=lambda token: (vocab[token], token))
    return hashlib.sha256(json.dumps([[token, vocab[token]] for token in tokens]).encode()).hexdigest()


def _check_special_tokens(tokenizer: Tokenizer, name: str) -> None:
    missing = []
    for special in _SPECIALS:
        token, i = getattr(tokenizer, special), getattr(tokenizer, f"{special}_id")
        # Loading adds special tokens that a vocabulary lacks after its end, where a model has no embedding for them.
        if i is None or i >= tokenizer.vocab_size:
            missing.append(token or special)
    if missing:
        raise UserError(
            f"{name} lacks {', '.join(missing)}, which BERT's pre-training needs; add them to its vocabulary, "
            f"or train one with msllm train-tokenizer --kind wordpiece"
        )


def _check_options(
    max_length: int, max_positions: int | None, whole_words: str | None, short_share: float, duplicate_factor: int
) -> None:
    if max_length < 5:
        raise UserError(f"max_length {max_length} is too short for two segments and 3 special tokens; give 5 or more")
    if max_positions is not None and max_length > max_positions:
        raise UserError(
            f"max_length {max_length} exceeds the model's {max_positions} positions; give at most {max_positions}"
        )
    if whole_words is not None and whole_words not in WHOLE_WORDS:
        raise UserError(
            f"unknown whole_words {whole_words!r}{nearest(whole_words, WHOLE_WORDS)}; "
            f"expected {' or '.join(WHOLE_WORDS)}, or leave it out"
        )
    if not 0 <= short_share <= 1:
        raise UserError(f"a short_share of {short_share} does not do; give a number from 0 to 1, such as 0.1")
    if duplicate_factor < 1:
        raise UserError(f"duplicate_factor {duplicate_factor} does not do; give 1 or more")


def collate_pretraining(
    examples: Sequence[Mapping[str, Any]], pad_token_id: int | None = None, pad_to_multiple_of: int | None = None
) -> dict[str, np.ndarray]:
    """Pads examples on the right into one batch.

    Args:
        examples: of PretrainingData; one without input_ids stands for nothing.
        pad_token_id: None pads with 0.
        pad_to_multiple_of: rounds T up.

    Returns:
        input_ids, attention_mask (1 = real token), token_type_ids, labels (-100 at padding), each (B, T), and
        next_sentence_label (B,), -100 for an example that stands for nothing; int32.
    """
    length = max((len(example["input_ids"]) for example in examples), default=0)
    multiple = pad_to_multiple_of or 1
    length = -(-max(length, 1) // multiple) * multiple
    fill = {"input_ids": pad_token_id or 0, "token_type_ids": 0, "labels": IGNORED}
    batch = {key: np.full((len(examples), length), value, np.int32) for key, value in fill.items()}
    batch["attention_mask"] = np.zeros((len(examples), length), np.int32)
    batch["next_sentence_label"] = np.full(len(examples), IGNORED, np.int32)
    for row, example in enumerate(examples):
        count = len(example["input_ids"])
        if count:
            batch["attention_mask"][row, :count] = 1
            batch["next_sentence_label"][row] = example["next_sentence_label"]
            for key in fill:
                batch[key][row, :count] = example[key]
    return batch
