import time

import numpy as np
import pytest

from msllm.data import (
    batches,
    build_pretraining,
    collate_pretraining,
    read_documents,
    vocabulary_checksum,
)
from msllm.data.documents import encode_documents, segment_pairs
from msllm.errors import UserError
from msllm.tokenization import load_tokenizer, train_tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ARRAYS = ("ids", "ends", "first_lengths", "places", "targets", "target_ends", "next_sentence_labels")
DOCUMENTS, SENTENCES = 30, 8


def name(document, sentence, word):
    """A word that tells where it stands: letters only, so that no tokenizer splits it."""
    return "".join(chr(ord("a") + i // 26) + chr(ord("a") + i % 26) for i in (document, sentence, word))


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """Documents whose every word occurs once, and a tokenizer that knows all of them."""
    documents = [
        [" ".join(name(d, s, w) for w in range(3 + (d + s) % 5)) for s in range(SENTENCES)] for d in range(DOCUMENTS)
    ]
    words = sorted({word for document in documents for sentence in document for word in sentence.split()})
    folder = tmp_path_factory.mktemp("telling")
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *words]), encoding="utf-8")
    return documents, load_tokenizer(folder)


@pytest.fixture(scope="module")
def chinese(data_folder):
    """Real Chinese documents, and BERT's vocabulary."""
    text, vocabulary = data_folder / "clue_corpus_small/bert_sampled.txt", data_folder / "tokenizers/bert-base-chinese"
    if not text.is_file() or not vocabulary.is_dir():
        pytest.skip(f"{text} or {vocabulary} is not there")
    return read_documents(text), load_tokenizer(vocabulary)


def unmasked(example):
    return [i if label == -100 else label for i, label in zip(example["input_ids"], example["labels"], strict=True)]


def segments(example, tokenizer):
    """The words of both segments, before masking; checks where the special tokens stand."""
    ids, first = unmasked(example), example["token_type_ids"].count(0)
    assert example["token_type_ids"] == [0] * first + [1] * (len(ids) - first)
    assert [i for i, token in enumerate(ids) if token < len(SPECIALS)] == [0, first - 1, len(ids) - 1]
    assert (ids[0], ids[first - 1], ids[-1]) == (2, 3, 3)
    return [[tokenizer.id_to_token(i) for i in part] for part in (ids[1 : first - 1], ids[first:-1])]


def place(word):
    return [26 * (ord(word[i]) - ord("a")) + ord(word[i + 1]) - ord("a") for i in (0, 2, 4)]


def assert_equal(one, other):
    for array in ARRAYS:
        left, right = getattr(one, array), getattr(other, array)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_documents_are_read_as_they_stand(tmp_path):
    (tmp_path / "a.txt").write_text("\n\none\r\n two \n \n\nthree\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("四。\n五。", encoding="utf-8")
    assert read_documents(tmp_path / "b.txt") == [["四。", "五。"]]
    assert read_documents([tmp_path / "a.txt", str(tmp_path / "b.txt")]) == [
        ["one", "two"],
        ["three"],
        ["四。", "五。"],
    ]


def test_unreadable_documents_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt"):
        read_documents(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"empty\.txt is empty; expected a sentence a line and a blank line"):
        read_documents([tmp_path / "empty.txt"])
    (tmp_path / "gbk.txt").write_bytes("中文".encode("gbk"))
    with pytest.raises(UserError, match=r"gbk\.txt is not UTF-8"):
        read_documents([tmp_path / "gbk.txt"])


def test_the_second_segment_follows_or_is_of_another_document(telling):
    documents, tokenizer = telling
    sizes = {(d, s): len(text.split()) for d, document in enumerate(documents) for s, text in enumerate(document)}
    examples = build_pretraining(documents, tokenizer, 24, duplicate_factor=20, short_share=0.3)
    seen = set()
    for example in examples:
        first, second = segments(example, tokenizer)
        a, b = [place(word) for word in first], [place(word) for word in second]
        for words in (first, second):  # a stretch of its document, in order
            assert " ".join(words) in " ".join(documents[place(words[0])[0]])
        whole = len(example["input_ids"]) < 24
        if whole:  # nothing was cut: segments are whole sentences
            assert a[0][2] == b[0][2] == 0
            assert all(segment[-1][2] == sizes[tuple(segment[-1][:2])] - 1 for segment in (a, b))
        follows = example["next_sentence_label"] == 0
        assert (a[0][0] == b[0][0]) == follows
        if follows:
            assert b[0][1] == a[-1][1] + 1 if whole else b[0][1] > a[-1][1]
        seen.add((a[0][0], follows, whole))
    assert len(seen) == 4 * DOCUMENTS


def test_half_of_the_seconds_that_could_follow_do(telling):
    documents, tokenizer = telling
    corpus = encode_documents(documents, tokenizer)
    rng = np.random.default_rng(0)
    alone = np.append(corpus.sentences[corpus.documents[1:] - 1], -1)  # where a document's last sentence starts
    labels = [
        label for _ in range(60) for first, _, label in segment_pairs(corpus, 20, 0.0, rng) if first.start not in alone
    ]
    assert len(labels) > 4000
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / len(labels) ** 0.5


def test_every_other_document_is_drawn_as_often(telling):
    documents, tokenizer = telling
    corpus = encode_documents(documents, tokenizer)
    owner = np.repeat(np.arange(DOCUMENTS), np.diff(corpus.sentences[corpus.documents]))
    counts = np.zeros((DOCUMENTS, DOCUMENTS))
    rng = np.random.default_rng(1)
    for _ in range(200):
        for first, second, label in segment_pairs(corpus, 20, 0.1, rng):
            counts[owner[first.start], owner[second.start]] += label
    assert (counts.diagonal() == 0).all()
    expected = counts.sum() / (DOCUMENTS * (DOCUMENTS - 1))
    others = counts.sum(0) / (DOCUMENTS - 1)
    assert expected > 10 and (abs(others - expected) < 5 * (expected / (DOCUMENTS - 1)) ** 0.5 + 0.02 * expected).all()


def test_untruncated_documents_are_used_whole(telling):
    documents, tokenizer = telling
    examples = build_pretraining(documents, tokenizer, 500, short_share=0.0)
    follows = [e for e in examples if e["next_sentence_label"] == 0]
    assert follows
    for example in follows:
        first, second = segments(example, tokenizer)
        assert " ".join(documents[place(first[0])[0]]).endswith(" ".join(first + second))


def test_a_tenth_of_the_pairs_aims_at_a_random_shorter_length(telling):
    _, tokenizer = telling
    # Sentences of one token: a pair is exactly as long as it aims at, but at a document's end.
    corpus = encode_documents([["aaaaaa"] * 20000, ["aaaaab"] * 20000], tokenizer)
    lengths = np.array(
        [
            first.stop - first.start + second.stop - second.start
            for first, second, label in segment_pairs(corpus, 21, 0.1, np.random.default_rng(0))
            if label == 0
        ]
    )
    counts = np.bincount(lengths)
    assert len(counts) == 22 and counts[:2].sum() == 0
    expected = 0.1 * len(lengths) / 20
    assert expected > 5 and (abs(counts[2:21] - expected) < 5 * expected**0.5).all()
    assert abs(counts[21] - 0.905 * len(lengths)) < 4 * (0.905 * 0.095 * len(lengths)) ** 0.5


def test_lengths_fill_the_room(chinese):
    documents, tokenizer = chinese
    long = [document for document in documents if sum(map(len, document)) > 1000]
    examples = build_pretraining(long, tokenizer, 128, short_share=0.0)
    lengths = np.diff(examples.ends, prepend=0)
    assert lengths.min() >= 5 and lengths.max() == 128
    assert (lengths == 128).mean() > 0.8


def test_what_is_too_long_is_cut_at_either_end(telling):
    _, tokenizer = telling
    words = [name(d, 0, w) for d in (0, 1) for w in range(3)]
    corpus = encode_documents([[" ".join(words[:3]) + " x" * 40], [" ".join(words[3:]) + " x" * 60]], tokenizer)
    fronts = {0: [], 1: []}
    rng = np.random.default_rng(0)
    for _ in range(300):
        for first, second, _ in segment_pairs(corpus, 41, 0.0, rng):
            assert (first.stop - first.start) + (second.stop - second.start) == 41
            assert abs((first.stop - first.start) - (second.stop - second.start)) == 1
            for segment in (first, second):
                document = int(segment.start >= 43)
                fronts[document].append(segment.start - 43 * document)
    for document, count in ((0, 43), (1, 63)):
        lost = count - 20.5
        assert abs(np.mean(fronts[document]) - lost / 2) < 0.5
        assert 0 < np.std(fronts[document]) < lost / 3


def test_english_words_are_masked_whole():
    tokenizer = train_tokenizer(["unable unknown table tables winter interest interesting"] * 3, 40, "wordpiece")
    sentence = "unable tables interesting winter unknown interest table interesting unable"
    documents = [[sentence, sentence[::-1]], [sentence] * 3]
    whole = build_pretraining(documents, tokenizer, 120, whole_words="english", duplicate_factor=30)
    apart = build_pretraining(documents, tokenizer, 120, duplicate_factor=30)
    torn = {}
    for kind, examples in (("whole", whole), ("apart", apart)):
        torn[kind] = 0
        for example in examples:
            words = []
            for i, (token, label) in enumerate(zip(unmasked(example), example["labels"], strict=True)):
                goes_on = tokenizer.id_to_token(token).startswith("##") and i != example["token_type_ids"].count(0)
                words[-1:] = [[*words[-1], label != -100]] if goes_on and i > 1 else [*words[-1:], [label != -100]]
            assert max(map(len, words)) > 3
            torn[kind] += sum(any(word) and not all(word) for word in words)
    assert torn["whole"] == 0 < torn["apart"]


def test_chinese_words_are_masked_whole_and_so_are_latin_words_among_them(data_folder):
    folder = data_folder / "tokenizers/bert-base-chinese"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tokenizer = load_tokenizer(folder)
    # As jieba splits it; ３ and Ａ are one character each but other bytes, and the vocabulary splits iphone6s.
    words = ["我们", "喜欢", "北京大学", "的", "iPhone6s", "，", "2020", "年", "Ａ", " ", "人工智能", "。"]
    text = "".join(words)
    jieba = pytest.importorskip("jieba")
    assert jieba.lcut(text) == words
    sizes = [len(tokenizer.encode(word, add_special_tokens=False)) for word in words]
    assert sizes == [2, 2, 4, 1, 2, 1, 1, 1, 1, 0, 4, 1]
    groups = np.repeat(np.arange(len(words)), sizes)
    examples = build_pretraining([[text], [text]], tokenizer, 64, whole_words="chinese", duplicate_factor=200)
    seen = set()
    for example in examples:
        for kind in (0, 1):
            part = [i for i, t in enumerate(example["token_type_ids"]) if t == kind and example["input_ids"][i] != 102]
            labels = [example["labels"][i] for i in part if example["input_ids"][i] != 101]
            chosen = {int(group) for group, label in zip(groups, labels, strict=True) if label != -100}
            assert all((label != -100) == (group in chosen) for group, label in zip(groups, labels, strict=True))
            seen |= chosen
    assert seen == set(groups.tolist())


def test_word_borders_on_real_text(chinese):
    jieba = pytest.importorskip("jieba")
    documents, tokenizer = chinese
    texts = [text for document in documents[:300] for text in document]
    corpus = encode_documents([texts], tokenizer, "chinese")
    assert len(corpus.sentences) == len(texts) + 1
    wrong = latin = 0
    for i, text in enumerate(texts):
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        spans = list(jieba.tokenize(text))
        last = None
        for n, (token, (start, _)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
            word = next(span for span in spans if span[1] <= start < span[2])
            begins = not token.startswith("##") and word != last
            wrong += begins != corpus.starts[corpus.sentences[i] + n]
            latin += token.startswith("##")
            last = word
    assert wrong == 0 and latin > 50


def test_ids_are_those_of_transformers(chinese, data_folder):
    transformers = pytest.importorskip("transformers")
    documents, tokenizer = chinese
    theirs = transformers.BertTokenizerFast.from_pretrained(data_folder / "tokenizers/bert-base-chinese")
    corpus = encode_documents(documents[:600], tokenizer)
    texts = [text for document in documents[:600] for text in document]
    assert corpus.ids.tolist() == [i for ids in theirs(texts, add_special_tokens=False)["input_ids"] for i in ids]
    pairs = [document for document in documents if len(document) == 2 and sum(map(len, document)) < 300]
    expected = {(tuple(e["input_ids"]), tuple(e["token_type_ids"])) for e in (theirs(*pair) for pair in pairs)}
    found = [e for e in build_pretraining(pairs, tokenizer, 512, short_share=0.0) if e["next_sentence_label"] == 0]
    assert len(found) > len(pairs) / 4 > 20
    for example in found:
        assert (tuple(unmasked(example)), tuple(example["token_type_ids"])) in expected


def test_no_special_token_is_predicted_or_drawn(chinese):
    documents, tokenizer = chinese
    special = {getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "unk", "cls", "sep", "mask")}
    examples = build_pretraining(documents[:500], tokenizer, 128)
    assert not special & set(examples.targets.tolist())
    starts = np.repeat(np.append(0, examples.ends[:-1]), np.diff(examples.target_ends, prepend=0))
    now = examples.ids[starts + examples.places]
    assert set(now[now != examples.targets].tolist()) & special == {tokenizer.mask_token_id}
    assert (examples.ids == tokenizer.unk_token_id).any()  # otherwise this proved less


def test_the_same_seed_gives_the_same_examples_everywhere(telling):
    documents, tokenizer = telling
    one = build_pretraining(documents, tokenizer, 16, seed=3)
    assert_equal(one, build_pretraining(documents, tokenizer, 16, seed=3))
    assert one[0] == one[:1][0] == one[-len(one)]
    assert one[0] == {
        "input_ids": [2, 5, 6, 7, 3, 4, 142, 143, 144, 3],
        "token_type_ids": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        "labels": [-100, -100, -100, -100, -100, 141, -100, -100, -100, -100],
        "next_sentence_label": 1,
    }
    other = build_pretraining(documents, tokenizer, 16, seed=4)
    assert len(other.ids) != len(one.ids) or (other.ids != one.ids).any()


def test_every_repetition_has_pairs_and_masks_of_its_own(telling):
    documents, tokenizer = telling
    once, thrice = (build_pretraining(documents, tokenizer, 16, duplicate_factor=n) for n in (1, 3))
    assert thrice[: len(once)] == list(once)
    rest = thrice[len(once) :]
    assert 1.6 * len(once) < len(rest) < 2.4 * len(once)
    assert sum(example in once[:] for example in rest) < 0.02 * len(rest)


def test_real_documents_take_seconds(chinese):
    documents, tokenizer = chinese
    start = time.process_time()
    examples = build_pretraining(documents, tokenizer, 128, duplicate_factor=2, whole_words="chinese")
    assert time.process_time() - start < 25
    tokens = len(examples.ids) - 3 * len(examples)
    assert abs(len(examples.targets) / tokens - 0.15) < 0.002
    assert sum(getattr(examples, array).nbytes for array in ARRAYS) < 6 * len(examples.ids)
    # Pairs whose second segment could not follow come on top of the half that is drawn.
    assert 0.5 < examples.next_sentence_labels.mean() < 0.75


@pytest.mark.parametrize("lacking", [["[MASK]"], ["[PAD]", "[MASK]"]])
def test_a_vocabulary_without_the_special_tokens_is_named(lacking, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([t for t in SPECIALS if t not in lacking] + ["a"]))
    message = rf"words/vocab.txt lacks {', '.join(lacking)}, which".replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(UserError, match=message):
        build_pretraining([["a"], ["a"]], load_tokenizer(tmp_path), tokenizer_name="words/vocab.txt")


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(UserError, match="the tokenizer lacks cls_token, sep_token, mask_token, which"):
        build_pretraining([["a"], ["a"]], train_tokenizer(["a"], 300))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_length": 4}, "max_length 4 is too short"),
        ({"max_length": 513, "max_positions": 512}, "max_length 513 exceeds the model's 512 positions"),
        ({"mask_share": 0.0}, "a mask share of 0.0 does not do"),
        ({"mask_share": 1.0}, "a mask share of 1.0 does not do"),
        ({"max_predictions": 0}, "max_predictions 0"),
        ({"whole_words": "chinesse"}, "did you mean 'chinese'"),
        ({"short_share": 1.5}, "short_share of 1.5"),
        ({"duplicate_factor": 0}, "duplicate_factor 0"),
    ],
)
def test_options_out_of_range_are_user_errors(options, message, telling):
    with pytest.raises(UserError, match=message):
        build_pretraining(*telling, **options)


@pytest.mark.parametrize("documents, count", [([], 0), ([["aaaaaa", "aaaaab"]], 1), ([["aaaaaa"], ["\u200b"], []], 1)])
def test_one_document_is_not_enough(documents, count, telling):
    with pytest.raises(UserError, match=f"takes 2 with text, and there is {count}; put a blank line"):
        build_pretraining(documents, telling[1])


def test_the_checksum_is_that_of_tokens_and_ids(telling, tmp_path):
    tokenizer = telling[1]
    assert (
        vocabulary_checksum(tokenizer) == vocabulary_checksum(tokenizer) and len(vocabulary_checksum(tokenizer)) == 64
    )
    for words in (["b", "a"], ["a", "b"], ["a", "c"]):
        (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *words]))
        assert vocabulary_checksum(load_tokenizer(tmp_path)) != vocabulary_checksum(tokenizer)


def test_examples_make_batches(telling):
    documents, tokenizer = telling
    examples = build_pretraining(documents, tokenizer, 16)
    rows = [row for batch in batches(examples, 8, collate=collate_pretraining) for row in batch["input_ids"].tolist()]
    assert len(rows) == len(examples)
    assert sorted(i for row in rows for i in row if i) == sorted(examples.ids.tolist())
