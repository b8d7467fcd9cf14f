"""Ids and text equal to those of transformers' AutoTokenizer on the same folder."""

import pytest
from tokenizers import AddedToken

from msllm.tokenization import load_tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    " ",
    "\n\n\n",
    "a",
    "trailing   ",
    "  Hello  world 你好😀\n\tdef f(x):\n    return x </s>tail <s> x",
    "Don't stop . It 's , ok ? We 've n't ' m",
    "中文，测试。繁體字龘",
    "👩‍👩‍👧‍👦 é e\u0301 ﬁ ñ Å",
    "x <|endoftext|> y",
    "\u3000全角　空格",
    "[MASK] a [SEP] <pad> [PAD]",
    "\x00\x01 b\u200b\ufeff",
    "for (int i=0;i<10;++i) {\n\t\tx[i] += 1e-5;\r\n}",
    "ÀÉÎ strip",
]
CASES = {
    "gpt": ("openai-gpt", {"config": {"model_type": "openai-gpt"}}),
    "gpt2": ("gpt2", {"config": {"model_type": "gpt2"}}),
    "gpt2 bos, prefix space, added pad": (
        "gpt2",
        {
            "tokenizer_config": {
                "tokenizer_class": "GPT2Tokenizer",
                "add_bos_token": True,
                "add_prefix_space": True,
                "pad_token": "<pad>",
                "clean_up_tokenization_spaces": True,
            }
        },
    ),
    "bert chinese": ("bert-base-chinese", {"config": {"model_type": "bert"}}),
    "bert uncased": ("bert-base-uncased", {"config": {"model_type": "bert"}}),
    "bert read as cased": (
        "bert-base-uncased",
        {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": False}},
    ),
    "bert accents": (
        "bert-base-uncased",
        {
            "tokenizer_config": {
                "tokenizer_class": "BertTokenizer",
                "strip_accents": False,
                "tokenize_chinese_chars": False,
            }
        },
    ),
    "llama": ("llama2", {"config": {"model_type": "llama"}}),
    "llama not legacy, added pad": (
        "llama2",
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": False, "pad_token": "[PAD]"}},
    ),
    "llama eos instead of bos": (
        "llama2",
        {
            "tokenizer_config": {
                "tokenizer_class": "LlamaTokenizer",
                "legacy": True,
                "add_bos_token": False,
                "add_eos_token": True,
            }
        },
    ),
    "llama no prefix space": (
        "llama2",
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False}},
    ),
    "llama null prefix space": (
        "llama2",
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": None}},
    ),
    "llama old added tokens": (
        "llama2",
        {
            "tokenizer_config": {"tokenizer_class": "LlamaTokenizer"},
            "added_tokens": {"<pad>": 32000, "<x>": 32001},
            "special_tokens_map": {
                "pad_token": "<pad>",
                "eos_token": {
                    "content": "</s>",
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": True,
                    "single_word": False,
                },
            },
        },
    ),
}


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token"), name
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id"), name
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("case", CASES)
def test_ids_and_text_equal_transformers(case, vocabulary, tmp_path):
    name, files = CASES[case]
    folder = vocabulary(name, **files)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert_same(ours, theirs)
    saved = tmp_path / "saved"
    ours.save_pretrained(saved)
    assert_same(load_tokenizer(saved), theirs)
    reread = transformers.AutoTokenizer.from_pretrained(saved)
    assert_same(ours, reread)


@pytest.mark.parametrize("case", ["gpt2", "bert accents", "llama", "llama not legacy, added pad"])
def test_tokenizer_json_gives_the_ids_of_transformers(case, vocabulary, tmp_path):
    name, files = CASES[case]
    theirs = transformers.AutoTokenizer.from_pretrained(vocabulary(name, **files))
    theirs.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("new word", lstrip=True)])
    theirs.save_pretrained(tmp_path / "json")
    for file in ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"):
        (tmp_path / "json" / file).unlink(missing_ok=True)
    ours = load_tokenizer(tmp_path / "json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "json")
    assert_same(ours, theirs)
    text = "a <|turn|>  new word b"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert len(theirs) - 2 in ours.encode(text)


@pytest.mark.parametrize("family", ["Bloom", "Qwen2"])
def test_class_defaults_of_special_tokens_equal_transformers(family, vocabulary, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(vocabulary("gpt2", config={"model_type": "gpt2"}))
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "{family}Tokenizer"}}')
    assert_same(load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("max_length", [None, 3, 4, 9, 10, 15])
@pytest.mark.parametrize("pair", [None, "short", "这是 a rather longer second text, with a tail"])
def test_bert_pairs_and_their_truncation_equal_transformers(pair, max_length, vocabulary):
    folder = vocabulary("bert-base-chinese", config={"model_type": "bert"})
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        "a first text 你好 ok", pair, truncation=max_length is not None, max_length=max_length
    )
    assert load_tokenizer(folder).encode_pair("a first text 你好 ok", pair, max_length) == (
        theirs["input_ids"],
        theirs["token_type_ids"],
    )


def test_known_ids(vocabulary):
    assert load_tokenizer(vocabulary("gpt2")).encode("Hello world") == [15496, 995]
    assert load_tokenizer(vocabulary("llama2")).encode("Hello this is a test") == [1, 15043, 445, 338, 263, 1243]
    assert load_tokenizer(vocabulary("bert-base-chinese")).encode("你好") == [101, 872, 1962, 102]
    bert = load_tokenizer(vocabulary("bert-base-uncased"))
    assert (bert.token_to_id("[MASK]"), bert.id_to_token(103), bert.token_to_id("no such")) == (103, "[MASK]", None)
