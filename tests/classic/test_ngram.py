"""N-gram models against a direct reading of the formulas, against nltk, and by hand."""

from collections import Counter

import numpy as np
import pytest

from msllm.classic import AbsoluteBackoff, Alphabet, KneserNey, bits, perplexity, split
from msllm.classic.ngram import FALLBACK, modified_discounts
from msllm.errors import UserError

V = 7
MODELS = [KneserNey, AbsoluteBackoff]


def random_text(length=400, vocab_size=V, seed=0):
    """Ids with structure: each depends on the two before it; the last of the vocabulary never comes."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(vocab_size - 1, 0.3), (vocab_size, vocab_size))
    ids = [0, 1]
    while len(ids) < length:
        ids.append(int(rng.choice(vocab_size - 1, p=table[ids[-2], ids[-1]])))
    return ids


class Slow:
    """Counts in dictionaries, the formulas word by word; contexts and k-grams are tuples."""

    def __init__(self, ids, vocab_size, order):
        self.vocab, self.order = range(vocab_size), order
        raw = {k: Counter(tuple(ids[i : i + k]) for i in range(len(ids) - k + 1)) for k in range(1, order + 2)}
        self.count = self.counts_of(raw)

    def total(self, h):
        return sum(self.count[len(h) + 1][(*h, w)] for w in self.vocab)

    def followers(self, h):
        return [w for w in self.vocab if self.count[len(h) + 1][(*h, w)] > 0]


class SlowKneserNey(Slow):
    def counts_of(self, raw):
        distinct_before = {k: Counter(gram[1:] for gram in raw[k + 1]) for k in range(1, self.order)}
        return {**distinct_before, self.order: raw[self.order]}

    def discounts(self, k):
        n = Counter(self.count[k].values())
        if 0 in (n[1], n[2], n[3], n[4]):
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        found = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
        return found if 0 <= found[0] <= 1 and 0 <= found[1] <= 2 and 0 <= found[2] <= 3 else FALLBACK

    def probability(self, h, w):
        k, total = len(h) + 1, self.total(h)
        lower = self.probability(h[1:], w) if h else 1 / len(self.vocab)
        if total == 0:
            return lower
        d1, d2, d3 = self.discounts(k)

        def discount(c):
            return 0 if c == 0 else d1 if c == 1 else d2 if c == 2 else d3

        after = [self.count[k][(*h, x)] for x in self.vocab]
        n1, n2, n3 = after.count(1), after.count(2), sum(c >= 3 for c in after)
        gamma = (d1 * n1 + d2 * n2 + d3 * n3) / total
        c = self.count[k][(*h, w)]
        return max(c - discount(c), 0) / total + gamma * lower


class SlowBackoff(Slow):
    def counts_of(self, raw):
        return raw

    def probability(self, h, w):
        k, total = len(h) + 1, self.total(h)
        if total == 0:
            return self.probability(h[1:], w)
        n = Counter(self.count[k].values())
        d = n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5
        seen = self.followers(h)
        if len(seen) == len(self.vocab):
            return self.count[k][(*h, w)] / total
        if w in seen:
            return (self.count[k][(*h, w)] - d) / total

        def lower(x):
            return self.probability(h[1:], x) if h else 1 / len(self.vocab)

        return d * len(seen) / total * lower(w) / sum(lower(x) for x in self.vocab if x not in seen)


SLOW = {KneserNey: SlowKneserNey, AbsoluteBackoff: SlowBackoff}


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", [12, 90, 400])
def test_probabilities_equal_the_formulas(model, order, length):
    ids = random_text(length)
    fast, slow = model(ids, V, order), SLOW[model](ids, V, order)
    rng = np.random.default_rng(1)
    contexts = [tuple(ids[i : i + order - 1]) for i in range(0, length - order, 7)]
    contexts += [tuple(rng.integers(0, V, order - 1)) for _ in range(30)]
    for h in contexts:
        want = [slow.probability(h, w) for w in range(V)]
        np.testing.assert_allclose(fast.next_distribution(h), want, rtol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_probabilities_sum_to_one(model):
    fast = model(random_text(), V, 5)
    rng = np.random.default_rng(2)
    unseen = 0
    for h in [(), (3,), *rng.integers(0, V, (200, 4))]:
        distribution = fast.next_distribution(h)
        assert (distribution > 0).all() and distribution.sum() == pytest.approx(1, abs=1e-12)
        unseen += not np.isin(fast._codes(np.array(h), len(h)), fast.levels[len(h)].contexts).all()
    assert 20 < unseen < 200  # both kinds of context were there


def test_equal_to_nltk_where_it_means_the_same():
    """One fixed discount, none for unigrams; nltk counts what follows a context by occurrences also below the highest
    order, which differs only for k-grams whose one place is the beginning of the text."""
    lm = pytest.importorskip("nltk.lm")
    from nltk.util import everygrams

    ids = random_text(500)
    ids += ids[:3]  # so that no k-gram stands at the beginning only
    words = [str(i) for i in ids]
    theirs = lm.KneserNeyInterpolated(3, discount=0.1)
    theirs.fit([list(everygrams(words, max_len=3))], [str(w) for w in range(V)])
    mine = KneserNey(ids, V, 3, discounts=[(0.0,) * 3, (0.1,) * 3, (0.1,) * 3])
    seen = {tuple(ids[i : i + 2]) for i in range(len(ids) - 2)}
    assert len(seen) > 20
    for h in seen:
        want = [theirs.score(str(w), [str(i) for i in h]) for w in range(V)]
        np.testing.assert_allclose(mine.next_distribution(h), want, rtol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_log_probabilities_are_those_of_each_context(model):
    ids = random_text(60)
    fast, text = model(ids, V, 3), random_text(50, seed=5)
    want = [np.log(fast.next_distribution(text[max(0, i - 2) : i])[text[i]]) for i in range(len(text))]
    for start in (0, 1, 2, 17, 49):
        np.testing.assert_allclose(fast.log_probabilities(text, start), want[start:], rtol=1e-12)
    np.testing.assert_allclose(fast.log_probabilities(text[:2]), want[:2], rtol=1e-12)
    assert len(fast.log_probabilities(text, len(text))) == 0


@pytest.mark.parametrize("model", MODELS)
def test_seen_counts_the_n_grams_of_the_held_out_part(model):
    fast = model([0, 1, 2, 3, 0, 1], V, 3)  # 012 123 230 301
    assert fast.seen([0, 1, 2, 3, 3, 0, 1, 2], 3) == pytest.approx(3 / 5)  # 123 233 330 301 012
    assert fast.seen([0, 1, 2], 0) == 1.0


def test_perplexity_by_hand():
    # a a b, all of the vocabulary seen: P(a) = 2/3, P(b) = 1/3. The text "a b": perplexity (2/9)^(-1/2).
    found = AbsoluteBackoff([0, 0, 1], 2, 1).log_probabilities([0, 1])
    assert perplexity(found) == pytest.approx(4.5**0.5)
    assert bits(found) == pytest.approx(np.log2(4.5) / 2)
    # One bit for each of two equally likely ids, and log2 V for V.
    assert bits(AbsoluteBackoff([0, 1], 2, 1).log_probabilities([1, 1, 0])) == pytest.approx(1)
    assert perplexity(np.log(np.full(5, 1 / 65))) == pytest.approx(65)


def test_kneser_ney_counts_contexts_not_occurrences():
    # 1 follows only 0, but often; 2 follows three different ids. After the new context 4, 2 is the better guess.
    ids = [0, 1] * 10 + [3, 2, 0, 2, 5, 2]
    kneser_ney, backoff = KneserNey(ids, 6, 2).next_distribution([4]), AbsoluteBackoff(ids, 6, 2).next_distribution([4])
    assert kneser_ney[2] > kneser_ney[1]
    assert backoff[2] < backoff[1]


def test_discounts_of_counts_of_counts():
    # n1 = 4, n2 = 2, n3 = n4 = 1: Y = 1/2.
    assert modified_discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])) == pytest.approx((0.5, 1.25, 1.0))
    assert modified_discounts(np.array([1, 1, 2, 3, 5])) is None  # no 4
    assert modified_discounts(np.array([1, 2, 3, 3, 3, 3, 4])) is None  # D2 = 2 - 3/3 * 4 < 0
    assert KneserNey([0, 1, 2], 3, 1).estimated == [False] and KneserNey([0, 1, 2], 3, 1).discounts == [FALLBACK]


@pytest.mark.parametrize("model", MODELS)
def test_samples_follow_the_distribution(model):
    fast = model(random_text(), V, 3)
    drawn = [fast.generate(1, [0, 1], seed)[0] for seed in range(3000)]
    expected = fast.next_distribution([0, 1]) * 3000
    chi_square = ((np.bincount(drawn, minlength=V) - expected) ** 2 / expected).sum()
    assert chi_square < 30  # six degrees of freedom: chance of more is 4e-5
    long = fast.generate(50, [0, 1], 3)
    assert long == fast.generate(50, [0, 1], 3) and len(long) == 50 and long != fast.generate(50, [0, 1], 4)
    assert np.isfinite(fast.log_probabilities([0, 1, *long])).all()


def test_a_growing_order_helps_kneser_ney_on_shakespeare(data_folder):
    path = data_folder / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    text = path.read_text(encoding="utf-8")
    alphabet = Alphabet(text)
    ids, start = alphabet.encode(text), split(len(text))
    assert (len(alphabet), len(ids) - start) == (65, 111540)
    found = [bits(KneserNey(ids[:start], 65, n).log_probabilities(ids, start)) for n in (1, 2, 3, 4, 6)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < bits(AbsoluteBackoff(ids[:start], 65, 6).log_probabilities(ids, start))
    # A stretch of it, where dictionaries are still quick: 26 letters and more, real counts of counts.
    part = ids[:3000]
    fast, slow = KneserNey(part, 65, 3), SlowKneserNey(part.tolist(), 65, 3)
    assert fast.estimated == [True, True, True]
    for i in range(3000, 3012):
        h = tuple(ids[i - 2 : i].tolist())
        np.testing.assert_allclose(fast.next_distribution(h)[ids[i]], slow.probability(h, ids[i]), rtol=1e-10)


def test_refusals():
    with pytest.raises(UserError, match="order is 0"):
        KneserNey([0, 1], 2, 0)
    with pytest.raises(UserError, match=r"order is 11, expected 1 or more with 65\^order"):
        AbsoluteBackoff(range(20), 65, 11)
    with pytest.raises(UserError, match="2 ids, an order of 3"):
        KneserNey([0, 1], 2, 3)
    with pytest.raises(UserError, match="ids go from 0 to 2, expected 0 to 1"):
        KneserNey([0, 2], 2, 1)
    with pytest.raises(UserError, match="1 discounts"):
        KneserNey([0, 1], 2, 2, discounts=[(0.1, 0.1, 0.1)])
