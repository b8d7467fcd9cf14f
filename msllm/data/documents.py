"""Raw documents to pairs of segments, for BERT's next-sentence prediction (Devlin et al. 2019, appendix A.2)."""

import dataclasses
import functools
import logging
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from msllm.tokenization import Tokenizer

FOLLOWS, RANDOM = 0, 1  # next_sentence_label, as in transformers
WHOLE_WORDS = ("english", "chinese")
_SENTENCES = 10_000  # encoded at a time: an encoding takes a hundred times the room of its ids


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Encoded documents, in flat arrays.

    Attributes:
        ids: int32, the tokens of all sentences.
        starts: bool, which of them start a word; None where every token is a word.
        sentences: int64 (sentences + 1,), where each starts in ``ids``, and the end.
        documents: int64 (documents + 1,), the first sentence of each, and the end.
    """

    ids: np.ndarray
    starts: np.ndarray | None
    sentences: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.documents) - 1

    def span(self, first: int, last: int) -> slice:
        """The tokens of the sentences from ``first`` up to, not including, ``last``."""
        return slice(int(self.sentences[first]), int(self.sentences[last]))

    def take(self, first: int, last: int, tokens: int) -> int:
        """The sentence after those, of ``first`` to ``last``, that are needed for ``tokens``; at least one is taken."""
        reached = int(np.searchsorted(self.sentences, self.sentences[first] + tokens))
        return min(max(reached, first + 1), last)


def encode_documents(
    documents: Sequence[Sequence[str]], tokenizer: Tokenizer, whole_words: str | None = None
) -> Corpus:
    """Encodes documents; sentences and documents without a token are left out.

    Args:
        documents: the sentences of each.
        tokenizer: adds no special tokens here.
        whole_words: where words start: None: at each token; "english": at each token that does not go on the one
            before it (##); "chinese": there and where a word of jieba's starts, too.
    """
    texts = list(chain.from_iterable(documents))
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    starts: list[np.ndarray] = [np.zeros(0, bool)]
    for i in range(0, len(texts), _SENTENCES):
        part = texts[i : i + _SENTENCES]
        for text, encoding in zip(part, tokenizer.backend.encode_batch(part, add_special_tokens=False), strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            if whole_words == "chinese":
                starts.append(_chinese_words(text, encoding.offsets))
    flat = np.concatenate(ids)
    borders = None
    if whole_words is not None:
        tokens = (tokenizer.id_to_token(i) or "" for i in range(len(tokenizer)))
        head = np.array([not token.startswith("##") for token in tokens])
        borders = head[flat] if whole_words == "english" else np.concatenate(starts) & head[flat]
    lengths = np.array([len(x) for x in ids[1:]], np.int64)
    owner = np.array([i for i, document in enumerate(documents) for _ in document], np.int64)[lengths > 0]
    sentences = np.append(np.int64(0), lengths[lengths > 0].cumsum())
    return Corpus(flat, borders, sentences, np.append(np.flatnonzero(np.diff(owner, prepend=-1)), len(owner)))


def _chinese_words(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens, given by their characters in ``text``, are the first of a word that jieba finds there."""
    lengths = [len(word) for word in _jieba().cut(text)]
    word_of_character = np.repeat(np.arange(len(lengths)), lengths)
    words = word_of_character[np.array([start for start, _ in offsets], np.int64)]
    return np.diff(words, prepend=-1) != 0


@functools.cache
def _jieba():
    with warnings.catch_warnings():  # its source is older than the rules on escapes in strings
        warnings.simplefilter("ignore")
        import jieba
    jieba.setLogLevel(logging.WARNING)  # it tells of loading its dictionary
    return jieba


def segment_pairs(
    corpus: Corpus, room: int, short_share: float, rng: np.random.Generator
) -> Iterator[tuple[slice, slice, int]]:
    """Yields segments A and B, as places in corpus.ids, and whether B is what FOLLOWS A or RANDOM.

    Args:
        corpus: of two documents or more.
        room: most tokens of A and B together.
        short_share: how many pairs aim at a length drawn from 2 to ``room`` instead.
        rng: draws.
    """

    def below(count: int) -> int:
        return int(rng.random() * count)

    for document in range(len(corpus)):
        sentence, end = int(corpus.documents[document]), int(corpus.documents[document + 1])
        while sentence < end:
            target = 2 + below(room - 1) if rng.random() < short_share else room
            stop = corpus.take(sentence, end, target)
            cut = sentence + 1 + below(stop - sentence - 1)
            first = corpus.span(sentence, cut)
            if cut < stop and rng.random() < 0.5:
                second, label, sentence = corpus.span(cut, stop), FOLLOWS, stop
            else:
                other = below(len(corpus) - 1)
                other += other >= document
                begin, limit = int(corpus.documents[other]), int(corpus.documents[other + 1])
                begin += below(limit - begin)
                needed = target - (first.stop - first.start)
                second, label, sentence = corpus.span(begin, corpus.take(begin, limit, needed)), RANDOM, cut
            yield *_cut(first, second, room, rng), label


def _cut(first: slice, second: slice, room: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Cuts the longer of two segments, at last both, until they have no more than ``room`` tokens."""
    lengths = [first.stop - first.start, second.stop - second.start]
    if sum(lengths) <= room:
        return first, second
    short = min(*lengths, room // 2)
    kept = [short, room - short] if lengths[0] <= lengths[1] else [room - short, short]
    cut = []
    for segment, length, keep in zip((first, second), lengths, kept, strict=True):
        # Which end each token is lost at is drawn, so that neither segments' openings nor their ends are the rule.
        front = int((rng.random(length - keep) < 0.5).sum())
        cut.append(slice(segment.start + front, segment.start + front + keep))
    return cut[0], cut[1]
