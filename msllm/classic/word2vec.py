"""Word vectors: skip-gram with negative sampling (Mikolov et al. 2013, "Distributed Representations of Words and
Phrases and their Compositionality"). Shapes: B pairs, K noise words, D width of a vector, V vocabulary."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from msllm.errors import UserError, nearest
from msllm.layers import parameter

_batch_matmul_nt = ops.BatchMatMul(transpose_b=True)
_scatter_add = ops.ScatterAdd()
_NOISE_POWER = 0.75  # section 2.2: between the words' frequencies (1) and equal shares (0)


def words(text: str) -> list[str]:
    """Returns the lower-cased words of an English text, without punctuation; "'" may stand inside a word."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def negative_sampling_loss(center_BD: Tensor, context_BKD: Tensor) -> Tensor:
    """Returns minus the sum over pairs of ln s(u_0 . v) + sum over k of ln s(-u_k . v), s the sigmoid (equation 4).

    Args:
        center_BD: v, the vectors of the words in the middle.
        context_BKD: u, (B, 1 + K, D): first that of the word near by, then those of the noise words.
    """
    scores = ops.reshape(_batch_matmul_nt(ops.expand_dims(center_BD, 1), context_BKD), context_BKD.shape[:2])
    signs = Tensor(np.array([1.0] + [-1.0] * (context_BKD.shape[1] - 1), np.float32))
    return -ops.reduce_sum(ops.log(ops.sigmoid(scores * signs)))


class SkipGram(nn.Cell):
    """A vector for each word, such that it tells which words stand near by.

    Args:
        corpus: the words of a text, in order.
        width: D.
        window: a word's neighbours are at most so many words away; for each word a reach from 1 to ``window`` is
            drawn, so that nearer words count more.
        negatives: K.
        min_count: rarer words are left out of the text.
        subsample: t of equation 5: a word of frequency f is kept with probability sqrt(t / f), as "the" stands near
            everything and says little. The smaller the text the larger t must be.
        seed: of initial vectors, pairs and noise.

    Attributes:
        vocabulary: the words, the most frequent first.
        center, context: (V, D), v and u of each word; v is what serves as the word's vector.

    Raises:
        UserError: fewer than two words are left.
    """

    def __init__(
        self,
        corpus: Sequence[str],
        width: int = 64,
        window: int = 5,
        negatives: int = 5,
        min_count: int = 5,
        subsample: float = 1e-3,
        seed: int = 0,
    ):
        super().__init__()
        counts = [(word, count) for word, count in Counter(corpus).most_common() if count >= min_count]
        if len(counts) < 2:
            raise UserError(
                f"{len(counts)} words of the text appear {min_count} times or more; lower min_count or give more text"
            )
        self.vocabulary = [word for word, _ in counts]
        self.index = {word: i for i, word in enumerate(self.vocabulary)}
        self.ids = np.array([self.index[word] for word in corpus if word in self.index])
        self.window, self.negatives, self.subsample = window, negatives, subsample
        self.rng = np.random.default_rng(seed)
        frequency = np.array([count for _, count in counts]) / len(self.ids)
        self.keep = np.minimum(1.0, np.sqrt(subsample / frequency))
        self.noise = np.cumsum(frequency**_NOISE_POWER)
        # As in the authors' program: v small, u zero.
        self.center, self.context = parameter((len(counts), width)), parameter((len(counts), width))
        start = self.rng.uniform(-0.5 / width, 0.5 / width, (len(counts), width))
        self.center.set_data(Tensor(start.astype(np.float32)))
        self._value_and_grad = ms.value_and_grad(negative_sampling_loss, (0, 1))

    def pairs(self) -> np.ndarray:
        """Returns (center, neighbour) ids of the whole text in random order, int32 (N, 2): those of one epoch.

        Raises:
            UserError: subsampling leaves fewer than two words.
        """
        ids = self.ids[self.rng.random(len(self.ids)) < self.keep[self.ids]]
        if len(ids) < 2:
            raise UserError(
                f"subsampling with {self.subsample} leaves {len(ids)} of the text's {len(self.ids)} words, and a pair "
                f"takes 2; raise subsample (1 leaves all) or give more text"
            )
        reach = self.rng.integers(1, self.window + 1, len(ids))
        found = []
        for distance in range(1, min(self.window, len(ids) - 1) + 1):
            left, right = ids[:-distance], ids[distance:]
            found.append(np.stack([left, right], 1)[reach[:-distance] >= distance])
            found.append(np.stack([right, left], 1)[reach[distance:] >= distance])
        return self.rng.permutation(np.concatenate(found)).astype(np.int32)

    def train(
        self,
        epochs: int = 15,
        learning_rate: float = 0.025,
        batch_size: int = 1024,
        progress: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Trains by stochastic gradient descent, the rate falling linearly to 0; returns the mean loss of each epoch.

        Args:
            progress: called after each epoch with its number, from 1, and its mean loss per pair.
        """
        losses = []
        for epoch in range(epochs):
            pairs, total = self.pairs(), 0.0
            for start in range(0, len(pairs), batch_size):
                rate = learning_rate * (1 - (epoch + start / len(pairs)) / epochs)
                total += self.step(pairs[start : start + batch_size], rate)
            losses.append(total / len(pairs))
            if progress is not None:
                progress(epoch + 1, losses[-1])
        return losses

    def step(self, pairs: np.ndarray, learning_rate: float) -> float:
        """One step on pairs int32 (B, 2); returns their summed loss.

        The gradient is taken of the rows that the pairs touch, not of the tables, and added to these rows alone.
        """
        noise = np.searchsorted(self.noise, self.rng.random((len(pairs), self.negatives)) * self.noise[-1])
        centers = Tensor(np.ascontiguousarray(pairs[:, 0]))
        contexts = Tensor(np.concatenate([pairs[:, 1:], noise], 1).astype(np.int32))
        rows = ops.gather(self.center, centers, 0), ops.gather(self.context, contexts, 0)
        loss, (center_grad, context_grad) = self._value_and_grad(*rows)
        _scatter_add(self.center, centers, center_grad * -learning_rate)
        _scatter_add(self.context, contexts, context_grad * -learning_rate)
        return float(loss.asnumpy())

    def vectors(self) -> np.ndarray:
        """Returns the words' vectors, each of length 1, (V, D): products of two are cosines."""
        rows = self.center.asnumpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def nearest(self, word: str, count: int = 8) -> list[tuple[str, float]]:
        """Returns the words whose vectors are nearest to that of ``word``, with their cosines."""
        return self._closest(self.vectors()[self._row(word)], {word}, count)

    def analogy(self, a: str, b: str, c: str, count: int = 5) -> list[tuple[str, float]]:
        """Returns what is to c as b is to a: the words nearest to v_b - v_a + v_c, other than these three.

        Source: Mikolov, Yih and Zweig 2013, "Linguistic Regularities in Continuous Space Word Representations".
        """
        v_a, v_b, v_c = self.vectors()[[self._row(word) for word in (a, b, c)]]
        return self._closest(v_b - v_a + v_c, {a, b, c}, count)

    def _closest(self, vector: np.ndarray, without: set[str], count: int) -> list[tuple[str, float]]:
        cosines = self.vectors() @ (vector / np.linalg.norm(vector))
        order = (i for i in np.argsort(-cosines) if self.vocabulary[i] not in without)
        return [(self.vocabulary[i], float(cosines[i])) for i, _ in zip(order, range(count))]

    def _row(self, word: str) -> int:
        if word not in self.index:
            raise UserError(
                f"{word!r} is not among the {len(self.vocabulary)} words that have a vector"
                f"{nearest(word, self.vocabulary)}; choose another, or train with a lower min_count"
            )
        return self.index[word]
