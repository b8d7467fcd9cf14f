"""One step of byte-pair encoding: count the pairs, take the most frequent, join it everywhere.

A word is a tuple of tokens, at first of characters: ("l", "o", "w"). Repeating the step until the vocabulary is large
enough is all of the training. Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
Units", algorithm 1. No numpy here.
"""

Word = tuple[str, ...]
Pair = tuple[str, str]


def count_pairs(words: dict[Word, int]) -> dict[Pair, int]:
    """Counts how often two tokens stand side by side in the text.

    Args:
        words: dict from a word to how often the text holds it: {("l", "o", "w"): 5, ("n", "e", "w"): 6}.

    Returns:
        dict from a pair to its count: {("l", "o"): 5, ("o", "w"): 5, ("n", "e"): 6, ("e", "w"): 6}. A pair lies in
        one word; all neighbours count, so ("a", "a", "a") holds ("a", "a") twice.

    Hint: zip(word, word[1:]) are the neighbours of a word.
    """
    ...


def most_frequent_pair(counts: dict[Pair, int], ids: dict[str, int]) -> Pair:
    """Chooses the pair that is joined next: the one of the largest count.

    Where several share it, the one whose first token has the smallest id; where these are the same too, the one whose
    second token has the smallest id. (Any rule would do, but training must give the same vocabulary each time.)

    Args:
        counts: dict from a pair to its count, not empty.
        ids: dict from a token to its id.

    Returns:
        The pair, a tuple of two tokens.

    Hint: min or max with a key that is a tuple; a minus sign turns an order round.
    """
    ...


def merge(word: Word, pair: Pair) -> Word:
    """Joins a pair of tokens wherever it stands in a word, from left to right.

    Args:
        word: tuple of tokens.
        pair: tuple of two tokens.

    Returns:
        tuple of tokens: merge(("l", "o", "w"), ("l", "o")) is ("lo", "w"). A token is joined once only:
        merge(("a", "a", "a"), ("a", "a")) is ("aa", "a").
    """
    ...
