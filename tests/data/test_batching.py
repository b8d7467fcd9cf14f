import io

import numpy as np
import pytest
from rich.console import Console

from msllm.data import Record, batch_indices, batches, collate, pack, preview
from msllm.data.batching import IGNORED, micro_batches
from msllm.errors import UserError


def example(*ids):
    return {"input_ids": list(ids), "labels": list(ids)}


def test_a_batch_is_padded_on_the_right():
    batch = collate([example(1, 2, 3), {"input_ids": [4], "labels": [-100]}], pad_token_id=9, pad_to_multiple_of=4)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[1, 2, 3, 9], [4, 9, 9, 9]],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0]],
        "labels": [[1, 2, 3, -100], [-100, -100, -100, -100]],
    }
    assert all(value.dtype == np.int32 for value in batch.values())


def test_without_a_pad_token_zeros_fill_and_the_mask_tells():
    batch = collate([example(0, 0), example(0)])
    assert batch["input_ids"].tolist() == [[0, 0], [0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[0, 0], [0, -100]]


def test_max_length_bounds_a_batch():
    batch = collate([example(1, 2, 3, 4, 5)], max_length=3, pad_to_multiple_of=8)
    assert batch["input_ids"].tolist() == [[1, 2, 3]] and batch["labels"].tolist() == [[1, 2, 3]]


def test_packing_keeps_documents_apart():
    packed = pack([example(1, 2), example(3, 4, 5), example(6)], 6)
    assert packed == [
        {
            "input_ids": [3, 4, 5, 1, 2, 6],
            "labels": [-100, 4, 5, -100, 2, -100],
            "position_ids": [0, 1, 2, 0, 1, 0],
            "row_start": [0, 0, 0, 3, 3, 5],
        }
    ]
    batch = collate(packed, pad_to_multiple_of=8)
    assert batch["row_start"].tolist() == [[0, 0, 0, 3, 3, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]


def test_packing_is_best_fit_decreasing():
    rows = pack([example(*range(n)) for n in (3, 5, 6, 2, 4)], 10)
    starts = [[i for i, position in enumerate(row["position_ids"]) if position == 0] for row in rows]
    assert starts == [[0, 6], [0, 5, 8]]
    assert [len(row["input_ids"]) for row in rows] == [10, 10]


def test_packing_loses_no_token_and_leaves_what_best_fit_leaves():
    rng = np.random.default_rng(0)
    examples = [example(*rng.integers(1, 99, rng.integers(1, 128))) for _ in range(500)]
    rows = pack(examples, 128)
    assert rows == pack(examples, 128)
    assert sum(len(row["input_ids"]) for row in rows) == sum(len(e["input_ids"]) for e in examples)
    assert max(len(row["input_ids"]) for row in rows) <= 128
    free = []  # best fit decreasing, the plain way
    for length in sorted((len(e["input_ids"]) for e in examples), reverse=True):
        fitting = [room for room in free if room >= length]
        if fitting:
            free.remove(min(fitting))
        free.append((min(fitting) if fitting else 128) - length)
    assert sorted(128 - len(row["input_ids"]) for row in rows) == sorted(free)
    assert sum(free) / (128 * len(rows)) < 0.05


def test_packing_refuses_what_cannot_fit():
    with pytest.raises(UserError, match="an example has 3 tokens and cannot be packed in rows of 2"):
        pack([example(1, 2, 3)], 2)


def test_every_example_comes_once_an_epoch_in_an_order_of_seed_and_epoch():
    def order(**options):
        return np.concatenate(batch_indices([1] * 50, 8, **options)).tolist()

    assert sorted(order(seed=1)) == list(range(50)) and order(seed=1) != list(range(50))
    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=s, epoch=e)) for s in (0, 1) for e in (0, 1)}) == 4
    assert order(shuffle=False) == list(range(50))
    assert [len(b) for b in batch_indices([1] * 50, 8)] == [8] * 6 + [2]
    assert [len(b) for b in batch_indices([1] * 50, 8, drop_last=True)] == [8] * 6


def test_the_order_is_this_one_on_every_machine():
    assert np.concatenate(batch_indices([1] * 8, 4, seed=1, epoch=2)).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]


def test_training_resumes_at_any_batch_without_state():
    dataset = [example(*range(1, n % 7 + 2)) for n in range(40)]
    for options in ({}, {"group_by_length": True}, {"drop_last": True}):
        whole = list(batches(dataset, 6, seed=5, epoch=3, **options))
        rest = list(batches(dataset, 6, seed=5, epoch=3, start=4, **options))
        assert len(whole) == len(rest) + 4
        for left, right in zip(whole[4:], rest, strict=True):
            assert left.keys() == right.keys()
            assert all((left[key] == right[key]).all() for key in left)


def test_grouping_by_length_needs_less_padding_and_stays_shuffled():
    lengths = [n * 37 % 100 + 1 for n in range(1000)]

    def padding(plan):
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in plan)

    grouped = batch_indices(lengths, 8, seed=1, group_by_length=True)
    assert sorted(np.concatenate(grouped)) == list(range(1000))
    assert padding(grouped) < 0.2 * padding(batch_indices(lengths, 8, seed=1))
    firsts = [lengths[b[0]] for b in grouped]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)
    again = batch_indices(lengths, 8, seed=1, group_by_length=True)
    assert all((a == b).all() for a, b in zip(grouped, again, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_the_workers_rows_together_are_the_single_workers_batch(world):
    dataset = [example(n + 1) for n in range(22)]
    alone = list(batches(dataset, 8, seed=2))
    shares = [list(batches(dataset, 8, seed=2, rank=rank, world=world)) for rank in range(world)]
    assert {len(share) for share in shares} == {len(alone)}
    for step, batch in enumerate(alone):
        rows = [share[step] for share in shares]
        assert len({part["input_ids"].shape for part in rows}) == 1
        ids = np.concatenate([part["input_ids"][part["attention_mask"][:, 0] == 1] for part in rows])
        assert ids.tolist() == batch["input_ids"].tolist()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 3, "world": 2}, "batch_size 3 cannot be split for worker 0 of 2; give a multiple of 2"),
        ({"batch_size": 4, "world": 2, "rank": 2}, "worker 2 of 2"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 9, "drop_last": True}, "8 examples do not fill a batch of 9"),
    ],
)
def test_impossible_batches_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        next(batches([example(1)] * 8, **options))


def test_no_data_is_a_user_error():
    with pytest.raises(UserError, match="0 examples"):
        batch_indices([], 4)


def test_preview_shows_the_loss_mask_in_plain_text_and_in_colour(letters):
    record = Record(
        messages=({"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}),
        source="a.json, record 1",
    )
    out = io.StringIO()
    preview(record, letters, 99, Console(file=out))
    assert out.getvalue() == (
        "a.json, record 1: 27 tokens, 5 trained\n[  User:\nHi?\n\nAssistant:\n]\n[+ Yes.</s>]\n\n"
    )
    out = io.StringIO()
    preview(record, letters, 99, Console(file=out, force_terminal=True, color_system="standard"))
    assert "\x1b[32mYes.</s>\x1b[0m" in out.getvalue() and "\x1b[2mHi?\x1b[0m" in out.getvalue()


def test_preview_says_when_nothing_is_trained(letters):
    out = io.StringIO()
    preview(Record(prompt="a", completion="", source="r"), letters, 9, Console(file=out))
    assert out.getvalue() == "r: nothing to train on\n"


def test_micro_batches_are_the_rows_in_order_filled_with_rows_that_count_nothing():
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(1, 9, (5, 3)).astype(np.int32) for name in ("input_ids", "labels", "attention_mask")}
    pieces = micro_batches(batch, 4)
    assert [piece["input_ids"].shape for piece in pieces] == [(2, 3)] * 4
    for name, rows in batch.items():
        assert np.array_equal(np.concatenate([piece[name] for piece in pieces])[:5], rows)
    filled = {name: np.concatenate([piece[name] for piece in pieces])[5:] for name in batch}
    assert (filled["labels"] == IGNORED).all() and not filled["attention_mask"].any()
    assert micro_batches(batch, 1) == [batch]
    assert [piece["labels"].tolist() for piece in micro_batches(batch, 5)] == [
        [row.tolist()] for row in batch["labels"]
    ]
