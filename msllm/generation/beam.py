"""Beam search with a length penalty; the hypotheses are those that transformers finds."""

import heapq
from collections.abc import Sequence

import numpy as np

from msllm.generation.config import GenerationConfig
from msllm.generation.sampling import log_softmax, processors


class Row:
    """The beams of one prompt.

    Attributes:
        scores: (beams,) summed log-probabilities; at the start only the first beam counts, all being alike.
        tokens: the ids of each running beam.
        finished: (score with length penalty, ids), best first, at most ``beams``.
        open: whether a running beam may still beat the worst finished one.
    """

    def __init__(self, beams: int):
        self.beams, self.open = beams, True
        self.scores = np.array([0.0] + [-1e9] * (beams - 1))
        self.tokens: list[list[int]] = [[] for _ in range(beams)]
        self.finished: list[tuple[float, list[int]]] = []

    def advance(self, log_probs: np.ndarray, keep: int, ends: set[int], last: bool, penalty: float) -> list[int]:
        """Extends the beams by a token each and returns the beam that each new one came from.

        Args:
            log_probs: (beams, V) of the next token.
            keep: candidates looked at, enough to go on with if some of them end.
            last: the length limit is reached, so that every candidate ends.
        """
        totals = (self.scores[:, None] + log_probs).reshape(-1)
        best = np.argpartition(-totals, keep - 1)[:keep]
        best = best[np.argsort(-totals[best], kind="stable")]
        origins, scores, tokens = [], [], []
        for rank, index in enumerate(best):
            beam, token = divmod(int(index), log_probs.shape[1])
            ids = [*self.tokens[beam], token]
            if token in ends or last:
                if rank < self.beams:  # a finished candidate counts only among the best ones
                    self.finished.append((totals[index] / len(ids) ** penalty, ids))
            elif len(origins) < self.beams:
                origins.append(beam)
                scores.append(totals[index])
                tokens.append(ids)
        self.finished = heapq.nlargest(self.beams, self.finished, key=lambda f: f[0])
        if last:
            self.open = False
            return list(range(self.beams))
        self.scores, self.tokens = np.array(scores), tokens
        return origins

    def close_if_settled(self, length: int, config: GenerationConfig) -> None:
        """Closes the row when it is full and no running beam can get better than its worst finished one."""
        if len(self.finished) == self.beams:
            hopeless = self.scores[0] / length**config.length_penalty <= self.finished[-1][0]
            self.open = self.open and not (hopeless or config.early_stopping)


def beam_search(decoder, config: GenerationConfig, ends: Sequence[int]) -> list[list[int]]:
    """Returns the best continuation of every prompt.

    Args:
        decoder: a Decoder with ``num_beams`` copies of each prompt.
        config: num_beams, length_penalty, early_stopping, repetition_penalty.
        ends: ids that end an answer.
    """
    beams, chain = config.num_beams, processors(config)
    keep = max(2, 1 + len(ends)) * beams
    rows = [Row(beams) for _ in decoder.contexts]
    for step in range(decoder.steps):
        log_probs = log_softmax(decoder.logits)
        order, tokens = [], []
        for i, (row, context) in enumerate(zip(rows, decoder.contexts, strict=True)):
            mine = log_probs[i * beams : (i + 1) * beams]
            for process in chain:
                mine = np.stack([process(p, [*context, *t]) for p, t in zip(mine, row.tokens, strict=True)])
            origins = range(beams)
            if row.open:
                origins = row.advance(mine, keep, set(ends), step + 1 == decoder.limits[i], config.length_penalty)
                row.close_if_settled(step + 1, config)
            order += [i * beams + origin for origin in origins]
            tokens += [ids[-1] for ids in row.tokens]
        if not any(row.open for row in rows):
            break
        decoder.cache.reorder(np.array(order))
        decoder.push(tokens)
    return [row.finished[0][1] for row in rows]
