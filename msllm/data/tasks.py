"""Labelled texts: reading their files and encoding them for a BERT.

Texts and pairs of texts, to classify (.tsv, .csv, .jsonl; a hub dataset has the same columns)::

    label<TAB>text_a<TAB>text_b                                   a header names the columns, in any order
    a stirring , funny film<TAB>1                                 without a header the last column is the label
    {"sentence1": "Is it far?", "sentence2": "Is it near?", "label": 0}

The first text is named text, text_a, sentence or sentence1, the second one, which may be missing, text_b or sentence2.
In .tsv files a quote is a character like any other; .csv files quote as spreadsheets do. A folder, such as a part of
IMDB (Maas et al. 2011), has a folder for each label, neg/ and pos/, with a .txt file for each text; unsup/ is left out.
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
_HUB_NAME = r"[\w.-]+(/[\w.-]+)?(:[\w-]+)?"


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, and its class; ``source`` is its file and line, for messages."""

    text: str
    pair: str | None = None
    label: str | None = None
    source: str = "record"


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
        return _checked([labelled_text(row, f"{hub}, record {number}") for number, row in known], name)
    if path.suffix not in (".tsv", ".csv", ".jsonl"):
        raise UserError(f"{path} has the ending {path.suffix or 'none'!r}, expected .tsv, .csv or .jsonl; convert it")
    text = content_of(path)
    rows = json_lines(path, text) if path.suffix == ".jsonl" else _table_rows(path, text)
    texts = [labelled_text(row, f"{path}, line {line}") for line, row in itertools.islice(rows, limit)]
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
    return [labelled_text({"text": read_text(file), "label": label}, str(file)) for label, file in chosen]


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


def content_of(path: Path) -> str:
    """Returns the text of a file of records; UserError where there is none."""
    text = read_text(path)
    if not text.strip():
        raise UserError(
            f"{path} is empty; expected records such as those at the top of msllm/data/tasks.py and tagged.py"
        )
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


def labelled_text(row: Mapping, source: str) -> LabelledText:
    """Returns a record as the columns of a file name it; UserError, which names ``source``, where it is none."""

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
    for n, row in json_lines(Path(path), content_of(Path(path))):
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
