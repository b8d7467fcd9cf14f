"""Token files, what is cut from them, and msllm data tokenize."""

import json
import time

import numpy as np
import pytest
import tokenizers

from msllm.commands.data import data as data_command
from msllm.data import batches, token_file
from msllm.data.token_file import RandomCrops, TokenFile, Windows, token_stream, write_tokens
from msllm.errors import UserError
from msllm.tokenization import load_tokenizer, train_tokenizer
from msllm.training.blocks import block_length, collate_blocks

TEXT = (
    "The red fox runs.\nA blue bird sings, and 12 old men's dogs  talk.\n\n\tRain falls on <s> the hill …\n"
    "下雨了。\r\nEnd "
)


def flat(lists):
    return [i for part in lists for i in part]


@pytest.fixture
def written(letters, tmp_path):
    """A file of the ids 4, 5, ... 40, 4, 5, ..., a thousand in all."""
    path = tmp_path / "train.bin"
    ids = np.arange(1000) % 37 + 4
    assert write_tokens(path, np.split(ids, [1, 1, 500]), letters, "letters") == 1000
    return path


def spoil(path, position, value):
    """Overwrites an id as a faulty writer would."""
    with path.open("r+b") as stream:
        stream.seek(4096 + 2 * position)
        stream.write(int(value).to_bytes(2, "little"))


def test_ids_come_back_mapped(written, letters):
    tokens = TokenFile.open(written, letters)
    assert tokens.ids.dtype == np.uint16 and len(tokens) == 1000 and tokens.largest == 40
    assert tokens.ids.tolist() == (np.arange(1000) % 37 + 4).tolist()
    assert isinstance(tokens.ids.base, np.memmap) and not tokens.ids.flags.writeable
    # The layout is for other readers too: a header of one page, then plain little-endian ids.
    assert np.fromfile(written, "<u2", offset=4096).tolist() == tokens.ids.tolist()
    assert json.loads(written.read_bytes()[:4096].split(b"\n")[1])["count"] == 1000


def test_large_vocabularies_take_four_bytes(tmp_path, letters, monkeypatch):
    monkeypatch.setattr(type(letters), "__len__", lambda self: 65_537)
    write_tokens(tmp_path / "wide.bin", [[65_536, 0], [7]], letters)
    tokens = TokenFile.open(tmp_path / "wide.bin")
    assert tokens.ids.dtype == np.uint32 and tokens.ids.tolist() == [65_536, 0, 7]
    monkeypatch.setattr(type(letters), "__len__", lambda self: 65_536)
    write_tokens(tmp_path / "narrow.bin", [[65_535]], letters)
    assert TokenFile.open(tmp_path / "narrow.bin").ids.dtype == np.uint16


def test_a_file_that_is_none_is_named(tmp_path, written, letters):
    def refused(path, match):
        with pytest.raises(UserError, match=match) as e:
            TokenFile.open(path, letters)
        assert str(path) in str(e.value)

    refused(tmp_path / "no.bin", "No such file")
    other = tmp_path / "other.bin"
    other.write_bytes(np.arange(5000, dtype=np.uint16).tobytes())
    refused(other, "is no file of token ids: it begins with")
    content = written.read_bytes()
    other.write_bytes(content[:-1])
    refused(other, r"has 6,095 bytes, .* asks for 6,096: it was cut off")
    other.write_bytes(content + b"\0\0")
    refused(other, r"has 6,098 bytes, .* added to")
    other.write_bytes(content[:100])
    refused(other, "header of .* is damaged")
    other.write_bytes(content.replace(b'"version": 1', b'"version": 7'))
    refused(other, "is of version 7, expected 1")
    other.write_bytes(content.replace(b'"crc32"', b'"crc33"'))
    refused(other, "lacks crc32")


def test_ids_that_were_changed_are_found(written, letters):
    spoil(written, 777, 9)
    with pytest.raises(UserError, match="is damaged: the checksum of its ids"):
        TokenFile.open(written, letters)
    spoil(written, 777, 60_000)
    with pytest.raises(UserError, match=rf"the id 60000 at position 777 is outside the vocabulary of {len(letters)} "):
        TokenFile.open(written, letters)


def test_ids_outside_the_vocabulary_are_not_written(tmp_path, letters):
    for bad in (len(letters), -1):
        with pytest.raises(UserError, match=rf"the id {bad} at position 4 is outside"):
            write_tokens(tmp_path / "train.bin", [[5, 6, 7], [8, bad, 9]], letters)
    with pytest.raises(UserError, match="there is no token to write"):
        write_tokens(tmp_path / "train.bin", [[], []], letters)
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_refused_and_both_are_named(written, letters):
    other = train_tokenizer(["abc"], kind="char")
    with pytest.raises(UserError) as e:
        TokenFile.open(written, other, "the tokenizer of mine")
    for part in (f"of letters ({len(letters)} tokens)", "the tokenizer of mine has", f"({len(other)} tokens)"):
        assert part in str(e.value)
    # As many tokens in another order are another vocabulary.
    swapped = train_tokenizer(
        ["zabcdefghijklmnopqrstuvwxyABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?!\n"] * 2, kind="char"
    )
    if len(swapped) == len(letters) and swapped.backend.get_vocab() != letters.backend.get_vocab():
        with pytest.raises(UserError, match="was written with the vocabulary"):
            TokenFile.open(written, swapped)


def test_crops_are_stretches_of_the_file_and_depend_on_seed_and_number_alone(written):
    tokens = TokenFile.open(written)
    crops = RandomCrops(tokens, 16, 200, seed=3)
    for i, crop in enumerate(crops):
        assert crop["input_ids"].dtype == np.int32
        assert crop["input_ids"].tolist() == tokens.ids[crops.starts[i] : crops.starts[i] + 17].tolist()
        assert len(crop["input_ids"]) == 17 and block_length(crop) == crops.lengths[i] == 16
    more = RandomCrops(tokens, 16, 5000, seed=3)
    assert np.array_equal(more.starts[:200], crops.starts)
    assert not np.array_equal(RandomCrops(tokens, 16, 200, seed=4).starts, crops.starts)
    assert more[4999]["input_ids"].tolist() == more[-1]["input_ids"].tolist() == more[4990:][-1]["input_ids"].tolist()
    with pytest.raises(IndexError):
        more[5000]
    # Every place is drawn, the first and the last too, each about as often.
    counts = np.bincount(RandomCrops(tokens, 16, 98_400, seed=0).starts, minlength=984)
    assert len(counts) == 1000 - 16 and counts.min() > 50 and counts.max() < 150


def test_the_order_of_an_epoch_does_not_sort_crops_by_place(written):
    """Were crops and the order drawn from one stream, batches would go through the file from front to end."""
    crops = RandomCrops(TokenFile.open(written), 16, 500, seed=42)
    firsts = [batch["first"] for batch in batches(_Places(crops), 10, seed=42, epoch=0, collate=_first_places)]
    assert abs(np.corrcoef(np.arange(50), np.array(firsts).mean(1))[0, 1]) < 0.5


class _Places:
    def __init__(self, crops):
        self.crops, self.lengths = crops, crops.lengths

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, i):
        return {"input_ids": [0], "start": self.crops.starts[i]}


def _first_places(examples, *ignored):
    return {"first": [example["start"] for example in examples]}


@pytest.mark.parametrize("block_size", [1, 7, 16, 333, 999, 5000])
def test_windows_predict_each_token_but_the_first_once(written, block_size):
    tokens = TokenFile.open(written)
    windows = Windows(tokens, block_size)
    assert [block_length(w) for w in windows] == windows.lengths.tolist() and windows.lengths.max() <= block_size
    assert np.concatenate([w["input_ids"][1:] for w in windows]).tolist() == tokens.ids[1:].tolist()
    assert np.concatenate([w["input_ids"][:-1] for w in windows]).tolist() == tokens.ids[:-1].tolist()


def test_blocks_that_the_file_does_not_fill_are_refused(written, letters, tmp_path):
    tokens = TokenFile.open(written)
    assert RandomCrops(tokens, 999, 3)[2]["input_ids"].tolist() == tokens.ids.tolist()
    with pytest.raises(
        UserError, match=r"train.bin has 1000 tokens, and an example of block_size 1000 takes at least 1001"
    ):
        RandomCrops(tokens, 1000, 3)
    with pytest.raises(UserError, match="block_size is 0"):
        Windows(tokens, 0)
    with pytest.raises(UserError, match="0 crops"):
        RandomCrops(tokens, 4, 0)
    write_tokens(tmp_path / "one.bin", [[5]], letters)
    with pytest.raises(UserError, match=r"one.bin has 1 tokens, .* at least 2"):
        Windows(TokenFile.open(tmp_path / "one.bin"), 4)


def test_checksums_name_the_content(written, letters, tmp_path):
    tokens = TokenFile.open(written)
    write_tokens(tmp_path / "other.bin", [np.arange(1000) % 36 + 4], letters)
    other = TokenFile.open(tmp_path / "other.bin")
    sums = [
        RandomCrops(t, b, 9, s).checksum for t, b, s in [(tokens, 8, 0), (other, 8, 0), (tokens, 9, 0), (tokens, 8, 1)]
    ]
    sums += [Windows(tokens, 8).checksum, Windows(other, 8).checksum, Windows(tokens, 9).checksum]
    assert len(set(sums)) == 7 and RandomCrops(tokens, 8, 9).checksum == sums[0]


def test_batches_look_at_the_examples_they_hold_alone(written):
    crops, seen = RandomCrops(TokenFile.open(written), 8, 1000, seed=1), []

    class Watched(_Places):
        def __getitem__(self, i):
            seen.append(int(i))
            return crops[i]

    batch = next(batches(Watched(crops), 4, seed=1, collate=collate_blocks, length=block_length, group_by_length=True))
    assert len(seen) == 4 and batch["input_ids"].shape == (4, 8)


def test_two_workers_share_a_batch(written):
    crops = RandomCrops(TokenFile.open(written), 8, 13, seed=1)
    options = {"collate": collate_blocks, "length": block_length, "seed": 2}
    whole = list(batches(crops, 6, **options))
    halves = [list(batches(crops, 6, rank=rank, world=2, **options)) for rank in range(2)]
    for i, batch in enumerate(whole):
        rows = [row.tolist() for half in halves for row in half[i]["labels"] if (row >= 0).any()]
        assert rows == batch["labels"].tolist()
    assert len(whole) == 3 and (halves[1][2]["attention_mask"] == 0).all()  # the 13th crop is the first worker's


def test_a_batch_of_crops_takes_microseconds(tmp_path, letters):
    write_tokens(tmp_path / "train.bin", [np.random.default_rng(0).integers(4, 60, 10**6)], letters)
    tokens = TokenFile.open(tmp_path / "train.bin")
    crops = RandomCrops(tokens, 256, 64 * 1000, seed=1)
    order = batches(crops, 64, collate=collate_blocks, length=block_length)
    next(order)  # draws the order
    times = []
    for _ in range(5):
        start = time.perf_counter()
        next(order)
        times.append(time.perf_counter() - start)
    assert min(times) / 64 < 2e-4


# ---- from text


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "sentencepiece", "word", "char"])
def test_texts_have_the_ids_of_encode_however_long(kind, monkeypatch):
    tokenizer = train_tokenizer([TEXT] * 3, None if kind in ("word", "char") else 400, kind)
    monkeypatch.setattr(token_file, "_PIECE", 40)
    monkeypatch.setattr(token_file, "_BATCH", 150)
    texts = [TEXT * 9, "x", TEXT]
    done = []
    pieces = [list(piece) for piece in token_stream(texts, tokenizer, False, done.append)]
    assert flat(pieces) == flat(map(tokenizer.encode, texts))
    assert sum(done) == sum(map(len, texts))
    if kind in ("bpe", "wordpiece"):  # these can be cut
        assert max(map(len, pieces)) < len(tokenizer.encode(TEXT * 9)) / 4


def test_real_vocabularies_cut_without_a_trace(real, monkeypatch):
    monkeypatch.setattr(token_file, "_PIECE", 40)
    text = (TEXT + "\nBien sûr, l'été.\n") * 5
    for name in ("gpt2",):
        tokenizer = real(name)
        pieces = [list(piece) for piece in token_stream([text], tokenizer, False)]
        assert flat(pieces) == tokenizer.encode(text) and sum(map(bool, pieces)) > 5


def test_tiny_shakespeare_has_the_tokens_that_nanogpt_counts(data_folder, tmp_path, capsys):
    text, words = data_folder / "tinyshakespeare" / "input.txt", data_folder / "tokenizers" / "gpt2"
    if not text.is_file() or not words.is_dir():
        pytest.skip(f"{text} or {words} is not there")
    data_command("tokenize", [str(text)], str(words), str(tmp_path / "out"), val_share=0.1, whole_files=True)
    out = capsys.readouterr().out
    assert "train.bin with 301,966 tokens" in out and "validation.bin with 36,059 tokens" in out


def test_documents_end_in_eos_once(letters):
    eos = [letters.eos_token_id]
    one, two = letters.encode("one"), letters.encode("two" + letters.eos_token)
    assert flat(token_stream(["one", "two" + letters.eos_token], letters, True)) == one + eos + two
    assert two[-1:] == eos


@pytest.fixture
def words(tmp_path):
    tokenizer = train_tokenizer([TEXT] * 3, 300)
    tokenizer.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def ids(path, tokenizer=None):
    return TokenFile.open(path, tokenizer).ids.tolist()


def test_one_text_is_cut_by_characters(words, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text(TEXT, encoding="utf-8", newline="")
    data_command("tokenize", [str(text)], words, str(tmp_path / "out"), val_share=0.25, whole_files=True)
    tokenizer = load_tokenizer(tmp_path / "out")
    cut = int(len(TEXT) * 0.75)
    assert ids(tmp_path / "out" / "train.bin", tokenizer) == tokenizer.encode(TEXT[:cut])
    assert ids(tmp_path / "out" / "validation.bin", tokenizer) == tokenizer.encode(TEXT[cut:])
    out = capsys.readouterr().out
    count = len(tokenizer.encode(TEXT[:cut]))
    assert f"train.bin with {count} tokens (uint16, {4096 + 2 * count:,} bytes)" in out and "validation.bin" in out


def test_documents_are_split_as_they_are(words, tmp_path):
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(10)))
    (tmp_path / "a.txt").write_text("first\n\nsecond\n\nthird\n")
    sources = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    data_command("tokenize", sources, words, str(tmp_path / "out"), val_share=0.3)
    tokenizer = load_tokenizer(words)

    def joined(texts):
        return flat([*tokenizer.encode(t), tokenizer.eos_token_id] for t in texts)

    train = ["first", "second", *(f"text {i}" for i in range(7))]
    assert ids(tmp_path / "out" / "train.bin") == joined(train)
    assert ids(tmp_path / "out" / "validation.bin") == joined(["third", *(f"text {i}" for i in range(7, 10))])
    data_command("tokenize", sources, words, str(tmp_path / "all"))
    assert sorted(p.name for p in (tmp_path / "all").glob("*.bin")) == ["train.bin"]


def test_ids_are_those_of_the_tokenizer_that_is_copied_along(words, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8", newline="")
    data_command("tokenize", [str(tmp_path / "a.txt")], words, str(tmp_path / "out"), whole_files=True)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert ids(tmp_path / "out" / "train.bin") == theirs.encode(TEXT).ids


def test_bad_input_is_named_and_leaves_nothing(words, tmp_path):
    talk, blank = tmp_path / "talk.jsonl", tmp_path / "blank.jsonl"
    talk.write_text('{"text": "a"}\n{"prompt": "b", "completion": "c"}\n')
    blank.write_text('{"text": " "}\n')
    (tmp_path / "short.txt").write_text("ab")
    out = str(tmp_path / "out")
    for arguments, options, match in [
        ((None, [str(talk)]), {}, "the action of msllm data is missing"),
        (("tokenise", [str(talk)]), {}, "'tokenise' is unknown .did you mean 'tokenize'"),
        (("tokenize", [str(talk)]), {}, r"talk.jsonl, line 2 is a prompt with its completion, expected a text"),
        (("tokenize", [str(blank)]), {}, "blank.jsonl holds blank texts only"),
        (("tokenize", [str(tmp_path / "no.txt")]), {}, "no.txt does not exist"),
        (("tokenize", [str(talk)]), {"val_share": 1.5}, "val_share is 1.5"),
        (
            ("tokenize", [str(tmp_path / "short.txt")]),
            {"val_share": 0.6},
            "of the 2 characters of .* leaves 0 to train on",
        ),
    ]:
        with pytest.raises(UserError, match=match):
            data_command(*arguments, words, out, **options)
    with pytest.raises(UserError, match="exists and is not empty"):
        data_command("tokenize", [str(blank)], words, words)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".", "out"))]
