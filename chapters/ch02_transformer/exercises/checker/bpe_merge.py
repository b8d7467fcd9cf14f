"""Checks bpe_merge.py against msllm.tokenization.bpe; the variants are wrong on purpose."""

from collections import Counter
from itertools import pairwise

from msllm.lessons.checking import Task, against


def count_cases():
    """The words of Sennrich's example, and words with a token three times in a row and with pairs turned round."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    return [
        ({tuple(word): count for word, count in words.items()},),
        ({("a", "a", "a"): 2, ("b", "a"): 1, ("a", "b"): 4, ("ab", "a", "ab", "a"): 3},),
    ]


def count_pairs(words):
    from msllm.tokenization.bpe import count_pairs as of_the_library

    return dict(of_the_library(words))


def _count_apart(words):
    """Counts a token for one pair only."""
    counts = Counter()
    for word, count in words.items():
        i = 0
        while i + 1 < len(word):
            counts[word[i : i + 2]] += count
            i += 2 if word[i : i + 2] == word[i + 1 : i + 3] else 1
    return counts


def _count_across(words, times=True):
    text = [token for word, count in words.items() for _ in range(count if times else 1) for token in word]
    return Counter(pairwise(text))


def _count(words, pairs=pairwise, times=True):
    counts = Counter()
    for word, count in words.items():
        for pair in pairs(word):
            counts[pair] += count if times else 1
    return counts


COUNT_MISTAKES = [
    ("each word counts once; it counts as often as the text holds it", lambda w: _count(w, times=False)),
    ("pairs are counted over the border of two words", _count_across),
    ("pairs are counted over the border of two words, and each word once", lambda w: _count_across(w, False)),
    ('overlapping pairs are counted once: "aaa" holds ("a", "a") twice', _count_apart),
    ("a pair counts once a word, however often the word holds it", lambda w: _count(w, lambda x: set(pairwise(x)))),
    (
        "a pair and its reverse are counted together; the order matters",
        lambda w: _count(w, lambda x: map(tuple, map(sorted, pairwise(x)))),
    ),
]


def choice_cases():
    """A clear winner; and pairs of equal counts, of which every rule takes another one."""
    ids = {token: i for i, token in enumerate("zycxab")}
    tied = ["yc", "ax", "zb", "yz", "zx", "zc", "by", "ca"]
    return [
        ({("a", "b"): 2, ("z", "y"): 1, ("b", "c"): 7, ("x", "a"): 3}, ids),
        ({("x", "c"): 4, **{tuple(pair): 9 for pair in tied}}, ids),
    ]


def most_frequent_pair(counts, ids):
    from msllm.tokenization.bpe import learn

    return learn(counts, dict(ids), len(ids) + 1)[0]  # a pair is a word of two tokens


TIE = "equal counts: the smallest ids decide, first token before second"
CHOICE_MISTAKES = [
    (f"{TIE}; this takes the pair seen first", lambda c, ids: max(c, key=c.get)),
    (f"{TIE}; this takes the pair seen last", lambda c, ids: max(reversed(list(c)), key=c.get)),
    (f"{TIE}; this takes the first in the alphabet", lambda c, ids: min(c, key=lambda p: (-c[p], p))),
    (f"{TIE}; this takes the last in the alphabet", lambda c, ids: max(c, key=lambda p: (c[p], p))),
    (f"{TIE}; this takes the largest", lambda c, ids: max(c, key=lambda p: (c[p], ids[p[0]], ids[p[1]]))),
    (f"{TIE}; this looks at the second first", lambda c, ids: min(c, key=lambda p: (-c[p], ids[p[1]], ids[p[0]]))),
    (f"{TIE}; this looks at the first token only", lambda c, ids: min(c, key=lambda p: (-c[p], ids[p[0]]))),
    ("this is the rarest pair", lambda c, ids: min(c, key=c.get)),
]


def merge_cases():
    """Nothing to join, two places, overlaps, the reverse, and tokens that end in the pair's letters."""
    return [
        (("l", "o", "w"), ("n", "e")),
        (("l", "o", "w"), ("l", "o")),
        (("b", "a", "n", "a", "n", "a"), ("a", "n")),
        (("x", "o", "x", "o", "x", "o"), ("x", "o")),
        (("a", "a", "a"), ("a", "a")),
        (("a", "a", "a", "a", "a", "b"), ("a", "a")),
        (("o", "l", "o"), ("l", "o")),
        (("xa", "b", "a", "b"), ("a", "b")),
        (("a",), ("a", "a")),
    ]


def merge(word, pair):
    from msllm.tokenization.bpe import merge as of_the_library

    return of_the_library(word, pair)


def _merge_overlapping(word, pair):
    """Every place where the pair stands gives a joined token, also one that shares a token with the last."""
    out, taken = [], False
    for i, token in enumerate(word):
        starts = word[i : i + 2] == pair
        if starts:
            out.append("".join(pair))
        elif not taken:
            out.append(token)
        taken = starts
    return tuple(out)


def _merge_first(word, pair):
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], "".join(pair), *word[i + 2 :])
    return word


def _merge_from_the_right(word, pair):
    out, i = [], len(word)
    while i > 0:
        joins = word[max(0, i - 2) : i] == pair
        out.append("".join(pair) if joins else word[i - 1])
        i -= 2 if joins else 1
    return tuple(reversed(out))


def _merge_either(word, pair, as_written):
    out, i = [], 0
    while i < len(word):
        here = word[i : i + 2]
        joins = here in (pair, pair[::-1])
        out.append("".join(here if as_written else pair) if joins else word[i])
        i += 2 if joins else 1
    return tuple(out)


def _merge_text(word, pair):
    return tuple(" ".join(word).replace(" ".join(pair), "".join(pair)).split(" "))


MERGE_MISTAKES = [
    ('overlapping pairs are both joined: in "aaa" the middle token is joined once only', _merge_overlapping),
    ("only the first place where the pair stands is joined", _merge_first),
    ('joining goes from the left: "aaa" becomes ("aa", "a")', _merge_from_the_right),
    (
        'the text is replaced, not tokens: ("xa", "b") does not hold the pair ("a", "b"), though its text ends so',
        _merge_text,
    ),
    ("the reverse of the pair is joined too; the order matters", lambda w, p: _merge_either(w, p, True)),
    ("the reverse of the pair is joined too; the order matters", lambda w, p: _merge_either(w, p, False)),
    ("nothing is joined", lambda w, p: w),
]

TASKS = (
    Task("count_pairs", against(count_pairs, count_cases, COUNT_MISTAKES)),
    Task("most_frequent_pair", against(most_frequent_pair, choice_cases, CHOICE_MISTAKES)),
    Task("merge", against(merge, merge_cases, MERGE_MISTAKES)),
)
