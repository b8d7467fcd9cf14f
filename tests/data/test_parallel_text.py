import gzip

import numpy as np
import pytest

from msllm.data import batch_indices, batches
from msllm.data.parallel_text import collate_pairs, encode_pairs, pair_length, read_lines, read_parallel
from msllm.errors import UserError
from msllm.tokenization import train_tokenizer


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8", newline="")
    return path


def test_two_files_plain_and_gz(tmp_path):
    # U+2028 is no end of a line here: it would shift one side against the other.
    de, en = write(tmp_path / "a.de", "eins\u2028eins\r\nzwei\n"), write(tmp_path / "a.en.gz", "one\ntwo")
    text = read_parallel(de, en)
    assert text.source == ["eins\u2028eins", "zwei"] and text.target == ["one", "two"] and str(text) == "2 pairs"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "eins\tone\nzwei\ttwo\n"),
        ("a.jsonl", '{"translation": {"de": "eins", "en": "one"}}\n{"source": "zwei", "target": "two"}\n'),
        ("a.jsonl", '{"source": "eins", "translation": "one"}\n{"de": "zwei", "en": "two"}\n'),
        ("a.jsonl.gz", '{"de": "eins", "en": "one"}\n{"target": "two", "source": "zwei"}\n'),
    ],
)
def test_one_file(tmp_path, name, content):
    text = read_parallel(write(tmp_path / name, content))
    assert (text.source, text.target) == (["eins", "zwei"], ["one", "two"])


def test_empty_sides_are_dropped_and_counted(tmp_path):
    text = read_parallel(write(tmp_path / "a", "eins\n\nzwei\n \n"), write(tmp_path / "b", "one\nx\ntwo\ny\n"))
    assert text.source == ["eins", "zwei"] and text.target == ["one", "two"]
    assert str(text) == "2 pairs; 2 dropped for an empty side, first line 2"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "1\n2\n3\n", "b": "1\n2\n"}, ["a has 3 lines", "b 2"]),
        ({"a": "\n", "b": "1\n"}, ["no pair with text"]),
        ({"a.tsv": "one two\n"}, ["a.tsv, line 1", "1 columns"]),
        ({"a.tsv": "one\ttwo\nCC\tBY\t2\n"}, ["a.tsv, line 2", "3 columns"]),
        ({"a.jsonl": '{"x": "1", "y": "2", "z": "3"}\n'}, ["line 1", "x, y, z", "two texts"]),
        ({"a.jsonl": "{\n"}, ["line 1", "not JSON"]),
        ({"a.txt": "x\n"}, ["a.txt alone is no parallel corpus"]),
    ],
)
def test_mistakes_are_named(tmp_path, files, words):
    paths = [write(tmp_path / name, content) for name, content in files.items()]
    with pytest.raises(UserError) as e:
        read_parallel(*paths)
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:20] + b"\xff\xff\xff" + b[23:]])
def test_damaged_gz_is_named(tmp_path, damage):
    (tmp_path / "a.gz").write_bytes(damage(gzip.compress(bytes(range(256)) * 20)))
    with pytest.raises(UserError, match=r"a\.gz"):
        read_lines(tmp_path / "a.gz")


def test_long_pairs_are_left_out(tmp_path):
    text = read_parallel(write(tmp_path / "a.tsv", "a b\tc d\na b c d e f g\tx\n"))
    tokenizer = train_tokenizer(text.source + text.target, kind="char")
    examples, longer = encode_pairs(text, tokenizer, 8)
    assert longer == 1 and [tokenizer.decode(e["labels"]) for e in examples] == ["c d"]
    assert examples[0]["input_ids"][-1] == examples[0]["labels"][-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match="more than 2 tokens"):
        encode_pairs(text, tokenizer, 2)


def test_the_decoder_sees_the_target_moved_by_one():
    batch = collate_pairs(
        [
            {"input_ids": [5, 6, 3], "labels": [7, 3]},
            {"input_ids": [8, 3], "labels": [9, 10, 11, 3]},
            {"input_ids": [], "labels": []},
        ],
        pad_token_id=0,
        start_id=2,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 3], [8, 3, 0], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert batch["decoder_input_ids"].tolist() == [[2, 7, 0, 0], [2, 9, 10, 11], [0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[7, 3, -100, -100], [9, 10, 11, 3], [-100] * 4]
    assert all(value.dtype == np.int32 for value in batch.values())


def lengths(rng):
    return rng.integers(1, 50, 1000).tolist()


def test_batches_by_tokens_are_full_whole_and_as_many_each_epoch():
    sizes = lengths(np.random.default_rng(0))
    plans = [batch_indices(sizes, 1, epoch=epoch, max_tokens=300) for epoch in range(3)]
    assert len({len(plan) for plan in plans}) == 1
    for plan in plans:
        assert sorted(np.concatenate(plan).tolist()) == list(range(1000))
        filled = [max(sizes[i] for i in batch) * len(batch) for batch in plan]
        assert max(filled) <= 300 and np.mean(filled) > 250
        shortest, longest = (np.array([f(sizes[i] for i in batch) for batch in plan]) for f in (min, max))
        assert (longest - shortest).mean() < 2
    assert {frozenset(b.tolist()) for b in plans[0]} != {frozenset(b.tolist()) for b in plans[1]}
    assert [len(b) for b in plans[0]] != sorted((len(b) for b in plans[0]), reverse=True)


def test_an_example_beyond_the_token_budget_is_refused():
    with pytest.raises(UserError, match="40 tokens, a batch at most 30"):
        batch_indices([3, 40], 1, max_tokens=30)


def test_batches_take_a_length_and_a_collate():
    pairs = [{"input_ids": [4] * n, "labels": [5] * (n % 7 + 1)} for n in range(1, 30)]
    got = list(batches(pairs, 1, max_tokens=60, collate=collate_pairs, length=pair_length, pad_token_id=0))
    assert all(b["labels"].shape[0] * max(b["labels"].shape[1], b["input_ids"].shape[1]) <= 60 for b in got)
    assert sum((b["labels"] == 5).sum() for b in got) == sum(len(p["labels"]) for p in pairs)


def test_multi30k(data_folder):
    folder = data_folder / "multi30k"
    text = read_parallel(folder / "train.de.gz", folder / "train.en.gz")
    assert len(text) == 29000 and text.dropped == 0
    assert text.source[0].startswith("Zwei junge") and text.target[0].startswith("Two young")
