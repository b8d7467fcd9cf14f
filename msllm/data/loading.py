"""Reading records from files, folders and the hub."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msllm.data.formats import SUMMARY_KEYS, Record, parse_record
from msllm.data.order import random_order
from msllm.data.summaries import is_lcsts, parse_lcsts
from msllm.errors import UserError, nearest
from msllm.files import json_fault, read_json, read_text

SUFFIXES = (".json", ".jsonl", ".txt")
# NLPCC 2017 keeps a JSON object a line in a .txt file.
_SUMMARY_LINES = re.compile(rf'\s*\{{\s*"(?:article|{"|".join(SUMMARY_KEYS)})"\s*:')
T = TypeVar("T")


def load_records(
    source: str | Path,
    *,
    limit: int | None = None,
    seed: int | None = None,
    split_text: bool = True,
    split: str = "train",
    min_score: int | None = None,
) -> list[Record]:
    """Loads training records in any of the formats that msllm.data.formats describes.

    Args:
        source: a .json, .jsonl or .txt file; a folder of such files, read in the order of their names; or the name
            of a dataset on the Hugging Face hub ("owner/name"), which needs the ``datasets`` package.
        limit: records to keep: the first ones, or with ``seed`` a random choice, in their order.
        seed: of that choice.
        split_text: blank lines in a .txt file separate documents; False: the file is one document.
        split: the part of a hub dataset.
        min_score: of files of LCSTS only: the least human_label; see msllm.data.summaries.

    Returns:
        At least one record.

    Raises:
        UserError: missing or empty file, not UTF-8, not JSON, or a bad record (named by file and number from 1).
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} leaves no records; give 1 or more")
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            found = ", ".join(sorted(file.name for file in path.iterdir())[:20])
            raise UserError(f"{path} has no {', '.join(SUFFIXES)} file; it holds: {found or 'nothing'}")
        records = [record for file in files for record in _read_file(file, split_text, min_score)]
    elif path.is_file():
        records = _read_file(path, split_text, min_score)
    elif path.suffix in SUFFIXES or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{source} does not exist{nearest(path.name, names)}; check the path")
    else:
        _refuse_score(min_score, str(source))
        records = [
            parse_record({key: value for key, value in row.items() if value is not None}, f"{source}, record {n}")
            for n, row in read_hub_rows(str(source), split)
        ]
    if limit is None or limit >= len(records):
        return records
    if seed is None:
        return records[:limit]
    return [records[i] for i in sorted(random_order(len(records), seed)[:limit])]


def load_summaries(
    source: str | Path, limit: int | None = None, min_score: int | None = None, split: str = "train"
) -> list[Record]:
    """Loads articles with their summaries; arguments and errors as load_records, which reads other records too.

    Raises:
        UserError: a record of another kind, or with an empty summary.
    """
    records = load_records(source, limit=limit, min_score=min_score, split=split)
    for record in records:
        if record.article is None or not record.completion.strip():
            lack = "is no article with its summary" if record.article is None else "has an empty summary"
            raise UserError(f'{record.source} {lack}; expected {{"article": ..., "summary": ...}} or LCSTS; mend it')
    return records


def train_validation_split(
    records: Sequence[T], validation: float | int = 0.1, seed: int = 0
) -> tuple[list[T], list[T]]:
    """Splits records in two, the same way for the same seed; each part keeps its order.

    Args:
        records: any sequence.
        validation: the validation part, as a fraction below 1 or a number of records.
        seed: of the choice.

    Raises:
        UserError: one of the parts would be empty.
    """
    count = round(validation * len(records)) if isinstance(validation, float) else validation
    if not 0 < count < len(records):
        raise UserError(
            f"validation {validation} of {len(records)} records gives {count} for validation and "
            f"{len(records) - count} for training; each needs at least 1"
        )
    held_out = set(random_order(len(records), seed)[:count].tolist())
    return (
        [record for i, record in enumerate(records) if i not in held_out],
        [record for i, record in enumerate(records) if i in held_out],
    )


def _refuse_score(min_score: int | None, name: str) -> None:
    if min_score is not None:
        raise UserError(
            f"min_score is {min_score}, and {name} is no file of LCSTS, which alone has scores; leave it out"
        )


def _read_file(path: Path, split_text: bool, min_score: int | None) -> list[Record]:
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} has the ending {path.suffix or 'none'!r}, expected one of {', '.join(SUFFIXES)}; "
            f"rename or convert it"
        )
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; expected records such as those in the help of msllm.data.formats")
    if path.suffix == ".txt" and is_lcsts(text):
        return parse_lcsts(text, path, min_score)
    _refuse_score(min_score, str(path))
    if path.suffix == ".txt" and not _SUMMARY_LINES.match(text):
        parts = re.split(r"\n\s*\n", text) if split_text else [text]
        documents = [part.strip("\r\n") if split_text else part for part in parts if part.strip()]
        return [Record(text=part, source=f"{path}, document {n}") for n, part in enumerate(documents, 1)]
    if path.suffix in (".jsonl", ".txt") or _is_lines(text):
        numbered: Iterable[tuple[str, Any]] = ((f"line {n}", row) for n, row in json_lines(path, text))
    else:
        values = read_json(path)
        if not isinstance(values, list):
            raise UserError(f"{path} holds one {type(values).__name__}, expected a list of records; put it in [ ]")
        if not values:
            raise UserError(f"{path} holds an empty list, expected records")
        numbered = ((f"record {n}", value) for n, value in enumerate(values, 1))
    return [parse_record(value, f"{path}, {where}") for where, value in numbered]


def _is_lines(text: str) -> bool:
    # JSON Lines is often named .json: its first line is a record by itself and more follow.
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except json.JSONDecodeError:
        return False
    return True


def json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, object) of the text of a JSON Lines file; UserError where a line is no object."""
    # Not splitlines(): it also breaks at U+2028 and the like, which JSON strings may hold.
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise UserError(
                f"{path}, line {n} is not JSON: {json_fault(e)} at column {e.colno}; mend that line"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {n} is {type(row).__name__}, expected an object; mend that line")
        yield n, row


def read_hub_rows(name: str, split: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the rows of a hub dataset with their numbers from 1; UserError where it cannot be had."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{name} is not a file here; to read it from the Hugging Face hub, pip install datasets"
        ) from None
    logging.disable(logging.WARNING)  # its retries are pages of log; the error below says it in a line
    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as e:  # network, permission, name and format errors share no base class
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(
            f"{name} is not a file here, and the Hugging Face hub did not give it: {reason}; "
            f"check the name, or download it and give the file"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    yield from enumerate(rows, 1)
