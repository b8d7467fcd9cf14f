"""Files of tasks: what is read, what is refused with its file and line, and encodings beside transformers'."""

import json

import pytest

from msllm.data.questions import encode_questions, read_questions
from msllm.data.tagged import TaggedSentence, encode_tagged, read_tagged, tag_scheme
from msllm.data.tasks import encode_texts, label_list, read_label_names, read_texts
from msllm.errors import UserError
from msllm.tokenization import load_tokenizer

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] ada was born in london ##don lon paris ? where a film good bad very ."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text(VOCABULARY.replace(" ", "\n") + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return load_tokenizer(folder)


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode())
        return path

    return write


def fields(texts):
    return [(t.text, t.pair, t.label) for t in texts]


def test_the_columns_of_a_header_may_stand_in_any_order(file):
    path = file("a.tsv", 'label\ttext_a\ttext_b\n1\tsay "hi\tthere\n\n0\tb, c\td\n')
    assert fields(read_texts(path)) == [('say "hi', "there", "1"), ("b, c", "d", "0")]
    assert [t.source for t in read_texts(path)] == [f"{path}, line 2", f"{path}, line 4"]
    path = file("b.tsv", "sentence2\tid\tsentence1\nx\t7\ty\n")
    assert fields(read_texts(path)) == [("y", "x", None)]


def test_without_a_header_the_label_is_the_last_column(file):
    assert fields(read_texts(file("a.tsv", "a film\t1\r\nbad\t0\r\n"))) == [("a film", None, "1"), ("bad", None, "0")]
    assert fields(read_texts(file("a.tsv", "a\tb\tyes\n"))) == [("a", "b", "yes")]


def test_csv_quotes_and_jsonl_keys(file):
    path = file("a.csv", 'text,label\n"one, ""two""\nthree",good\nfour,bad\n')
    assert fields(read_texts(path)) == [('one, "two"\nthree', None, "good"), ("four", None, "bad")]
    assert read_texts(path)[1].source.endswith("line 4")
    path = file("a.jsonl", '{"sentence1": "a\u2028b", "sentence2": "c", "label": 3}\n{"text": "d", "label": "4"}\n')
    assert fields(read_texts(path)) == [("a\u2028b", "c", "3"), ("d", None, "4")]
    assert len(read_texts(path, limit=1)) == 1


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.txt", "x\t1\n", ["'.txt'", ".tsv, .csv or .jsonl"]),
        ("a.tsv", " \n", ["is empty"]),
        ("a.tsv", "label\ttext\n", ["nothing below it"]),
        ("a.tsv", "label\ttext\n1\ta\tb\n", ["line 2 has 3 columns, expected 2 (label, text)"]),
        ("a.tsv", "one\n", ["line 1 has 1 columns", "text and label"]),
        ("a.tsv", "label\treview\n1\tx\n", ["has label, review", "text_a"]),
        ("a.tsv", "a\t1\n \t0\n", ["line 2", "text is ' '"]),
        ("a.tsv", "a\t1\nb\t\n", ["line 2", "label is ''"]),
        ("a.csv", 'text,label\n"open,1\n', ["no row of a table"]),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ', ["line 2 is not JSON"]),
        ("a.jsonl", "[1]\n", ["line 1 is list"]),
        ("a.jsonl", '{"text": 3, "label": 1}\n', ["line 1", "text is 3"]),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', ["line 1", "label is 0.5"]),
    ],
)
def test_bad_files_of_texts(file, name, content, words):
    path = file(name, content)
    with pytest.raises(UserError) as error:
        read_texts(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_labels_are_in_order_of_value_or_of_letters():
    assert label_list(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert label_list(["10", "9", "x"]) == ["10", "9", "x"]


def test_names_of_labels(file):
    path = file("labels.json", '{"label": "0", "label_desc": "neutral"}\n{"label": 1, "label_desc": "angry"}\n')
    assert read_label_names(path) == {"0": "neutral", "1": "angry"}
    with pytest.raises(UserError, match="line 2 has label '0'"):
        read_label_names(file("b.json", '{"label": "0", "label_desc": "a"}\n{"label": "0", "label_desc": "b"}\n'))
    with pytest.raises(UserError, match="line 1 has label, expected label and label_desc"):
        read_label_names(file("b.json", '{"label": "0"}\n'))


def test_texts_are_encoded_and_cut_and_counted(file, tokenizer):
    texts = read_texts(file("a.tsv", "a good film\tyes\nvery very very bad film\tno\n"))
    examples, report = encode_texts(texts, tokenizer, ["no", "yes"], 6)
    word = tokenizer.token_to_id
    assert examples[0] == {
        "input_ids": [word(w) for w in ("[CLS]", "a", "good", "film", "[SEP]")],
        "token_type_ids": [0] * 5,
        "labels": 1,
    }
    assert examples[1]["input_ids"] == [word(w) for w in ("[CLS]", "very", "very", "very", "bad", "[SEP]")]
    assert str(report) == "2 texts, 11 tokens; 1 longer than max_length 6 and cut"
    pair = read_texts(file("b.tsv", "text_a\ttext_b\na film very good\tbad\n"))
    example = encode_texts(pair, tokenizer, ["no", "yes"], 7)[0][0]
    assert example["input_ids"] == [word(w) for w in ("[CLS]", "a", "film", "very", "[SEP]", "bad", "[SEP]")]
    assert example["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1] and example["labels"] == -100


def test_a_label_outside_the_list_is_named_with_file_and_line(file, tokenizer):
    path = file("dev.tsv", "label\ttext\n1\ta\n7\tfilm\n")
    with pytest.raises(UserError) as error:
        encode_texts(read_texts(path), tokenizer, ["0", "1"], 16)
    assert f"{path}, line 3 has the label '7'" in str(error.value) and "one of 0, 1" in str(error.value)


COLUMNS = "-DOCSTART- -X- O\n\nAda NNP B-PER\nwas VBD O\n\n\nLondon NNP S-LOC\nParis NNP S-LOC\n"


def test_tagged_sentences_in_columns_and_in_json(file):
    first, second = read_tagged(file("a.conll", COLUMNS))
    assert first.tokens == ("Ada", "was") and first.tags == ("B-PER", "O")
    assert second.tags == ("S-LOC", "S-LOC") and second.place(1).endswith("a.conll, line 8")
    tabbed = read_tagged(file("a.tsv", "New York\tB-LOC\r\n?\tO\r\n"))
    assert tabbed[0].tokens == ("New York", "?") and tabbed[0].tags == ("B-LOC", "O")
    path = file(
        "a.jsonl", '{"tokens": ["Ada"], "ner_tags": [1]}\n{"tokens": ["was"], "tags": ["O"]}\n{"tokens": ["x"]}\n'
    )
    assert [s.tags for s in read_tagged(path, names=["O", "B-PER"])] == [("B-PER",), ("O",), None]
    assert [tag_scheme(t) for t in (["O", "B-X"], ["E-X", "O"], ["NN", "O"])] == ["BIO", "BIOES", None]


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.conll", "Ada B-PER\nwas\n", ["line 2 is 'was'"]),
        ("a.conll", "-DOCSTART- O\n\n", ["no sentence"]),
        ("a.conll", "Ada B-PER\nwas B_LOC\n", ["line 2 has the tag 'B_LOC'", "B-PER"]),
        ("a.jsonl", '{"tokens": []}\n', ["line 1: tokens is []"]),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "O"]}\n', ["line 1: 1 tokens"]),
        ("a.jsonl", '{"tokens": ["a"], "tags": [2]}\n', ["tag number 2", "--labels"]),
    ],
)
def test_bad_files_of_tagged_sentences(file, name, content, words):
    path = file(name, content)
    with pytest.raises(UserError) as error:
        read_tagged(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_the_first_piece_of_a_word_carries_its_label(file, tokenizer):
    sentences = read_tagged(
        file("a.conll", "Ada B-PER\nwas O\nLondon?! B-LOC\nParis B-LOC\n\nParis B-LOC\n\u200d O\n. O\n")
    )
    (first, second), report = encode_tagged(sentences, tokenizer, ["O", "B-PER", "B-LOC"], 7)
    assert first["labels"] == [-100, 1, 0, 2, -100, -100, -100]  # London?! has three pieces, Paris is cut off
    assert first["words"] == [1, 2, 3, -1] and report.truncated == 1
    assert second["labels"] == [-100, 2, 0, -100] and second["words"] == [1, -1, 2]  # a joiner has no piece
    with pytest.raises(UserError, match=r"a.conll, line 3 has the label 'B-LOC'"):
        encode_tagged(sentences[:1], tokenizer, ["O", "B-PER"], 7)


def squad(file, *qas, context="Ada was born in London."):
    return file("q.json", json.dumps({"data": [{"paragraphs": [{"context": context, "qas": list(qas)}]}]}))


def qa(text, start, name="q1"):
    return {"id": name, "question": "Where was Ada?", "answers": [{"text": text, "answer_start": start}]}


def test_answers_become_token_positions_and_windows_without_them_cls(file, tokenizer):
    questions = read_questions(squad(file, qa("London", 16)))
    (whole,), report = encode_questions(questions, tokenizer, 32)
    shown = " ".join(tokenizer.id_to_token(i) for i in whole["input_ids"])
    assert shown == "[CLS] where was ada ? [SEP] ada was born in london . [SEP]"
    assert whole["labels"] == [10, 10] and whole["context"] == 6 and whole["offsets"][4] == (16, 22)
    assert whole["token_type_ids"] == [0] * 6 + [1] * 7
    windows, report = encode_questions(questions, tokenizer, 10, doc_stride=2)
    assert [w["offsets"][0][0] for w in windows] == [0, 8, 16]
    assert [w["labels"] for w in windows] == [[0, 0], [8, 8], [6, 6]]
    assert str(report) == f"1 questions -> 3 windows, {sum(len(w['input_ids']) for w in windows)} tokens"


def test_misplaced_answers_are_counted_and_looked_for(file, tokenizer):
    questions = read_questions(
        squad(file, qa("London", 16, "right"), qa("London", 3, "moved"), qa("Paris", -1, "lost"))
    )
    examples, report = encode_questions(questions, tokenizer, 32)
    assert [e["labels"] for e in examples] == [[10, 10], [10, 10], [0, 0]]
    assert "2 answers do not stand at their answer_start, first in moved" in str(report)
    assert "1 questions have no answer in their context, first lost" in str(report)
    assert len(encode_questions(questions, tokenizer, 32, training=True)[0]) == 2
    with pytest.raises(UserError, match="none of 1 questions has an answer"):
        encode_questions(questions[2:], tokenizer, 32, training=True)


@pytest.mark.parametrize(
    "content, words",
    [
        ("[]", ['no list "data"']),
        ('{"data": []}', ["no question"]),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', ["article 1, paragraph 1: context is None"]),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "x", "question": "y", "answers": [{}]}]}]}]}',
            ["question x: text is None"],
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "x", "is_impossible": true}]}]}]}',
            ["question x has no answer", "SQuAD 2.0"],
        ),
    ],
)
def test_bad_files_of_questions(file, content, words):
    path = file("q.json", content)
    with pytest.raises(UserError) as error:
        read_questions(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_windows_with_gaps_between_them_are_refused(file, tokenizer):
    questions = read_questions(squad(file, qa("London", 16)))
    with pytest.raises(UserError, match=r"max_length 10 leaves 3 tokens.*every 4"):
        encode_questions(questions, tokenizer, 10, doc_stride=4)
    with pytest.raises(UserError, match=r"question q1 and special tokens fill max_length 7 and leave no room"):
        encode_questions(questions, tokenizer, 7, doc_stride=None)


@pytest.mark.parametrize("max_length, room, stride", [(8, 1, 1), (9, 2, 1), (10, 3, 2), (270, 263, 128)])
def test_without_a_stride_windows_begin_half_of_their_room_apart_or_128(file, tokenizer, max_length, room, stride):
    questions = read_questions(squad(file, qa("London", 16), context="Ada was born in London. " * 60))
    windows, report = encode_questions(questions, tokenizer, max_length, doc_stride=None)
    assert report.cut_questions == 0 and {len(w["input_ids"]) for w in windows[:-1]} == {max_length}
    assert len(windows[0]["offsets"]) == room
    shared = set(windows[0]["offsets"]) & set(windows[1]["offsets"])
    assert len(shared) == room - stride
    assert windows[-1]["offsets"][-1] == (60 * 24 - 2, 60 * 24 - 1)  # the last full stop


def test_windows_equal_those_of_transformers(real, data_folder):
    transformers = pytest.importorskip("transformers")
    folder = data_folder / "tokenizers" / "bert-base-chinese"
    questions = read_questions(data_folder / "cmrc2018" / "dev.json", limit=30)
    windows, _ = encode_questions(questions, real("bert-base-chinese"), 200, doc_stride=50)
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    for index, question in enumerate(questions):
        mine = [w for w in windows if w["question"] == index]
        room = 200 - 3 - len(theirs.tokenize(question.question))
        expected = theirs(
            question.question,
            question.context,
            max_length=200,
            truncation="only_second",
            stride=room - 50,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert [w["input_ids"] for w in mine] == expected["input_ids"]
        assert [w["token_type_ids"] for w in mine] == expected["token_type_ids"]
        for window, offsets in zip(mine, expected["offset_mapping"]):
            assert window["offsets"] == [tuple(o) for o in offsets[window["context"] : -1]]


def test_real_answers_can_be_read_off_their_positions(real, data_folder):
    questions = read_questions(data_folder / "cmrc2018" / "dev.json", limit=300)
    examples, report = encode_questions(questions, real("bert-base-chinese"), 384, 128, training=True)
    held = [e for e in examples if e["labels"][0]]
    assert {e["question"] for e in held} == set(range(300)) - {questions.index(q) for q in questions if not q.place()}
    for example in held:
        question = questions[example["question"]]
        first, last = (example["offsets"][place - example["context"]] for place in example["labels"])
        start, end = question.place()
        # A number may be one token where the answer is a part of it.
        assert first[0] <= start < first[1] and last[0] < end <= last[1]
    articles = json.loads((data_folder / "cmrc2018" / "dev.json").read_text())["data"]
    rows = [(p["context"], q) for a in articles for p in a["paragraphs"] for q in p["qas"]][:300]
    answers = [(context, q["id"], a["text"], a["answer_start"]) for context, q in rows for a in q["answers"]]
    wrong = [name for context, name, text, start in answers if not context[start:].startswith(text)]
    assert report.misplaced == len(wrong) > 0 and report.first == wrong[0]


def test_tagged_words_equal_those_of_transformers(real, data_folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast.from_pretrained(data_folder / "tokenizers" / "bert-base-uncased")
    tokens = ["Größe", "electroencephalogram", "U.S.", "你好", "\u200d", "(", "it's", "x"]
    (example,), _ = encode_tagged([TaggedSentence(tuple(tokens))], real("bert-base-uncased"), [], 64)
    expected = theirs(tokens, is_split_into_words=True)
    assert example["input_ids"] == expected["input_ids"]
    words = expected.word_ids()
    assert example["words"] == [words.index(i) if i in words else -1 for i in range(len(tokens))]


def test_the_real_files_are_read_whole(data_folder):
    sizes = {"smp2020_ewect": (27766, 2000, 5000), "chnsenticorp": (9600, 1200, 1200), "sst2": (6920, 872, 1821)}
    for name, counts in sizes.items():
        parts = [read_texts(data_folder / name / f"{part}.tsv") for part in ("train", "dev", "test")]
        assert tuple(map(len, parts)) == counts
        assert len(label_list(t.label for t in parts[0])) == (6 if name == "smp2020_ewect" else 2)
