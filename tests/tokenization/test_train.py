import pytest

from msllm.errors import UserError
from msllm.tokenization import load_tokenizer, train_tokenizer

TEXT = "low lower lowest\n新的 newer 😀 wide wider widest\n" * 3
UNSEEN = "  lowest 龘 Z\t😀</s><s>\n"


@pytest.mark.parametrize("kind, size", [("bpe", 300), ("char", None)])
def test_a_trained_tokenizer_gives_the_same_ids_in_transformers(kind, size, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = train_tokenizer([TEXT], size, kind)
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, UNSEEN, ""):
        assert theirs.encode(text) == ours.encode(text) == load_tokenizer(tmp_path).encode(text)
        for skip in (True, False):
            assert theirs.decode(ours.encode(text), skip_special_tokens=skip) == ours.decode(ours.encode(text), skip)
    assert (ours.pad_token_id, ours.unk_token_id, ours.bos_token_id, ours.eos_token_id) == (0, 1, 2, 3)
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2, 3)


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


def test_byte_level_bpe_knows_every_text_and_trains_the_same_twice():
    first, second = train_tokenizer([TEXT], 280), train_tokenizer([TEXT], 280)
    assert first.decode(first.encode(UNSEEN), skip_special_tokens=False) == UNSEEN
    assert first.backend.to_str() == second.backend.to_str()
    assert len(first) == 280
    assert len(first.encode("lowest")) < 6


def test_tiny_shakespeare_has_65_characters(data_folder):
    text = (data_folder / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    tokenizer = train_tokenizer([text], kind="char")
    assert len(tokenizer) == 65 + 4
    assert tokenizer.decode(tokenizer.encode(text[:100000])) == text[:100000]


@pytest.mark.parametrize(
    "size, kind, message",
    [
        (None, "bpe", "at least 260"),
        (100, "bpe", "at least 260"),
        (3, "char", "at least 5"),
        (300, "bpee", "did you mean 'bpe'"),
    ],
)
def test_impossible_wishes_are_user_errors(size, kind, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(["abc"], size, kind)
