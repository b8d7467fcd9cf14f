"""A text as ids of its characters, its two parts, and windows of ids as training examples. NumPy only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msllm.data import IGNORED
from msllm.errors import UserError
from msllm.files import read_text


class Alphabet:
    """The characters of a text, sorted: the id of a character is its place.

    Args:
        text: what the characters are taken from.
    """

    def __init__(self, text: str):
        self.characters = "".join(sorted(set(text)))
        self._ids = {c: i for i, c in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 (N,); UserError where it has a character of no id."""
        try:
            return np.fromiter((self._ids[c] for c in text), np.int32, len(text))
        except KeyError as e:
            raise UserError(
                f"the text has the character {e.args[0]!r}, which is none of the {len(self)} known; "
                f"make the Alphabet from the whole text"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return "".join(self.characters[i] for i in ids)


def split(length: int, share: float = 0.9) -> int:
    """Returns where the held-out end of a text begins: the first int(share * length) ids are for training."""
    if not 0 < share < 1:
        raise UserError(f"share is {share}, expected between 0 and 1; change it")
    return int(share * length)


def read_characters(path: str | Path) -> tuple[Alphabet, np.ndarray, int]:
    """Returns the alphabet of a text file, its ids, and where its held-out end begins (see split)."""
    text = read_text(path)
    alphabet = Alphabet(text)
    return alphabet, alphabet.encode(text), split(len(text))


def random_windows(ids: np.ndarray, length: int, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Returns ``count`` windows of ``length`` ids, which begin anywhere in ``ids``: examples for the Trainer.

    Each predicts length - 1 ids, the first from one id before it, the last from length - 1.
    """
    if len(ids) < length:
        raise UserError(f"the text has {len(ids)} ids, a window {length}; give more text or shorter windows")
    starts = np.random.default_rng(seed).integers(0, len(ids) - length + 1, count)
    return [_example(ids, start, start + length, 1) for start in starts]


def sliding_windows(ids: np.ndarray, start: int, length: int, context: int = 1) -> list[dict[str, np.ndarray]]:
    """Returns windows in which every id from ``start`` on is predicted once.

    Args:
        ids: (N,) the whole text, as the first windows reach back before ``start``.
        start: the first id to predict, at least 1.
        length: ids in a window, so at most length - 1 before the one that is predicted.
        context: at least so many ids stand before it, at the beginning of ids as many as there are. The more, the
            more the windows overlap: each predicts length - context ids.
    """
    if not 1 <= context < length:
        raise UserError(f"context is {context}, expected 1 to {length - 1} in windows of {length}; change it")
    if not 1 <= start < len(ids):
        raise UserError(f"start is {start}, expected 1 to {len(ids) - 1} in a text of {len(ids)} ids; change it")
    found = []
    while start < len(ids):
        first = max(start - context, 0)
        end = min(first + length, len(ids))
        found.append(_example(ids, first, end, start - first))
        start = end
    return found


def _example(ids: np.ndarray, first: int, end: int, context: int) -> dict[str, np.ndarray]:
    labels = ids[first:end].copy()
    labels[:context] = IGNORED
    return {"input_ids": ids[first:end], "labels": labels}
