import gzip
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from msllm.errors import UserError
from msllm.tokenization import load_tokenizer, train_tokenizer

TEXT = "low lower lowest\n新的 newer 😀 wide wider widest\n" * 3
UNSEEN = "  lowest 龘 Z\t😀</s><s>\n"
KINDS = {
    "bpe": ("bpe", 300, {}),
    "bpe lowercase": ("bpe", 300, {"lowercase": True}),
    "char": ("char", None, {}),
    "word": ("word", None, {}),
    "word lowercase": ("word", 9, {"lowercase": True}),
    "wordpiece": ("wordpiece", 60, {}),
    "wordpiece lowercase": ("wordpiece", 60, {"lowercase": True}),
    "unigram": ("sentencepiece", 290, {}),
    "unigram lowercase": ("sentencepiece", 290, {"lowercase": True, "byte_fallback": False}),
    "sentencepiece bpe": ("sentencepiece", 300, {"model_type": "bpe", "character_coverage": 1.0}),
    "sentencepiece bpe lowercase": ("sentencepiece", 300, {"model_type": "bpe", "lowercase": True}),
}
CASES = [TEXT, UNSEEN, "", " ", "LOWER Straße ÀÉ ǅ, İ", "[MASK] <pad> x", "low\u0301 é"]


@pytest.fixture(scope="module")
def german(data_folder):
    path = data_folder / "multi30k/train.de.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return gzip.decompress(path.read_bytes()).decode().splitlines()


@pytest.fixture(scope="module")
def chinese(data_folder):
    path = data_folder / "clue_corpus_small/bert_sampled.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("case", KINDS)
def test_a_trained_tokenizer_gives_the_same_ids_in_transformers(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, size, options = KINDS[case]
    ours = train_tokenizer([TEXT], size, kind, **options)
    ours.save_pretrained(tmp_path)
    theirs, again = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in CASES:
        ids = ours.encode(text)
        assert theirs.encode(text) == ids == again.encode(text)
        for skip in (True, False):
            decoded = ours.decode(ids, skip)
            assert theirs.decode(ids, skip_special_tokens=skip) == decoded == again.decode(ids, skip)
    names = ("pad", "unk", "cls", "sep", "mask") if kind == "wordpiece" else ("pad", "unk", "bos", "eos")
    for i, name in enumerate(names):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id") == i
    if kind == "wordpiece":
        assert type(theirs).__name__ == "BertTokenizerFast"
        assert theirs("low", "新")["token_type_ids"] == ours.encode_pair("low", "新")[1] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("case", KINDS)
def test_the_vocabulary_depends_on_the_texts_alone(case):
    kind, size, options = KINDS[case]
    code = (
        f"from msllm.tokenization import train_tokenizer; "
        f"print(ascii(train_tokenizer([{TEXT!r}], {size}, {kind!r}, **{options!r}).backend.to_str()))"
    )

    def run(seed):
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout

    assert run("1") == run("2") != ""
    assert len(train_tokenizer([TEXT], size, kind, **options)) <= (size or 1000)


def test_every_character_of_the_text_gets_an_id_and_others_are_unknown():
    tokenizer = train_tokenizer(["ba\n", "c你"], kind="char")
    assert [tokenizer.id_to_token(i) for i in range(len(tokenizer))] == [
        "<pad>",
        "<unk>",
        "<s>",
        "</s>",
        "\n",
        "a",
        "b",
        "c",
        "你",
    ]
    assert tokenizer.encode("a\n你b") == [5, 4, 8, 6]
    assert tokenizer.encode("aXb") == [5, 1, 6]
    assert tokenizer.decode([5, 4, 8, 6]) == "a\n你b"


def test_a_smaller_character_vocabulary_keeps_the_most_frequent():
    tokenizer = train_tokenizer(["aabbbcd"], 6, "char")
    assert tokenizer.encode("abcd") == [4, 5, 1, 1]


def test_byte_level_bpe_knows_every_text():
    tokenizer = train_tokenizer([TEXT], 280)
    assert tokenizer.decode(tokenizer.encode(UNSEEN), skip_special_tokens=False) == UNSEEN
    assert len(tokenizer) == 280
    assert len(tokenizer.encode("lowest")) < 6


def test_bpe_leaves_out_what_is_rare():
    assert len(train_tokenizer(["ab ab ab cd"], 300, min_frequency=3)) == 260 + 1
    assert len(train_tokenizer(["ab ab ab cd"], 300)) == 260 + 4  # ab, " ab", cd, " cd"


def test_lower_cased_text_comes_back_composed(german):
    tokenizer = train_tokenizer(german, 4000, lowercase=True)
    for text in [*german[:5000], "ZWO\u0308LF  Ǆ\n", "\tÀ 😀"]:
        assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text).lower()


def test_words_are_counted_whole():
    texts = ["A man's t-shirt, red.", "a red (red) MAN'S hat"]
    tokenizer = train_tokenizer(texts, kind="word", lowercase=True, min_frequency=2)
    # red 3 times, a and man's twice; the rest once.
    assert [tokenizer.id_to_token(i) for i in range(len(tokenizer))] == [
        "<pad>",
        "<unk>",
        "<s>",
        "</s>",
        "red",
        "a",
        "man's",
    ]
    assert tokenizer.encode("Man's red t-shirt a") == [6, 4, 1, 5]
    assert len(train_tokenizer(texts, 6, "word")) == 6


def test_words_are_joined_as_text_is_written():
    text = "a man's t-shirt (red, blue): is it new? yes! « so » 50%; [x] 你好，世界。"
    tokenizer = train_tokenizer([text], kind="word")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, tokenizer.encode(text)), stream.flush()]) == text


def test_words_may_be_what_a_pattern_says():
    tokenizer = train_tokenizer(["你好 x1"], kind="word", pattern=r"\p{Han}|[a-z]+")
    assert [tokenizer.id_to_token(i) for i in range(4, len(tokenizer))] == ["x", "你", "好"]
    assert train_tokenizer(["<s> a"], kind="word", pattern=r"\S+").encode("<s> a") == [2, 4]


def test_multi30k_has_the_words_it_is_known_to_have(german):
    counts = Counter(
        word
        for line in german
        for word in re.findall(r"\w+(?:[-'’]\w+)*|[^\w\s]", unicodedata.normalize("NFC", line).lower())
    )
    tokenizer = train_tokenizer(german, kind="word", lowercase=True, min_frequency=2)
    words = [tokenizer.id_to_token(i) for i in range(4, len(tokenizer))]
    assert words[:4] == [word for word, _ in counts.most_common(4)]
    assert set(words) == {word for word, count in counts.items() if count >= 2}
    assert {"mann", "straße", "t-shirt", "männer"} < set(words)


def test_wordpiece_splits_chinese_characters_and_goes_on_with_hashes():
    tokenizer = train_tokenizer(["unable unable table tables 新的一天 新的"] * 5, 40, "wordpiece", lowercase=True)
    tokens = [tokenizer.id_to_token(i) for i in tokenizer.encode("Tables 新的")]
    assert tokens[0] == "[CLS]" and tokens[-3:] == ["新", "的", "[SEP]"]
    assert "".join(token.removeprefix("##") for token in tokens[1:-3]) == "tables"
    assert all(token.startswith("##") for token in tokens[2:-3])
    assert tokenizer.token_to_id("##新") is None
    assert tokenizer.encode("y") == [2, 1, 3]
    assert [tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_wordpiece_on_real_text_keeps_its_size(chinese, german):
    tokenizer = train_tokenizer([*chinese, *german[:1000]], 5000, "wordpiece", lowercase=True)
    assert len(tokenizer) == tokenizer.vocab_size == 5000
    ids = [i for text in [*chinese[:2000], *german[:2000]] for i in tokenizer.encode(text, add_special_tokens=False)]
    assert sum(i == tokenizer.unk_token_id for i in ids) < 0.002 * len(ids)
    # When the characters alone are too many, the most frequent stay.
    small = train_tokenizer(chinese, 500, "wordpiece")
    assert len(small) == 500
    assert small.token_to_id("的") is not None and small.token_to_id("，") is not None


@pytest.mark.parametrize("options", [{}, {"model_type": "bpe"}, {"lowercase": True}])
def test_sentencepiece_ids_are_those_of_its_own_library(options, german, tmp_path):
    transformers = pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    ours = train_tokenizer(["\n".join(german[:8000])], 3000, "sentencepiece", **options)
    ours.save_pretrained(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    slow = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    fast = transformers.LlamaTokenizerFast.from_pretrained(tmp_path)
    for text in [*german[:1000], "a  b\tc\nd 你好", "ÀÉ Straße ǅ İ", " x ", ""]:
        ids = ours.encode(text)
        assert ids == library.encode(text) == slow.encode(text) == fast.encode(text)
        assert ours.decode(ids) == (text.lower() if options.get("lowercase") else text)
    assert len(ours) == library.get_piece_size() == 3000
    assert [library.id_to_piece(i) for i in range(4)] == ["<pad>", "<unk>", "<s>", "</s>"]


def test_without_bytes_to_fall_back_on_characters_are_unknown():
    tokenizer = train_tokenizer([TEXT], 40, "sentencepiece", byte_fallback=False)
    assert tokenizer.encode("low龘")[-1] == 1
    assert tokenizer.decode(tokenizer.encode("low龘")) == "low"


def test_tiny_shakespeare_has_65_characters(data_folder):
    text = (data_folder / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    tokenizer = train_tokenizer([text], kind="char")
    assert len(tokenizer) == 65 + 4
    assert tokenizer.decode(tokenizer.encode(text[:100000])) == text[:100000]


@pytest.mark.parametrize(
    "size, kind, options, message",
    [
        (None, "bpe", {}, "at least 260"),
        (100, "bpe", {}, "at least 260"),
        (3, "char", {}, "at least 5"),
        (4, "word", {}, "at least 5"),
        (None, "wordpiece", {}, "at least 6"),
        (None, "sentencepiece", {}, "at least 261"),
        (262, "sentencepiece", {"character_coverage": 1.0}, "smaller than required_chars. 262 vs 264. Increase"),
        (300, "sentencepiece", {"model_type": "unigran"}, "did you mean 'unigram'"),
        (300, "sentencepiece", {"character_coverage": 99.95}, "give a share from 0.98 to 1"),
        (300, "bpee", {}, "did you mean 'bpe'"),
        (None, "char", {"lowercase": True}, "kind 'char' has no option lowercase; it has none"),
        (300, "bpe", {"byte_fallback": False}, "no option byte_fallback; it has pattern, lowercase, min_frequency"),
        (300, "wordpiece", {"pattern": "x"}, "no option pattern"),
    ],
)
def test_impossible_wishes_are_user_errors(size, kind, options, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(["abc"], size, kind, **options)


def test_texts_are_several():
    with pytest.raises(UserError, match="texts is one string"):
        train_tokenizer("abc", kind="char")
    with pytest.raises(UserError, match="there is no text to train on"):
        train_tokenizer([], 300, "sentencepiece")
