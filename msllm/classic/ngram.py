"""N-gram language models: interpolated modified Kneser-Ney, and back-off with absolute discounting. NumPy only.

A k-gram w_1 ... w_k of ids below V is one number, its code: ((w_1 V + w_2) V + ...) + w_k. Dividing by V drops the
last id and leaves the context; the remainder modulo V^(k-1) drops the first and leaves the (k-1)-gram to fall back on.
So counting is sorting, and looking up is a binary search, for all positions of a text at once.

c(h w) is the count of context h followed by w, c(h) its sum over w, h' is h without its first id, and N1+(h *) the
number of different ids seen after h.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from msllm.errors import UserError

# Discounts of a level whose counts of counts define none: the values that KenLM's --discount_fallback takes.
FALLBACK = (0.5, 1.0, 1.5)


@dataclasses.dataclass(frozen=True)
class Level:
    """The k-grams of one k, as an ARPA file lists them: a probability each, and a back-off weight for each context.

    Args:
        grams: sorted codes of the k-grams that are stored.
        probabilities: P(w | h) of each.
        contexts: sorted codes of the contexts h that they have.
        weights: what P(w | h') is multiplied by where h w is not stored, for each context.
    """

    grams: np.ndarray
    probabilities: np.ndarray
    contexts: np.ndarray
    weights: np.ndarray


class NGram:
    """What both models share: from levels of stored k-grams to probabilities, and back to text.

    An interpolated model also fits this form: what it stores for a k-gram is the finished sum.

    Args:
        ids: (N,) the training text.
        vocab_size: V; every id is below it.
        order: n; a prediction looks at n - 1 ids.

    Attributes:
        levels: those of k = 1 to n.
        stored: k-grams in all levels together.

    Raises:
        UserError: ids outside the vocabulary, a text shorter than n, or an order whose codes do not fit 63 bits.
    """

    def __init__(self, ids: Sequence[int], vocab_size: int, order: int):
        ids = np.asarray(ids, np.int64)
        if order < 1 or vocab_size**order >= 2**63:
            raise UserError(f"order is {order}, expected 1 or more with {vocab_size}^order below 2^63; change it")
        if len(ids) < order:
            raise UserError(f"the text has {len(ids)} ids, an order of {order} needs as many; give more text")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise UserError(f"ids go from {ids.min()} to {ids.max()}, expected 0 to {vocab_size - 1}; encode again")
        self.vocab_size, self.order = vocab_size, order
        self.levels: list[Level] = []
        for k, (grams, counts) in enumerate(self._counts(ids), 1):
            self.levels.append(self._level(k, grams, counts))

    @property
    def stored(self) -> int:
        return sum(len(level.grams) for level in self.levels)

    def _counts(self, ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for k = 1 to n the sorted codes that are stored, and their counts."""
        return [np.unique(self._codes(ids, k), return_counts=True) for k in range(1, self.order + 1)]

    def _level(self, k: int, grams: np.ndarray, counts: np.ndarray) -> Level:
        raise TypeError(f"{type(self).__name__} does not say how it smooths")

    def _codes(self, ids: np.ndarray, k: int) -> np.ndarray:
        """Returns the codes of all len(ids) - k + 1 k-grams of a text, in its order."""
        codes = np.zeros(len(ids) - k + 1, np.int64)
        for j in range(k):
            codes = codes * self.vocab_size + ids[j : j + len(codes)]
        return codes

    def _probability(self, codes: np.ndarray, k: int) -> np.ndarray:
        """Returns P(last id | the k - 1 ids before it) for codes of k-grams."""
        if k == 0:
            return np.full(len(codes), 1.0 / self.vocab_size)
        level = self.levels[k - 1]
        place, found = _look_up(level.grams, codes)
        out = np.where(found, level.probabilities[place], 0.0)
        unseen = codes[~found]
        place, known = _look_up(level.contexts, unseen // self.vocab_size)
        weights = np.where(known, level.weights[place], 1.0)
        out[~found] = weights * self._probability(unseen % self.vocab_size ** (k - 1), k - 1)
        return out

    def log_probabilities(self, ids: Sequence[int], start: int = 0) -> np.ndarray:
        """Returns ln P(ids[i] | the n - 1 ids before it, or as many as there are) for i = start, start + 1, ..."""
        ids = np.asarray(ids, np.int64)
        n, first = self.order, max(start - self.order + 1, 0)
        head = [self._probability(self._codes(ids[: i + 1], i + 1), i + 1) for i in range(start, min(n - 1, len(ids)))]
        rest = self._probability(self._codes(ids[first:], n), n) if len(ids) - first >= n else np.empty(0)
        return np.log(np.concatenate([*head, rest]))

    def seen(self, ids: Sequence[int], start: int) -> float:
        """Returns the share of the n-grams ending at ids[start] or later that also stand in the training text."""
        codes = self._codes(np.asarray(ids, np.int64)[max(start - self.order + 1, 0) :], self.order)
        return float(np.mean(_look_up(self.levels[-1].grams, codes)[1]))

    def next_distribution(self, context: Sequence[int] = ()) -> np.ndarray:
        """Returns P(w | context) of every w, (V,)."""
        context = np.asarray(context, np.int64)[len(context) - min(len(context), self.order - 1) :]
        code = self._codes(context, len(context))[0] if len(context) else 0
        return self._probability(code * self.vocab_size + np.arange(self.vocab_size), len(context) + 1)

    def generate(self, count: int, context: Sequence[int] = (), seed: int = 0) -> list[int]:
        """Returns ``count`` ids drawn one after the other, each from its distribution given those before."""
        rng = np.random.default_rng(seed)
        ids = list(context)
        for _ in range(count):
            ids.append(_draw(self.next_distribution(ids[-self.order :]), rng))
        return ids[len(context) :]


class KneserNey(NGram):
    """Interpolated Kneser-Ney with three discounts (Chen and Goodman 1999, "modified Kneser-Ney").

    P(w | h) = max(c(h w) - D(c(h w)), 0) / c(h) + gamma(h) P(w | h'),
    gamma(h) = (D1 N1(h *) + D2 N2(h *) + D3+ N3+(h *)) / c(h); under the unigrams lies 1 / V.

    Only the highest order counts occurrences. Below it c is the number of different ids that stand before the k-gram:
    "Francisco" is frequent, but as it follows little else than "San" it is a poor guess after a new context.

    Args:
        ids, vocab_size, order: see NGram.
        discounts: (D1, D2, D3+) for each k from 1 to n; None estimates them: see modified_discounts.

    Attributes:
        discounts: those in use.
        estimated: for each k, whether they were estimated. A level of few types (65 characters) has no k-grams of
            some count below 5, and then FALLBACK is used.
    """

    def __init__(self, ids: Sequence[int], vocab_size: int, order: int, discounts: Sequence | None = None):
        if discounts is not None and len(discounts) != order:
            raise UserError(f"{len(discounts)} discounts are given for order {order}; give three numbers for each k")
        self._given = discounts
        self.discounts: list[tuple[float, float, float]] = []
        self.estimated: list[bool] = []
        super().__init__(ids, vocab_size, order)

    def _counts(self, ids):
        grams = [np.unique(self._codes(ids, k)) for k in range(2, self.order + 1)]
        # Of the different (k+1)-grams the last k ids: a k-gram appears once for every different id before it.
        lower = [np.unique(longer % self.vocab_size**k, return_counts=True) for k, longer in enumerate(grams, 1)]
        return [*lower, np.unique(self._codes(ids, self.order), return_counts=True)]

    def _level(self, k, grams, counts):
        own = modified_discounts(counts) if self._given is None else None
        self.estimated.append(own is not None)
        self.discounts.append(own or (FALLBACK if self._given is None else tuple(self._given[k - 1])))
        discount = np.array([0.0, *self.discounts[-1]])[np.minimum(counts, 3)]
        discount = np.minimum(discount, counts)  # given ones may be above the count: the maximum with 0 in the formula
        contexts, place = np.unique(grams // self.vocab_size, return_inverse=True)
        totals = np.bincount(place, counts)
        weights = np.bincount(place, discount) / totals
        lower = self._probability(grams % self.vocab_size ** (k - 1), k - 1)
        return Level(grams, (counts - discount) / totals[place] + weights[place] * lower, contexts, weights)


class AbsoluteBackoff(NGram):
    """Back-off (Katz 1987) with absolute discounting (Ney, Essen and Kneser 1994, section 2).

    P(w | h) = (c(h w) - D) / c(h) where h w was seen, else alpha(h) P(w | h'); alpha(h) spreads what the discounts
    took over the ids not seen after h, so that the whole is 1. D = n1 / (n1 + 2 n2) for each k, where n1 and n2 are
    the numbers of k-grams seen once and twice.

    Katz discounts small counts only, by Good-Turing; a context whose continuations are all frequent ("q" before "u")
    would leave nothing for the others, and their probability would be 0. A fixed D always leaves something.

    Attributes:
        discounts: D for k = 1 to n; 0.5 where n1 or n2 is 0, as D would then be 0 or 1 and some probability 0.
    """

    def __init__(self, ids: Sequence[int], vocab_size: int, order: int):
        self.discounts: list[float] = []
        super().__init__(ids, vocab_size, order)

    def _level(self, k, grams, counts):
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        self.discounts.append(once / (once + 2 * twice) if once and twice else 0.5)
        contexts, place = np.unique(grams // self.vocab_size, return_inverse=True)
        totals, types = np.bincount(place, counts), np.bincount(place)
        # After some contexts every id was seen: nobody is left to receive a discount.
        complete = types == self.vocab_size
        discount = np.where(complete, 0.0, self.discounts[-1])
        lower = np.bincount(place, self._probability(grams % self.vocab_size ** (k - 1), k - 1))
        left = np.where(complete, 1.0, 1.0 - lower)
        weights = discount * types / totals / left
        return Level(grams, (counts - discount[place]) / totals[place], contexts, weights)


def modified_discounts(counts: np.ndarray) -> tuple[float, float, float] | None:
    """Returns D1, D2 and D3+ from the numbers n1 to n4 of k-grams with count 1 to 4 (Chen and Goodman 1999).

    Y = n1 / (n1 + 2 n2), and D_c = c - (c + 1) Y n_(c+1) / n_c.

    Returns:
        None where one of n1 to n4 is 0, or a discount would be below 0 or above its count.
    """
    n = [int(np.count_nonzero(counts == c)) for c in range(1, 5)]
    if not all(n):
        return None
    y = n[0] / (n[0] + 2 * n[1])
    found = tuple(c - (c + 1) * y * n[c] / n[c - 1] for c in (1, 2, 3))
    return found if all(0 <= d <= c for c, d in enumerate(found, 1)) else None


def bits(log_probabilities: np.ndarray) -> float:
    """Returns the mean number of bits per prediction, -mean(log2 P), from natural logarithms."""
    return float(-np.mean(log_probabilities) / np.log(2))


def perplexity(log_probabilities: np.ndarray) -> float:
    """Returns exp(-mean(ln P)): from how many equally likely ids the model chooses, on average."""
    return float(np.exp(-np.mean(log_probabilities)))


def _look_up(table: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each code stands in a sorted table, and whether it does."""
    place = np.minimum(np.searchsorted(table, codes), len(table) - 1)
    return place, table[place] == codes


def _draw(probabilities: np.ndarray, rng: np.random.Generator) -> int:
    sums = np.cumsum(probabilities)
    return int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
