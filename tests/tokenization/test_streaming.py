import random

import pytest

from msllm.tokenization import load_tokenizer, train_tokenizer

TEXTS = [
    "Hello world",
    "  two  spaces ",
    "你好，世界！龘靐齉 ok",
    "😀👩‍👩‍👧‍👦🇨🇳 flags",
    "a\n\n\tb </s> c <|endoftext|> d",
    "é e\u0301 ﬁ",
    "Do n't stop . It 's , ok ? We 've x ' s ' re",
    " . . ' ' n't ,",
    "�",
    "",
]


@pytest.fixture(params=["gpt2", "gpt2 clean-up", "llama2", "llama2 not legacy", "bert-base-chinese"])
def tokenizer(request, vocabulary):
    name, _, option = request.param.partition(" ")
    files = {
        "clean-up": {"tokenizer_config": {"clean_up_tokenization_spaces": True}},
        "not legacy": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": False}},
    }
    return load_tokenizer(vocabulary(name, **files.get(option, {})))


def streamed(tokenizer, ids, skip):
    stream = tokenizer.stream(skip_special_tokens=skip)
    return "".join([stream.push(i) for i in ids] + [stream.flush()])


@pytest.mark.parametrize("skip", [True, False])
def test_joined_pieces_equal_decode_on_texts(tokenizer, skip):
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert streamed(tokenizer, ids, skip) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("skip", [True, False])
def test_joined_pieces_equal_decode_on_random_ids(tokenizer, skip):
    # An untrained model emits such ids: broken UTF-8, bytes between special tokens, spaces anywhere.
    rng = random.Random(0)
    usual = tokenizer.encode(" ".join(TEXTS)) + list(range(270))
    for _ in range(150):
        ids = [rng.choice(usual) if rng.random() < 0.7 else rng.randrange(len(tokenizer)) for _ in range(30)]
        assert streamed(tokenizer, ids, skip) == tokenizer.decode(ids, skip)


def test_clean_up_holds_back_what_it_may_still_change():
    # An id a character: every place in a rule is a border between pushes.
    tokenizer = train_tokenizer([" '.?!,ntmsvreX你"], kind="char")
    tokenizer.clean_up_tokenization_spaces = True
    rng = random.Random(1)
    for _ in range(3000):
        ids = tokenizer.encode("".join(rng.choice(["n't", " 've", " ' ", *"  '' .?,nt msvreX你"]) for _ in range(15)))
        assert streamed(tokenizer, ids, True) == tokenizer.decode(ids)


def test_words_come_out_as_they_are_complete(vocabulary):
    gpt2 = load_tokenizer(vocabulary("gpt2"))
    stream = gpt2.stream()
    assert [stream.push(i) for i in gpt2.encode("Hi there你 <|endoftext|>")] == ["Hi", " there", "", "你", " ", ""]
    stream = gpt2.stream()
    emoji = gpt2.encode("😀")
    assert len(emoji) > 1
    assert [stream.push(i) for i in emoji] == [""] * (len(emoji) - 1) + ["😀"]
    llama = load_tokenizer(vocabulary("llama2"))
    stream = llama.stream()
    assert [stream.push(i) for i in llama.encode("Hi there 世")] == ["", "Hi", " there", " ", "世"]


def test_flush_shows_an_unfinished_character_and_starts_afresh(vocabulary):
    gpt2 = load_tokenizer(vocabulary("gpt2"))
    stream = gpt2.stream()
    assert stream.push(gpt2.encode("😀")[0]) == ""
    assert stream.flush() == "�"
    assert stream.flush() == ""
    assert stream.push(gpt2.encode("Hi")[0]) == "Hi"
