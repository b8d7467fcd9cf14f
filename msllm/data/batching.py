"""Examples to batches: padding, packing, and an order that depends on the seed and the epoch alone.

Shapes: B batch, T tokens. Arrays are int32.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from msllm.data.encoding import IGNORED
from msllm.data.order import random_order
from msllm.errors import UserError

Batch = dict[str, np.ndarray]
_EMPTY: Mapping[str, list[int]] = {"input_ids": [], "labels": []}
# Batches of similar lengths are cut from stretches of this many batches, so that the order stays close to random.
_STRETCH = 50


def example_length(example: Mapping) -> int:
    """The tokens of an example."""
    return len(example["input_ids"])


def lengths_of(dataset: Sequence[Mapping], length: Callable[[Mapping], int] = example_length) -> Sequence[int]:
    """Returns what each example counts: ``dataset.lengths`` where it has that attribute, else ``length`` of each."""
    known = getattr(dataset, "lengths", None)
    return [length(example) for example in dataset] if known is None else known


def collate(
    examples: Sequence[Mapping[str, Sequence[int]]],
    pad_token_id: int | None = None,
    pad_to_multiple_of: int | None = None,
    max_length: int | None = None,
) -> Batch:
    """Pads examples on the right into one batch.

    What is padding follows from the examples' lengths, never from the ids: pad may be the same id as eos.

    Args:
        examples: each with ``input_ids`` and ``labels``, packed ones also ``position_ids`` and ``row_start``.
        pad_token_id: None pads with 0.
        pad_to_multiple_of: rounds T up; a graph compiled for one shape gets it with its fixed T here.
        max_length: longer examples lose their end, and T is no more than this.

    Returns:
        input_ids, attention_mask (1 = real token), labels (-100 at padding), and position_ids and row_start when the
        examples have them; each (B, T).
    """
    length = max((len(example["input_ids"]) for example in examples), default=0)
    length = max(length, 1)  # a share of empty examples still has a shape
    if pad_to_multiple_of:
        length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    if max_length is not None:
        length = min(length, max_length)
    shape = (len(examples), length)
    batch = {
        "input_ids": np.full(shape, 0 if pad_token_id is None else pad_token_id, np.int32),
        "attention_mask": np.zeros(shape, np.int32),
        "labels": np.full(shape, IGNORED, np.int32),
    }
    if any("row_start" in example for example in examples):
        batch["position_ids"] = np.zeros(shape, np.int32)
        # A padded query sees only itself, which the attention mask hides: it belongs to no document.
        batch["row_start"] = np.tile(np.arange(length, dtype=np.int32), (len(examples), 1))
    for row, example in enumerate(examples):
        count = min(len(example["input_ids"]), length)
        batch["attention_mask"][row, :count] = 1
        for key in batch.keys() & example.keys():
            batch[key][row, :count] = example[key][:count]
    return batch


def pack(examples: Sequence[Mapping[str, Sequence[int]]], max_length: int) -> list[dict[str, list[int]]]:
    """Puts several examples in one row of at most ``max_length`` tokens, so that little is padding.

    Best-fit decreasing (Johnson 1973): the longest first, each into the fullest row that still has room. Examples in
    a row do not see each other: positions restart, ``row_start`` is the index of the example's first token, and that
    token's label is -100, as the token before it belongs to another.

    Args:
        examples: each no longer than ``max_length``.
        max_length: T.

    Returns:
        Examples with input_ids, labels, position_ids and row_start; the same for the same input.

    Raises:
        UserError: an example is longer than ``max_length``.
    """
    lengths = [len(example["input_ids"]) for example in examples]
    if max(lengths, default=0) > max_length:
        raise UserError(
            f"an example has {max(lengths)} tokens and cannot be packed in rows of {max_length}; "
            f"encode the records with max_length {max_length}"
        )
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for i in sorted(range(len(examples)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[i], 0))
        left, row = room.pop(place) if place < len(room) else (max_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return [_concatenate([examples[i] for i in row]) for row in rows]


def _concatenate(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "row_start": []}
    for example in examples:
        start, count = len(packed["input_ids"]), len(example["input_ids"])
        packed["input_ids"] += example["input_ids"]
        packed["labels"] += [IGNORED, *example["labels"][1:]] if count else []
        packed["position_ids"] += range(count)
        packed["row_start"] += [start] * count
    return packed


def batch_indices(
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    group_by_length: bool = False,
    max_tokens: int = 0,
) -> list[np.ndarray]:
    """Returns the examples of each batch of an epoch, as index arrays.

    A pure function of its arguments: training resumes at batch k by taking the k-th, without saved state.

    Args:
        lengths: the examples' lengths in tokens; only their number matters without ``group_by_length``.
        batch_size: examples in a batch, over all workers.
        seed, epoch: fix the order.
        shuffle: False keeps the examples' order.
        drop_last: leave out a last batch that is not full.
        group_by_length: put examples of similar length in a batch, for less padding.
        max_tokens: above 0, batches are as large as they can be with at most so many tokens, padding included
            (Vaswani et al. 2017, section 5.1), of examples of one length or the next; ``batch_size`` has no effect.
            Every epoch has as many batches.

    Raises:
        UserError: ``batch_size`` below 1, or larger than the data with ``drop_last``; an example longer than
            ``max_tokens``.
    """
    count = len(lengths)
    if max_tokens:
        return _batches_by_tokens(np.asarray(lengths), max_tokens, seed, epoch, shuffle)
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} does not do; give 1 or more")
    if count < (batch_size if drop_last else 1):
        raise UserError(f"{count} examples do not fill a batch of {batch_size}; give more data or a smaller batch_size")
    order = random_order(count, seed, epoch) if shuffle else np.arange(count)
    if group_by_length:
        stretch = _STRETCH * batch_size
        longest_first = -np.asarray(lengths)
        parts = [order[i : i + stretch] for i in range(0, count, stretch)]
        order = np.concatenate([part[longest_first[part].argsort(kind="stable")] for part in parts])
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if drop_last and len(batches[-1]) < batch_size:
        batches.pop()
    if group_by_length and shuffle:
        batches = [batches[i] for i in random_order(len(batches), seed, epoch, 1)]
    return batches


def _batches_by_tokens(lengths: np.ndarray, max_tokens: int, seed: int, epoch: int, shuffle: bool) -> list[np.ndarray]:
    """See batch_indices. Sorted by length alone, the cuts are those of every epoch; who stands where is drawn."""
    longest = lengths.max(initial=0)
    if longest > max_tokens:
        raise UserError(f"an example has {longest} tokens, a batch at most {max_tokens}; allow more tokens in a batch")
    order = random_order(len(lengths), seed, epoch) if shuffle else np.arange(len(lengths))
    order = order[lengths[order].argsort(kind="stable")]
    cuts, start = [], 0
    for i, length in enumerate(lengths[order]):  # ascending: the new one is the longest so far
        if (i + 1 - start) * length > max_tokens:
            cuts.append(i)
            start = i
    batches = np.split(order, cuts)
    return [batches[i] for i in random_order(len(batches), seed, epoch, 1)] if shuffle else batches


def batches(
    dataset: Sequence[Mapping[str, Sequence[int]]],
    batch_size: int,
    *,
    pad_token_id: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    group_by_length: bool = False,
    max_tokens: int = 0,
    rank: int = 0,
    world: int = 1,
    pad_to_multiple_of: int | None = None,
    collate: Callable[..., Batch] = collate,
    length: Callable[[Mapping], int] = example_length,
) -> Iterator[Batch]:
    """Yields an epoch's batches, as collate makes them, in the order that batch_indices gives.

    Args:
        dataset: encoded examples; where it has ``lengths``, examples are made only for the batches they are in.
        batch_size: examples in a batch over all workers, so that the order does not depend on their number.
        start: the batch to begin with, when resuming.
        rank, world: this worker takes the rank-th of ``world`` equal slices of each batch; in a last batch that is
            not full, workers may get rows without a real token.
        pad_token_id, pad_to_multiple_of: see collate.
        seed, epoch, shuffle, drop_last, group_by_length, max_tokens: see batch_indices.
        collate: what makes a batch of examples, where it is not the padding of token ids and labels alone.
        length: what an example counts for ``group_by_length`` and ``max_tokens``; see lengths_of.

    Raises:
        UserError: ``world`` does not divide ``batch_size``; and as batch_indices.
    """
    if batch_size % world or not 0 <= rank < world:
        raise UserError(
            f"batch_size {batch_size} cannot be split for worker {rank} of {world}; give a multiple of {world}"
        )
    plan = batch_indices(
        lengths_of(dataset, length),
        batch_size,
        seed=seed,
        epoch=epoch,
        shuffle=shuffle,
        drop_last=drop_last,
        group_by_length=group_by_length,
        max_tokens=max_tokens,
    )
    for indices in plan[start:]:
        share = -(-len(indices) // world)
        mine = [dataset[i] for i in indices[rank * share : (rank + 1) * share]]
        yield collate(mine + [_EMPTY] * (share - len(mine)), pad_token_id, pad_to_multiple_of)


def micro_batches(batch: Mapping[str, np.ndarray], count: int) -> list[Mapping[str, np.ndarray]]:
    """Cuts a batch of B examples of ``collate`` into ``count`` of as many rows each.

    Where ``count`` does not divide B, as in the last batch of an epoch, rows without a real token or a target follow.
    """
    if count == 1:
        return [batch]
    lacking = -len(batch["input_ids"]) % count
    nothing = {"labels": IGNORED, "attention_mask": 0}
    whole = {}
    for key, rows in batch.items():
        more = np.repeat(rows[:1], lacking, axis=0)
        whole[key] = np.concatenate([rows, np.full_like(more, nothing[key]) if key in nothing else more])
    return [{key: rows.reshape(count, -1, *rows.shape[1:])[i] for key, rows in whole.items()} for i in range(count)]


def tokens_and_places(batch: Batch) -> tuple[int, int]:
    """Returns the real tokens of a batch, which the model reads and, as an encoder-decoder, writes, and all places."""
    tokens, places = int(batch["attention_mask"].sum()), batch["attention_mask"].size
    if "decoder_input_ids" in batch:
        tokens, places = tokens + int((batch["labels"] != IGNORED).sum()), places + batch["labels"].size
    return tokens, places
