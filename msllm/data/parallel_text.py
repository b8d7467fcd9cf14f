"""Parallel corpora: sentences and their translations, from files or the hub, and their ids."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msllm.data.batching import Batch
from msllm.data.encoding import IGNORED
from msllm.data.loading import read_hub_rows
from msllm.errors import UserError
from msllm.files import decode_text, json_fault, read_text
from msllm.tokenization import Tokenizer


@dataclass
class ParallelText:
    """Pairs of sentences.

    Attributes:
        source, target: the sentences, without spaces around them.
        dropped: pairs left out because one side is empty.
        first_dropped: where the first of them stands, or "".
    """

    source: list[str]
    target: list[str]
    dropped: int = 0
    first_dropped: str = ""

    def __len__(self) -> int:
        return len(self.source)

    def first(self, count: int) -> "ParallelText":
        """Returns the first ``count`` pairs."""
        if count < 1:
            raise UserError(f"limit {count} leaves no pairs; give 1 or more")
        return ParallelText(self.source[:count], self.target[:count])

    def last(self, count: int) -> "ParallelText":
        """Returns the last ``count`` pairs."""
        return ParallelText(self.source[-count:], self.target[-count:])

    def __str__(self) -> str:
        note = f"; {self.dropped} dropped for an empty side, first {self.first_dropped}" if self.dropped else ""
        return f"{len(self)} pairs{note}"


def read_parallel(source: str | Path, target: str | Path | None = None, split: str = "train") -> ParallelText:
    """Reads sentence pairs.

    Args:
        source: with ``target``, the file of the source language, a sentence a line; alone, a .tsv (source, tab,
            target) or .jsonl ({"translation": {"de": ..., "en": ...}}, or {"source": ..., "target": ...}) with both,
            or the name of a dataset on the Hugging Face hub (rows of two texts, source first). Files may be .gz.
        target: the file of the target language, line by line the translation of ``source``.
        split: of a hub dataset.

    Raises:
        UserError: a missing file, unequal numbers of lines, a line without a tab, no pair left.
    """
    if target is not None:
        pairs = _two_files(Path(source), Path(target))
    elif re.search(r"\.(tsv|jsonl)(\.gz)?$", str(source)):
        pairs = _one_file(Path(source))
    elif Path(source).exists():
        raise UserError(f"{source} alone is no parallel corpus: expected .tsv or .jsonl; or give the target file too")
    else:
        rows = read_hub_rows(str(source), split)
        pairs = ((f"{source}, record {n}", *_two_texts(row, f"{source}, record {n}")) for n, row in rows)
    text = ParallelText([], [])
    for where, one, other in pairs:
        one, other = one.strip(), other.strip()
        if one and other:
            text.source.append(one)
            text.target.append(other)
        else:
            text.dropped += 1
            text.first_dropped = text.first_dropped or where
    if not len(text):
        raise UserError(f"{source} has no pair with text on both sides; check the files")
    return text


def read_lines(path: str | Path) -> list[str]:
    """Returns the lines of a UTF-8 file, plain or .gz; the last one may lack its line feed."""
    path = Path(path)
    if path.suffix == ".gz":
        try:
            text = decode_text(gzip.decompress(path.read_bytes()), path)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"cannot read {path}: {e}; check the path, or unpack it again") from None
    else:
        text = read_text(path)
    return split_lines(text)


def split_lines(text: str) -> list[str]:
    """Returns the lines of a text; unlike splitlines(), U+2028 and the like, which sentences may hold, end none."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _two_files(source: Path, target: Path) -> Iterator[tuple[str, str, str]]:
    sides = read_lines(source), read_lines(target)
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{source} has {len(sides[0])} lines and {target} {len(sides[1])}: line n of one must be the "
            f"translation of line n of the other; take both from one corpus"
        )
    return ((f"line {n}", one, other) for n, (one, other) in enumerate(zip(*sides), 1))


def _one_file(path: Path) -> Iterator[tuple[str, str, str]]:
    for n, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {n}"
        if ".jsonl" in path.suffixes:
            try:
                yield where, *_two_texts(json.loads(line), where)
            except json.JSONDecodeError as e:
                raise UserError(f"{where} is not JSON: {json_fault(e)} at column {e.colno}; mend that line") from None
        else:
            columns = line.split("\t")
            if len(columns) != 2:
                raise UserError(
                    f"{where} has {len(columns)} columns, expected two: source, tab, target; keep those two"
                )
            yield where, *columns


def _two_texts(row: Mapping, where: str) -> tuple[str, str]:
    row = row if isinstance(row, Mapping) else {}
    row = row["translation"] if isinstance(row.get("translation"), Mapping) else row
    pair = [row["source"], row["target"]] if {"source", "target"} <= row.keys() else list(row.values())
    if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise UserError(f"{where} has the keys {', '.join(row) or 'none'}; expected two texts, source and target")
    return pair[0], pair[1]


def encode_pairs(text: ParallelText, tokenizer: Tokenizer, max_length: int) -> tuple[list[dict], int]:
    """Returns examples {"input_ids": source and eos, "labels": target and eos}, and the number of pairs left out.

    Args:
        max_length: pairs with more tokens on a side are left out: cut, they would no longer be translations.

    Raises:
        UserError: nothing is left.
    """
    eos = [tokenizer.eos_token_id]
    sides = [
        [encoding.ids + eos for encoding in tokenizer.backend.encode_batch(side, add_special_tokens=False)]
        for side in (text.source, text.target)
    ]
    kept = [
        {"input_ids": one, "labels": other}
        for one, other in zip(*sides, strict=True)
        if max(len(one), len(other)) <= max_length
    ]
    if not kept:
        raise UserError(f"all {len(text)} pairs have more than {max_length} tokens on a side; raise max_length")
    return kept, len(text) - len(kept)


def pair_length(example: Mapping[str, Sequence[int]]) -> int:
    """The tokens of the longer side."""
    return max(len(example["input_ids"]), len(example["labels"]))


def collate_pairs(
    examples: Sequence[Mapping[str, Sequence[int]]],
    pad_token_id: int | None = None,
    pad_to_multiple_of: int | None = None,
    start_id: int = 0,
) -> Batch:
    """Pads pairs into one batch.

    Returns:
        int32: input_ids and attention_mask (B, S); decoder_input_ids (B, T), the target moved one to the right behind
        ``start_id``; labels (B, T), -100 at padding.
    """
    multiple = pad_to_multiple_of or 1
    S, T = (
        -(-max(1, *(len(e[key]) for e in examples)) // multiple) * multiple if examples else multiple
        for key in ("input_ids", "labels")
    )
    pad = 0 if pad_token_id is None else pad_token_id
    batch = {
        "input_ids": np.full((len(examples), S), pad, np.int32),
        "attention_mask": np.zeros((len(examples), S), np.int32),
        "decoder_input_ids": np.full((len(examples), T), pad, np.int32),
        "labels": np.full((len(examples), T), IGNORED, np.int32),
    }
    for row, example in enumerate(examples):
        source, target = example["input_ids"], example["labels"]
        batch["input_ids"][row, : len(source)] = source
        batch["attention_mask"][row, : len(source)] = 1
        batch["labels"][row, : len(target)] = target
        batch["decoder_input_ids"][row, : len(target)] = [start_id, *target[:-1]] if target else []
    return batch
