import json
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from msllm.data import batches, build_pretraining, collate_pretraining, mindrecord, read_shards, write_shards
from msllm.errors import UserError
from msllm.tokenization import train_tokenizer

ARRAYS = ("ids", "ends", "first_lengths", "places", "targets", "target_ends", "next_sentence_labels")
SENTENCES = [f"the {a} {b} {c}" for a in ("old", "new") for b in ("table", "winter", "word") for c in ("is", "was")]
DOCUMENTS = [SENTENCES[i:] + SENTENCES[:i] for i in range(12)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, 60, "wordpiece")


@pytest.fixture(scope="module")
def examples(tokenizer):
    return build_pretraining(DOCUMENTS, tokenizer, 24, duplicate_factor=3, tokenizer_name="words")


@pytest.fixture(scope="module")
def written(examples, tmp_path_factory):
    """Three shards; tests must not write to them."""
    folder = tmp_path_factory.mktemp("written") / "shards"
    write_shards(examples, folder, 3)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    """Three shards to spoil."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def assert_equal(one, other):
    for array in ARRAYS:
        left, right = getattr(one, array), getattr(other, array)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert one.settings == other.settings


def shard(number, count=3):
    return f"pretraining-{number:05}-of-{count:05}.mindrecord"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_examples_come_back_in_order_from_any_number_of_shards(count, examples, tokenizer, tmp_path):
    write_shards(examples, tmp_path / "shards", count)
    again = read_shards(tmp_path / "shards", tokenizer)
    assert_equal(again, examples)
    assert list(again) == list(examples)
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert names == {"manifest.json"} | {shard(n + 1, count) + end for n in range(count) for end in ("", ".db")}
    sizes = [entry["examples"] for entry in json.loads((tmp_path / "shards/manifest.json").read_text())["shards"]]
    assert sum(sizes) == len(examples) and max(sizes) - min(sizes) <= 1


def test_an_example_without_a_prediction_comes_back_too(tokenizer, tmp_path):
    # "zzz" is [UNK], which is never predicted.
    examples = build_pretraining([["zzz"], ["zzz zzz"], ["the table"]], tokenizer, 16, duplicate_factor=4)
    assert not all(np.diff(examples.target_ends, prepend=0))
    write_shards(examples, tmp_path / "shards", 2)
    assert_equal(read_shards(tmp_path / "shards"), examples)


def test_the_manifest_tells_how_the_examples_were_made(written, examples):
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["examples"] == len(examples)
    assert manifest["settings"] == examples.settings
    assert {
        "max_length": 24,
        "duplicate_factor": 3,
        "seed": 0,
        "tokenizer": "words",
    }.items() <= examples.settings.items()


@pytest.mark.parametrize("world", [2, 3])
def test_workers_train_on_disjoint_and_complete_parts(world, written, examples):
    def rows(rank, world):
        """What a worker trains on, batch by batch; it reads the folder by itself."""
        options = {"seed": 7, "epoch": 1, "rank": rank, "world": world, "collate": collate_pretraining}
        return [
            [
                (tuple(ids[:count]), tuple(labels[:count]), label)
                for ids, labels, label, count in zip(
                    batch["input_ids"].tolist(),
                    batch["labels"].tolist(),
                    batch["next_sentence_label"].tolist(),
                    batch["attention_mask"].sum(1).tolist(),
                    strict=True,
                )
                if count
            ]
            for batch in batches(read_shards(written), 6, **options)
        ]

    alone = rows(0, 1)
    shares = [rows(rank, world) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    everything = sorted((tuple(e["input_ids"]), tuple(e["labels"]), e["next_sentence_label"]) for e in examples)
    assert sorted(chain(*chain(*shares))) == everything
    assert len(set(everything)) == len(everything)  # no example stands for another


@pytest.mark.parametrize("ending", ["", ".db"])
def test_a_missing_file_is_named(ending, copy):
    (copy / (shard(2) + ending)).unlink()
    with pytest.raises(UserError, match=rf"lacks {shard(2)}{ending} of its 3 shards"):
        read_shards(copy)


def test_a_folder_without_a_manifest_is_no_shards(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"has no manifest\.json; give a folder that write_shards wrote"):
            read_shards(folder)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="is of format 'other', expected 'msllm"):
        read_shards(tmp_path)


def test_a_file_of_another_sharding_is_named(copy, examples, tmp_path):
    write_shards(examples, tmp_path / "two", 2)
    for ending in ("", ".db"):
        shutil.copy(tmp_path / "two" / (shard(1, 2) + ending), copy)
    with pytest.raises(UserError, match=f"holds {shard(1, 2)}, which manifest.json with its 3 shards does not list"):
        read_shards(copy)


def test_a_file_of_another_run_is_named(copy, tokenizer, tmp_path):
    write_shards(build_pretraining(DOCUMENTS, tokenizer, 24, duplicate_factor=3, seed=1), tmp_path / "other", 3)
    for ending in ("", ".db"):
        shutil.copy(tmp_path / "other" / (shard(2) + ending), copy)
    with pytest.raises(UserError, match=f"{shard(2)} is not the file that manifest.json describes"):
        read_shards(copy)


def test_a_damaged_file_is_named(copy):
    data = bytearray((copy / shard(3)).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / shard(3)).write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard(3)} is not the file .*it is damaged"):
        read_shards(copy)


def test_a_manifest_that_counts_otherwise_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["examples"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    count = manifest["examples"]
    with pytest.raises(UserError, match=f"promises {count} examples, and its shards have {count - 1}"):
        read_shards(copy)
    manifest["shards"][0]["examples"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    size = manifest["shards"][0]["examples"]
    with pytest.raises(
        UserError, match=rf"holds {size - 1} examples \(0 to {size - 2}\), and manifest.json expects {size}"
    ):
        read_shards(copy)


def test_another_vocabulary_is_refused(written, tokenizer):
    other = train_tokenizer([*SENTENCES, "xylophone"], 60, "wordpiece")
    with pytest.raises(UserError, match=r"the vocabulary \w{12} of words \(52 tokens\), and mine has \w{12} \(60 "):
        read_shards(written, other, "mine")


def test_impossible_numbers_of_shards_are_user_errors(examples, tmp_path):
    for count in (0, len(examples) + 1):
        with pytest.raises(UserError, match=f"{len(examples)} examples do not fill {count} shards"):
            write_shards(examples, tmp_path / "shards", count)


def test_another_folder_is_not_replaced(examples, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is there and holds no manifest\.json; give a new folder, or empty it"):
        write_shards(examples, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_failure_half_way_leaves_the_old_shards(copy, examples, tokenizer, monkeypatch):
    write, calls = mindrecord._write_shard, []

    def fail_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(mindrecord, "_write_shard", fail_at_the_second)
    with pytest.raises(UserError, match="No space left on device; what was saved before is untouched"):
        write_shards(build_pretraining(DOCUMENTS, tokenizer, 24), copy, 2)
    assert_equal(read_shards(copy), examples)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    monkeypatch.undo()
    fewer = build_pretraining(DOCUMENTS, tokenizer, 24)
    write_shards(fewer, copy, 2)
    assert_equal(read_shards(copy), fewer)


def test_mindrecords_own_failures_are_one_line(examples, tmp_path, monkeypatch):
    class FileWriter:
        def __init__(self, *args, **options):
            raise RuntimeError("Exception thrown.\n\n-----\n- Message:\n-----\n[ERROR] No free disk. \n\nC++ stack")

    monkeypatch.setattr(mindrecord, "_mindrecord", lambda: type("Module", (), {"FileWriter": FileWriter}))
    with pytest.raises(UserError, match=r"write pretraining-00001-of-00001\.mindrecord: No free disk; free space"):
        write_shards(examples, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_nothing_is_printed(written, tmp_path):
    code = (
        f"from msllm.data import read_shards, write_shards; "
        f"write_shards(read_shards({str(written)!r}), {str(tmp_path / 'again')!r}, 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
