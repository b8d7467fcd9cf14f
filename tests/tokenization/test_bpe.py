import gzip
import json
import random
import time
from collections import Counter

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from msllm.errors import UserError
from msllm.tokenization import bpe, load_tokenizer

TRICKY = "  Hello  world 你好😀\n\tdef f(x):\n    return x's 123 </s>  "


@pytest.fixture(scope="module")
def real_texts(data_folder):
    """Real texts by name; skips the test when one is not there."""

    def read(name):
        path = {
            "english": data_folder / "tinyshakespeare/input.txt",
            "german": data_folder / "multi30k/train.de.gz",
            "chinese": data_folder / "clue_corpus_small/bert_sampled.txt",
        }[name]
        if not path.is_file():
            pytest.skip(f"{path} is not there")
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode().split("\n") if name != "english" else [data.decode()]

    return read


def reference(texts, vocab_size, special_tokens=()):
    """The Rust library, trained with the same settings."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def assert_same_vocabulary(ours, theirs):
    shown = pytest.importorskip("transformers.models.gpt2.tokenization_gpt2").bytes_to_unicode()
    model = json.loads(theirs.to_str())["model"]
    specials = {token.content.encode(): token.content for token in theirs.get_added_tokens_decoder().values()}

    def show(token):
        return specials.get(token) or "".join(shown[byte] for byte in token)

    assert {show(token): i for token, i in ours.ids.items()} == model["vocab"]
    assert [[show(token) for token in pair] for pair in ours.merges] == [list(pair) for pair in model["merges"]]


def test_the_textbook_example():
    learnt = bpe.train(["aaabdaaabac"], 256 + 3)
    assert learnt.merges == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]
    assert bpe.encode("aaabdaaabac", learnt) == [258, 100, 258, 97, 99]
    assert bpe.decode([258, 100, 258, 97, 99], learnt) == "aaabdaaabac"


def test_pairs_are_counted_as_often_as_their_words():
    words = {(b"l", b"o", b"w"): 5, (b"l", b"o", b"l", b"o"): 2}
    assert bpe.count_pairs(words) == {(b"l", b"o"): 9, (b"o", b"w"): 5, (b"o", b"l"): 2}


def test_a_merge_goes_from_left_to_right():
    assert bpe.merge((b"a",) * 5, (b"a", b"a")) == (b"aa", b"aa", b"a")
    assert bpe.merge((b"a", b"b", b"a"), (b"a", b"b")) == (b"ab", b"a")
    assert bpe.merge((b"a",), (b"a", b"b")) == (b"a",)


@pytest.mark.parametrize("pattern", [None, bpe.GPT2_PATTERN])
def test_the_quick_training_learns_what_the_printed_algorithm_does(pattern):
    # Few letters make many ties, overlaps, and tokens that two different pairs give.
    for seed in range(30):
        rng = random.Random(seed)
        text = " ".join("".join(rng.choices("abc"[: 2 + seed % 2], k=rng.randint(1, 12))) for _ in range(40))
        learnt = bpe.train([text], 320, pattern)
        ids = {token: i for token, i in learnt.ids.items() if len(token) == 1}
        words = Counter(tuple(word[i : i + 1] for i in range(len(word))) for word in split(text, pattern))
        assert bpe.learn(words, ids, 320) == learnt.merges
        assert ids == learnt.ids


def split(text, pattern):
    if pattern is None:
        return [text.encode()]
    return [word.replace("Ġ", " ").encode() for word, _ in pre_tokenizers.ByteLevel(False).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    "name, size, specials",
    [
        ("english", 3000, ()),
        ("german", 3000, ("<pad>", "<s>")),
        ("chinese", 3000, ("<pad>",)),
    ],
)
def test_merges_and_ids_equal_those_of_tokenizers(name, size, specials, real_texts):
    texts = real_texts(name)[:5000]
    ours, theirs = bpe.train(texts, size, bpe.GPT2_PATTERN, specials), reference(texts, size, specials)
    assert len(ours.merges) == size - 256 - len(specials)
    assert_same_vocabulary(ours, theirs)
    for text in [*texts[:500], TRICKY, ""]:
        ids = bpe.encode(text, ours)
        assert ids == theirs.encode(text).ids
        assert bpe.decode(ids, ours) == text


def test_gpt2s_own_vocabulary(data_folder, real_texts):
    folder = data_folder / "tokenizers/gpt2"
    ours, theirs = bpe.load(folder), load_tokenizer(folder)
    for text in [*(real_texts(name)[0][:20000] for name in ("english", "german", "chinese")), TRICKY, "aaaaaaaaaa", ""]:
        assert bpe.encode(text, ours) == theirs.encode(text)
        assert bpe.decode(bpe.encode(text, ours), ours) == text
    assert bpe.decode([50256], ours) == "<|endoftext|>"


def test_a_long_text_takes_seconds(real_texts):
    text = real_texts("english")[0][:400_000]
    start = time.process_time()
    learnt = bpe.train([text], 256 + 2000)
    ids = bpe.encode(text, learnt)
    assert time.process_time() - start < 25
    assert len(learnt.merges) == 2000
    assert bpe.decode(ids, learnt) == text


def test_bytes_that_are_no_text_are_shown_as_such():
    learnt = bpe.train(["a"], 256)
    assert bpe.encode("é", learnt) == [0xC3, 0xA9]
    assert bpe.decode([0xC3], learnt) == "\ufffd"


def test_bad_input_is_named(tmp_path):
    with pytest.raises(UserError, match="vocab_size 256 is too small; give at least 257: 256 bytes and 1 special"):
        bpe.train(["a"], 256, special_tokens=["<pad>"])
    with pytest.raises(UserError, match="texts is one string"):
        bpe.train("aaabdaaabac", 259)
    with pytest.raises(UserError, match="id 300 is not in the vocabulary of 256"):
        bpe.decode([97, 300], bpe.train(["a"], 256))
    with pytest.raises(UserError, match=r"vocab\.json"):
        bpe.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    for lines, message in (("#version: 0.2\na b\na c\n", "'a c' is no pair"), ("a b c\n", "'a b c' is no pair")):
        (tmp_path / "merges.txt").write_text(lines)
        with pytest.raises(UserError, match=message):
            bpe.load(tmp_path)
    (tmp_path / "vocab.json").write_text('["a", "b"]')
    with pytest.raises(UserError, match=r"vocab\.json holds a list, expected a JSON object"):
        bpe.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"你": 0}))
    with pytest.raises(UserError, match="'你', which stands for no byte"):
        bpe.load(tmp_path)
