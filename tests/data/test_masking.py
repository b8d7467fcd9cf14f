"""What masking chooses and draws, and the batches of masked examples."""

import numpy as np

from msllm.data import Masking, collate_pretraining, mask_tokens


def test_80_10_10_of_15_percent():
    special = np.zeros(1000, bool)
    special[:5] = True
    masking, rng = Masking(4, special), np.random.default_rng(0)
    ids = np.concatenate([[2], np.arange(5, 405), [3], np.arange(405, 805), [3]]).astype(np.int32)
    before, counts, drawn = ids.copy(), np.zeros(3), []
    chosen_at = np.zeros(len(ids))
    for _ in range(500):
        masked, labels = mask_tokens(ids, masking, rng)
        chosen = labels != -100
        assert chosen.sum() == 120 and not chosen[[0, 401, -1]].any()
        assert (labels[chosen] == ids[chosen]).all() and (masked[~chosen] == ids[~chosen]).all()
        swapped = chosen & (masked != ids) & (masked != 4)
        counts += [(masked[chosen] == 4).sum(), swapped.sum(), (masked[chosen] == ids[chosen]).sum()]
        drawn.append(masked[swapped])
        chosen_at += chosen
    assert (ids == before).all()
    shares, total = counts / counts.sum(), counts.sum()
    for share, expected in zip(shares, (0.8, 0.1 * 994 / 995, 0.1 + 0.1 / 995), strict=True):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / total) ** 0.5
    drawn = np.concatenate(drawn)
    assert drawn.min() == 5 and drawn.max() == 999
    assert np.bincount(drawn // 100, minlength=10)[1:].std() < 4 * (len(drawn) / 10) ** 0.5
    usual = chosen_at[~special[ids]]
    assert abs(usual - 75).max() < 5 * (500 * 0.15 * 0.85) ** 0.5


def test_the_number_of_predictions():
    special = np.zeros(100, bool)
    special[:5] = True
    rng = np.random.default_rng(0)

    def count(tokens, **options):
        return int((mask_tokens(np.arange(5, 5 + tokens), Masking(4, special, **options), rng)[1] != -100).sum())

    assert [count(n) for n in (1, 3, 10, 20, 90)] == [1, 1, 2, 3, 14]
    assert [count(90, max_predictions=7), count(90, share=0.5)] == [7, 45]
    assert (mask_tokens(np.array([2, 3, 3]), Masking(4, special), rng)[1] == -100).all()


def test_whole_words_that_exceed_the_number_are_passed_over_or_one_is_taken():
    special = np.zeros(100, bool)
    special[:5] = True
    rng = np.random.default_rng(0)

    def chosen(sizes, **options):
        """The numbers of the words that were chosen; fails where a part of one was."""
        starts = np.concatenate([[True], *([True] + [False] * (size - 1) for size in sizes), [True]])
        ids = np.concatenate([[2], np.arange(5, 5 + sum(sizes)), [3]])
        kept = mask_tokens(ids, Masking(4, special, **options), rng, starts)[1][1:-1] != -100
        words = np.split(kept, np.cumsum(sizes)[:-1])
        assert all(word.all() or not word.any() for word in words)
        return tuple(i for i, word in enumerate(words) if word.any())

    # 2 of 10 tokens: the word of 6 never fits.
    assert {chosen([6, 2, 2]) for _ in range(100)} == {(1,), (2,)}
    # 2 of 12 tokens or 1, and no word is that short: one of them, each as often.
    for options in ({}, {"max_predictions": 1}):
        found = [chosen([3, 4, 5], **options) for _ in range(600)]
        assert {len(words) for words in found} == {1}
        assert all(abs(sum(words == (i,) for words in found) - 200) < 60 for i in range(3))
    assert chosen([5]) == (0,)
    assert (mask_tokens(np.array([2, 3]), Masking(4, special), rng, np.ones(2, bool))[1] == -100).all()


def test_a_batch_is_padded_and_says_what_stands_for_nothing():
    examples = [
        {
            "input_ids": [2, 7, 3, 8, 3],
            "token_type_ids": [0, 0, 0, 1, 1],
            "labels": [-100, 9, -100, -100, -100],
            "next_sentence_label": 1,
        },
        {"input_ids": [2, 3, 8, 3], "token_type_ids": [0, 0, 1, 1], "labels": [-100] * 4, "next_sentence_label": 0},
        {"input_ids": [], "labels": []},
    ]
    batch = collate_pretraining(examples, pad_token_id=6, pad_to_multiple_of=3)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[2, 7, 3, 8, 3, 6], [2, 3, 8, 3, 6, 6], [6] * 6],
        "attention_mask": [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0] * 6],
        "token_type_ids": [[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0] * 6],
        "labels": [[-100, 9, -100, -100, -100, -100], [-100] * 6, [-100] * 6],
        "next_sentence_label": [1, 0, -100],
    }
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert collate_pretraining(examples[2:])["input_ids"].tolist() == [[0]]
