"""Byte-pair encoding written out (Sennrich et al. 2016, algorithm 1; over bytes: Radford et al. 2019, section 2.2).

A token is a string of bytes, a word a tuple of tokens. Training starts with a token a byte and again and again joins
the pair of neighbours that occurs most often; encoding joins the pairs of a new text in the order they were learnt.
train_tokenizer(kind="bpe") learns the same in the Rust library ``tokenizers``, faster; this module shows how.
"""

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

from msllm.errors import UserError
from msllm.files import read_json, read_text

Word = tuple[bytes, ...]
Pair = tuple[bytes, bytes]
# GPT-2's words: a contraction's ending; letters, digits or other marks with the space before them; spaces.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True)
class BPE:
    """What training learns.

    Attributes:
        ids: the id of each token.
        merges: the pairs that are joined, the first learnt first.
        pattern: a regular expression whose matches are the words, which no token crosses; None: a text is one word.
    """

    ids: dict[bytes, int]
    merges: list[Pair]
    pattern: str | None = None

    @cached_property
    def ranks(self) -> dict[Pair, int]:
        """When each pair was learnt."""
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def tokens(self) -> dict[int, bytes]:
        """The token of each id."""
        return {i: token for token, i in self.ids.items()}


def count_pairs(words: Mapping[Word, int]) -> Counter[Pair]:
    """Counts neighbouring tokens: ``words`` maps each word to how often the texts hold it."""
    counts: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count
    return counts


def merge(word: Word, pair: Pair) -> Word:
    """Joins the two tokens of ``pair`` wherever they are neighbours, from left to right: "aaa" becomes "aa", "a"."""
    merged, i = [], 0
    while i < len(word):
        joins = word[i : i + 2] == pair
        merged.append(pair[0] + pair[1] if joins else word[i])
        i += 2 if joins else 1
    return tuple(merged)


def learn(words: Mapping[Word, int], ids: dict[bytes, int], vocab_size: int) -> list[Pair]:
    """Sennrich's algorithm 1 as printed, which looks at every word for every merge; train finds the same sooner.

    Args:
        words: each word, a token a byte, and how often the texts hold it.
        ids: the ids of the first tokens; new tokens are added to it, until it has ``vocab_size`` of them.

    Returns:
        The pairs that were joined. Among pairs of equal counts that of the smallest ids comes first.
    """
    merges = []
    while len(ids) < vocab_size and (counts := count_pairs(words)):
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        ids.setdefault(best[0] + best[1], len(ids))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


def train(texts: Iterable[str], vocab_size: int, pattern: str | None = None, special_tokens: Sequence[str] = ()) -> BPE:
    """Learns a vocabulary; merges and ids equal those of ``tokenizers``' BpeTrainer over a byte-level alphabet.

    Args:
        texts: the training texts.
        vocab_size: ids in all; fewer come out when the texts hold no more pairs.
        pattern: the words, such as GPT2_PATTERN. None: a text is one word, and a byte's id is its value.
        special_tokens: get the first ids; no text is encoded to them.

    Raises:
        UserError: ``vocab_size`` below the 256 bytes and the special tokens, or one text instead of several.
    """
    if isinstance(texts, str):
        raise UserError("texts is one string, expected several; put it in a list")
    if vocab_size < 256 + len(special_tokens):
        raise UserError(
            f"vocab_size {vocab_size} is too small; give at least {256 + len(special_tokens)}: 256 bytes and "
            f"{len(special_tokens)} special tokens"
        )
    alphabet = [bytes([i]) for i in (range(256) if pattern is None else _byte_characters().values())]
    ids = {token: i for i, token in enumerate([*(token.encode() for token in special_tokens), *alphabet])}
    counts = Counter(word for text in texts for word in _split(text, pattern))
    merges = _learn_fast({_bytes(word): count for word, count in counts.items()}, ids, vocab_size)
    return BPE(ids, merges, pattern)


def encode(text: str, bpe: BPE) -> list[int]:
    """Returns the ids of ``text``: in each word, the pair that was learnt first is joined, again and again."""
    known: dict[str, list[int]] = {}
    ids: list[int] = []
    for word in _split(text, bpe.pattern):
        if word not in known:
            known[word] = [bpe.ids[token] for token in _join(_bytes(word), bpe.ranks)]
        ids += known[word]
    return ids


def decode(ids: Iterable[int], bpe: BPE) -> str:
    """Returns the text of ``ids``; bytes that are no UTF-8 become U+FFFD. UserError for an id it does not have."""
    ids = list(ids)
    unknown = [i for i in ids if i not in bpe.tokens]
    if unknown:
        raise UserError(f"id {unknown[0]} is not in the vocabulary of {len(bpe.ids)}; encode with the same vocabulary")
    return b"".join(bpe.tokens[i] for i in ids).decode("utf-8", errors="replace")


def load(folder: str | Path) -> BPE:
    """Reads GPT-2's vocab.json and merges.txt; UserError when one is missing or not of that kind."""
    vocab, path = read_json(Path(folder) / "vocab.json"), Path(folder) / "merges.txt"
    if not isinstance(vocab, dict):
        raise UserError(
            f"{Path(folder) / 'vocab.json'} holds a {type(vocab).__name__}, expected a JSON object of tokens and their "
            f"ids; take it from the checkpoint"
        )
    byte = {character: bytes([i]) for character, i in _byte_characters().items()}
    lines = [line for line in read_text(path).split("\n") if line and not line.startswith("#version")]
    try:
        ids = {b"".join(byte[character] for character in token): i for token, i in vocab.items()}
        pairs = [line.split(" ") for line in lines]
        merges = [tuple(b"".join(byte[character] for character in part) for part in pair) for pair in pairs]
    except KeyError as e:
        raise UserError(
            f"{folder} holds the character {e}, which stands for no byte; give a byte-level vocabulary such as GPT-2's"
        ) from None
    for line, pair in zip(lines, merges, strict=True):
        if len(pair) != 2 or b"".join(pair) not in ids:
            raise UserError(f"{path}: {line!r} is no pair of tokens of vocab.json; copy both from one checkpoint")
    return BPE(ids, merges, GPT2_PATTERN)


def _split(text: str, pattern: str | None) -> list[str]:
    if pattern is None:
        return [text]
    return [word for word, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def _bytes(word: str) -> Word:
    data = word.encode()
    return tuple(data[i : i + 1] for i in range(len(data)))


def _byte_characters() -> dict[str, int]:
    """GPT-2's visible character for each byte, in the order of its ids: printable Latin-1 ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [i for i in range(256) if i not in set(printable)]
    return {chr(i): i for i in printable} | {chr(256 + n): i for n, i in enumerate(others)}


def _learn_fast(words: Mapping[Word, int], ids: dict[bytes, int], vocab_size: int) -> list[Pair]:
    """learn, with counts that change only where a merge happens.

    All words stand in one doubly linked list with None between them; ``where`` remembers at which places a pair was
    seen, and a queue gives the most frequent. Both may be out of date, which is noticed when they are read.
    """
    tokens: list[bytes | None] = [None]
    weights = [0]
    for word, count in words.items():
        tokens += (*word, None)
        weights += [count] * (len(word) + 1)
    left, right = list(range(-1, len(tokens) - 1)), list(range(1, len(tokens) + 1))
    counts = count_pairs(words)
    where: dict[Pair, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairwise(tokens)):
        where[pair].append(i)
    queue = [(-count, ids[pair[0]], ids[pair[1]], pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while queue and len(ids) < vocab_size:
        count, *_, pair = heapq.heappop(queue)
        if -count != counts[pair]:  # out of date
            if counts[pair]:
                heapq.heappush(queue, (-counts[pair], ids[pair[0]], ids[pair[1]], pair))
            continue
        first, second = pair
        joined = first + second
        ids.setdefault(joined, len(ids))
        merges.append(pair)
        grown: set[Pair] = set()
        for i in sorted(where.pop(pair)):
            j = right[i]
            if tokens[i] != first or tokens[j] != second:  # an overlapping or an earlier merge took it
                continue
            before, after = left[i], right[j]
            tokens[i], tokens[j] = joined, None
            right[i], left[after] = after, i
            for place, old, new in (
                (before, (tokens[before], first), (tokens[before], joined)),
                (i, (second, tokens[after]), (joined, tokens[after])),
            ):
                if None not in new:
                    counts[old] -= weights[i]
                    counts[new] += weights[i]
                    where[new].append(place)
                    grown.add(new)
        del counts[pair]
        for pair in grown:
            heapq.heappush(queue, (-counts[pair], ids[pair[0]], ids[pair[1]], pair))
    return merges


def _join(word: Word, ranks: Mapping[Pair, int]) -> list[bytes]:
    """Joins the pair of the lowest rank, the leftmost first, until no pair has one."""
    tokens: list[bytes | None] = [*word, None]
    left, right = list(range(-1, len(word))), list(range(1, len(word) + 2))
    queue = [(ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks]
    heapq.heapify(queue)
    while queue:
        rank, i = heapq.heappop(queue)
        j = right[i]
        if tokens[i] is None or ranks.get((tokens[i], tokens[j])) != rank:  # its tokens were joined with others
            continue
        tokens[i], tokens[j] = tokens[i] + tokens[j], None
        right[i] = right[j]
        left[right[i]] = i
        for k in (left[i], i):
            pair = (tokens[k], tokens[right[k]]) if k >= 0 else None
            if pair in ranks:
                heapq.heappush(queue, (ranks[pair], k))
    return [token for token in tokens if token is not None]
