"""Labelled texts and tagged sentences: reading their files and encoding them for a BERT.

Texts and pairs of texts, to classify (.tsv, .csv, .jsonl; a hub dataset has the same columns)::

    label<TAB>text_a<TAB>text_b                                   a header names the columns, in any order
    a stirring , funny film<TAB>1                                 without a header the last column is the label
    {"sentence1": "Is it far?", "sentence2": "Is it near?", "label": 0}

The first text is named text, text_a, sentence or sentence1, the second one, which may be missing, text_b or sentence2.
In .tsv files a quote is a character like any other; .csv files quote as spreadsheets do. A folder, such as a part of
IMDB (Maas et al. 2011), has a folder for each label, neg/ and pos/, with a .txt file for each text; unsup/ is left out.

Sentences with a tag a token, to recognise entities (.jsonl; any other ending is columns)::

    Alex B-PER                       token first, tag last, a blank line between sentences
    {"tokens": ["Alex", "left"], "ner_tags": ["B-PER", "O"]}
"""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msllm.data.encoding import IGNORED
from msllm.data.loading import json_lines, read_hub_rows
from msllm.data.order import random_order
from msllm.errors import UserError, nearest
from msllm.files import read_text
from msllm.tokenization import Tokenizer

TEXT, PAIR, LABEL = ("text", "text_a", "sentence", "sentence1"), ("text_b", "sentence2"), ("label",)
TAGS = ("ner_tags", "tags", "labels")
_HUB_NAME = r"[\w.-]+(/[\w.-]+)?(:[\w-]+)?"


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, and its class; ``source`` is its file and line, for messages."""

    text: str
    pair: str | None = None
    label: str | None = None
    source: str = "record"


@dataclass(frozen=True)
class TaggedSentence:
    """Tokens and their tags, None where the file has none.

    Attributes:
        path, line: where the sentence begins.
        columns: whether each token has a line of its own.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    path: str = "sentence"
    line: int = 1
    columns: bool = False

    def place(self, token: int) -> str:
        """Returns where a token stands, for messages."""
        return f"{self.path}, line {self.line + token}" if self.columns else f"{self.path}, line {self.line}"


@dataclass
class TaskReport:
    """What became of a file: counts of records, of examples and their tokens, and of what was cut."""

    kind: str
    max_length: int
    records: int = 0
    examples: int = 0
    tokens: int = 0
    truncated: int = 0

    def __str__(self) -> str:
        return (
            f"{self.records} {self.kind}, {self.tokens} tokens; "
            f"{self.truncated} longer than max_length {self.max_length} and cut"
        )


def read_texts(path: str | Path, limit: int | None = None) -> list[LabelledText]:
    """Reads labelled texts, the first ``limit`` of them; the formats stand at the top of this module.

    Args:
        path: a file or folder, or the name of a hub dataset and, after a colon, its split: "imdb:test", train by
            default.
        limit: of a folder, as many of every label as of the others; of a hub dataset, a random choice.

    Raises:
        UserError: a missing or empty file, an unknown ending, columns or keys that are not there, an empty text, labels
            of which some are numbers and some are names.
    """
    name, path = str(path), Path(path)
    if path.is_dir():
        return _folder_texts(path, limit)
    if not path.exists() and re.fullmatch(_HUB_NAME, name) and not path.suffix:
        hub, _, split = name.partition(":")
        rows = list(read_hub_rows(hub, split or "train"))
        if limit is not None:  # a hub's split often has one label first, then the other
            rows = [rows[i] for i in sorted(random_order(len(rows), 0)[:limit])]
        # -1 stands there for a label that is kept secret.
        known = [(number, {k: v for k, v in row.items() if (k, v) != ("label", -1)}) for number, row in rows]
        return _checked([_labelled(row, f"{hub}, record {number}") for number, row in known], name)
    if path.suffix not in (".tsv", ".csv", ".jsonl"):
        raise UserError(f"{path} has the ending {path.suffix or 'none'!r}, expected .tsv, .csv or .jsonl; convert it")
    text = _content(path)
    rows = json_lines(path, text) if path.suffix == ".jsonl" else _table_rows(path, text)
    texts = [_labelled(row, f"{path}, line {line}") for line, row in itertools.islice(rows, limit)]
    if not texts:
        raise UserError(f"{path} has a header and nothing below it; add records")
    return _checked(texts, path)


def _folder_texts(path: Path, limit: int | None) -> list[LabelledText]:
    labels = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and folder.name != "unsup")
    files = {label: sorted((path / label).glob("*.txt")) for label in labels}
    empty = [label for label in labels if not files[label]]
    if len(labels) < 2 or empty:
        found = f"no .txt file in {empty[0]}" if empty else f"{len(labels)} folders"
        raise UserError(
            f"{path} is a folder with {found}; expected a folder of .txt files for each of two labels or more, such as "
            f"neg and pos; give that folder, or a file"
        )
    # Turn by turn, so that the first records of a limit are not all of one label.
    turns = itertools.zip_longest(*([(label, file) for file in files[label]] for label in labels))
    chosen = itertools.islice((pair for turn in turns for pair in turn if pair is not None), limit)
    return [_labelled({"text": read_text(file), "label": label}, str(file)) for label, file in chosen]


def _checked(texts: list[LabelledText], where: str | Path) -> list[LabelledText]:
    """Refuses labels of which some are numbers and some are names: mostly two files in one."""
    kinds: dict[bool, LabelledText] = {}
    for text in texts:
        if text.label is not None:
            kinds.setdefault(_is_number(text.label), text)
    if len(kinds) == 2:
        raise UserError(
            f"{kinds[False].source} has the label {kinds[False].label!r}, a name, and {kinds[True].source} "
            f"{kinds[True].label!r}, a number; expected one kind in {where}; correct one of them"
        )
    return texts


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", label) is not None


def _content(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; expected records such as those at the top of msllm/data/tasks.py")
    return text


def _table_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping]]:
    """Yields (line number, column -> value) of a table with or without a header."""
    columns: list[str] | None = None
    for line, row in _csv_cells(path, text) if path.suffix == ".csv" else _tsv_cells(text):
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns, is_header = _columns(path, line, row)
            if is_header:
                continue
        if len(row) != len(columns):
            raise UserError(
                f"{path}, line {line} has {len(row)} columns, expected {len(columns)} "
                f"({', '.join(columns)}); mend that line"
            )
        yield line, dict(zip(columns, row))


def _tsv_cells(text: str) -> Iterator[tuple[int, list[str]]]:
    for n, line in enumerate(text.split("\n"), 1):
        yield n, line.removesuffix("\r").split("\t")


def _csv_cells(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as e:
        raise UserError(f"{path}, line {reader.line_num} is no row of a table: {e}; mend that line") from None


def _columns(path: Path, line: int, row: list[str]) -> tuple[list[str], bool]:
    """Returns the names of the columns, and whether the first row is a header."""
    names = [cell.strip().lower() for cell in row]
    if any(name in TEXT + PAIR + LABEL for name in names):
        return names, True
    if len(row) not in (2, 3):
        raise UserError(
            f"{path}, line {line} has {len(row)} columns and names none of {', '.join(TEXT + PAIR + LABEL)}; without a "
            f"header expected are text and label, or text, second text and label"
        )
    return ["text", *(["text_b"] if len(row) == 3 else []), "label"], False


def _labelled(row: Mapping, source: str) -> LabelledText:
    def find(names: Sequence[str]) -> str | None:
        key = next((name for name in names if name in row), None)
        if key is None:
            return None
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{source}: {key} is {row[key]!r}, expected a text; mend or remove the record")
        return row[key]

    text, label = find(TEXT), row.get("label")
    if text is None:
        raise UserError(f"{source} has {', '.join(map(str, row))}, expected one of {', '.join(TEXT)}; rename it")
    if label is not None and (isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip()):
        raise UserError(f"{source}: label is {label!r}, expected a name or a whole number; mend the record")
    return LabelledText(text, find(PAIR), None if label is None else str(label).strip(), source)


def label_list(labels: Iterable[str]) -> list[str]:
    """Returns the different labels in order: by value where all are whole numbers, else by their letters."""
    found = sorted(set(labels))
    return sorted(found, key=int) if all(map(_is_number, found)) else found


def read_label_names(path: str | Path) -> dict[str, str]:
    """Reads what labels mean from JSON Lines {"label": "0", "label_desc": "neutral"}: label -> name, in their order.

    Raises:
        UserError: a line without these keys, or two labels of one name.
    """
    names: dict[str, str] = {}
    for n, row in json_lines(Path(path), _content(Path(path))):
        if not {"label", "label_desc"} <= row.keys():
            raise UserError(f"{path}, line {n} has {', '.join(row)}, expected label and label_desc; rename its keys")
        name = str(row["label_desc"])
        if str(row["label"]) in names or name in names.values():
            raise UserError(f"{path}, line {n} has label {row['label']!r} or name {name!r} a second time; remove it")
        names[str(row["label"])] = name
    return names


def label_number(label: str, labels: Sequence[str], source: str) -> int:
    """Returns the place of ``label`` in ``labels``; UserError names ``source`` where it is not among them."""
    try:
        return labels.index(label)
    except ValueError:
        raise UserError(
            f"{source} has the label {label!r}{nearest(label, labels)}, expected one of {', '.join(labels)}; "
            f"correct it, or give all labels with --labels"
        ) from None


def encode_texts(
    texts: Sequence[LabelledText], tokenizer: Tokenizer, labels: Sequence[str], max_length: int
) -> tuple[list[dict], TaskReport]:
    """Encodes texts as ``input_ids``, ``token_type_ids`` and ``labels``, the number of the class, -100 without one.

    Args:
        max_length: most ids of an example; of a pair, the longer text is cut first.

    Raises:
        UserError: a label that is not in ``labels``, with its file and line.
    """
    examples, report = [], TaskReport("texts", max_length)
    for record in texts:
        label = IGNORED if record.label is None else label_number(record.label, labels, record.source)
        ids, types = tokenizer.encode_pair(record.text, record.pair)
        if len(ids) > max_length:
            ids, types = tokenizer.encode_pair(record.text, record.pair, max_length)
            report.truncated += 1
        examples.append({"input_ids": ids, "token_type_ids": types, "labels": label})
        report.tokens += len(ids)
    report.records = report.examples = len(examples)
    return examples, report


def read_tagged(path: str | Path, limit: int | None = None, names: Sequence[str] | None = None) -> list[TaggedSentence]:
    """Reads tagged sentences, the first ``limit`` of them; the formats stand at the top of this module.

    Args:
        names: what tags that are numbers mean, by number.

    Raises:
        UserError: a missing or empty file, a line without a tag, tokens and tags that do not pair up, a number
            without names, tags of which only some are of the form B-X.
    """
    path = Path(path)
    text = _content(path)
    rows = _json_sentences(path, text, names) if path.suffix == ".jsonl" else _column_sentences(path, text)
    sentences = list(itertools.islice(rows, limit))
    if not sentences:
        raise UserError(f"{path} has no sentence; expected a token and its tag a line")
    _check_tags(sentences)
    return sentences


def _column_sentences(path: Path, text: str) -> Iterator[TaggedSentence]:
    rows: list[list[str]] = []
    for n, line in enumerate([*text.split("\n"), ""], 1):
        # Where tabs stand between the columns, a token may hold spaces.
        row = line.strip("\r").split("\t") if "\t" in line else line.split()
        if not any(cell.strip() for cell in row):
            if rows:
                yield _columns_to_sentence(path, rows, n - len(rows))
            rows = []
        elif row[0] != "-DOCSTART-":
            if len(row) < 2 or not row[0].strip() or not row[-1].strip():
                raise UserError(f"{path}, line {n} is {line[:60]!r}, expected a token and its tag; mend that line")
            rows.append(row)


def _columns_to_sentence(path: Path, rows: list[list[str]], line: int) -> TaggedSentence:
    tokens, tags = zip(*((row[0].strip(), row[-1].strip()) for row in rows))
    return TaggedSentence(tokens, tags, str(path), line, True)


def _json_sentences(path: Path, text: str, names: Sequence[str] | None) -> Iterator[TaggedSentence]:
    for n, row in json_lines(path, text):
        tokens, key = row.get("tokens"), next((key for key in TAGS if key in row), None)
        if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t.strip() for t in tokens):
            raise UserError(f"{path}, line {n}: tokens is {str(tokens)[:60]}, expected a list of words; mend that line")
        tags = None
        if key is not None:
            if not isinstance(row[key], list) or len(row[key]) != len(tokens):
                raise UserError(f"{path}, line {n}: {len(tokens)} tokens, but {key} is {str(row[key])[:60]}; mend it")
            tags = tuple(_tag(tag, names, f"{path}, line {n}") for tag in row[key])
        yield TaggedSentence(tuple(tokens), tags, str(path), n)


def _tag(tag, names: Sequence[str] | None, source: str) -> str:
    if isinstance(tag, str) and tag.strip():
        return tag.strip()
    if isinstance(tag, bool) or not isinstance(tag, int):
        raise UserError(f"{source} has the tag {tag!r}, expected a name such as B-PER; mend it")
    if names is None or not 0 <= tag < len(names):
        given = "no names were given" if names is None else f"{len(names)} names were given"
        raise UserError(f"{source} has the tag number {tag}, and {given}; name all tags by number with --labels")
    return names[tag]


def tag_scheme(tags: Iterable[str]) -> str | None:
    """Returns how tags mark entities: "BIO", "BIOES", or None where they mark none, as parts of speech."""
    beginnings = {tag[:2] for tag in tags if is_entity_tag(tag)}
    return None if not beginnings else "BIOES" if beginnings & {"E-", "S-"} else "BIO"


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is of the form B-X, I-X, E-X or S-X."""
    return re.fullmatch(r"[BIES]-.+", tag) is not None


def _check_tags(sentences: Sequence[TaggedSentence]) -> None:
    """Refuses a file in which some tags are entities' and some are neither that nor O: mostly a slip of the pen."""
    places = ((s, i, tag) for s in sentences for i, tag in enumerate(s.tags or ()))
    entity, plain = False, None
    for sentence, i, tag in places:
        entity = entity or is_entity_tag(tag)
        if plain is None and tag != "O" and not is_entity_tag(tag):
            plain = (sentence.place(i), tag)
    if entity and plain:
        raise UserError(
            f"{plain[0]} has the tag {plain[1]!r}, others are of the form B-X; expected O or one of B-, I-, E-, S- and "
            f"a type, such as B-PER; correct it"
        )


def encode_tagged(
    sentences: Sequence[TaggedSentence], tokenizer: Tokenizer, labels: Sequence[str], max_length: int
) -> tuple[list[dict], TaskReport]:
    """Encodes sentences as ``input_ids``, ``token_type_ids``, ``labels`` and ``words``.

    A word's first piece carries its label, all else -100 (Devlin et al. 2019, section 5.3). ``words`` holds the
    position of each word's first piece, -1 where the word was cut off or has no piece.

    Raises:
        UserError: a tag that is not in ``labels``, with its file and line.
    """
    examples, report = [], TaskReport("sentences", max_length)
    room = max_length - tokenizer.backend.num_special_tokens_to_add(False)
    if room < 1:
        raise UserError(f"max_length {max_length} leaves no room for a word; use at least {max_length - room + 1}")
    for sentence in sentences:
        encoded = tokenizer.backend.encode(list(sentence.tokens), is_pretokenized=True, add_special_tokens=False)
        report.truncated += len(encoded) > room
        encoded.truncate(room)
        encoded = tokenizer.backend.post_process(encoded, None, True)
        words = [-1] * len(sentence.tokens)
        for position, word in reversed(list(enumerate(encoded.word_ids))):
            if word is not None:
                words[word] = position
        numbers = [IGNORED] * len(encoded)
        for i, tag in enumerate(sentence.tags or ()):
            number = label_number(tag, labels, sentence.place(i))
            if words[i] >= 0:
                numbers[words[i]] = number
        ids, types = encoded.ids, encoded.type_ids
        examples.append({"input_ids": ids, "token_type_ids": types, "labels": numbers, "words": words})
        report.tokens += len(ids)
    report.records = report.examples = len(examples)
    return examples, report
