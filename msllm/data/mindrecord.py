"""BERT's pre-training examples as MindRecord files, a folder of shards with a manifest.

Shards hold stretches of the examples, in order; which worker trains on which is a matter of msllm.data.batches alone,
so that the same folder serves any number of workers.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from msllm import signals
from msllm.data.pretraining import Collector, PretrainingData, vocabulary_checksum
from msllm.errors import UserError
from msllm.files import atomic_folder, read_json, write_json
from msllm.tokenization import Tokenizer

MANIFEST = "manifest.json"
_FORMAT = "msllm pre-training examples, version 1"
_SCHEMA = {
    "index": {"type": "int64"},
    "input_ids": {"type": "int32", "shape": [-1]},
    "first_length": {"type": "int32"},
    "places": {"type": "int32", "shape": [-1]},
    "targets": {"type": "int32", "shape": [-1]},
    "next_sentence_label": {"type": "int32"},
}
_EXAMPLE = ("input_ids", "places", "targets", "first_length", "next_sentence_label")  # as Collector.add takes it
_ROWS = 2000  # handed to the writer at a time
_HEADER, _PAGE = 1 << 20, 1 << 22  # bytes; by default a file of few examples takes 50 MB


def write_shards(data: PretrainingData, folder: str | Path, shards: int = 1) -> None:
    """Writes examples to a new folder, or in the place of one that this function wrote.

    Args:
        data: see msllm.data.pretraining.
        folder: gets manifest.json and, for each shard, a MindRecord file and its index (.db).
        shards: how many files, of nearly the same number of examples.

    Raises:
        UserError: more shards than examples, a folder that holds something else, or a full disk.
    """
    folder = Path(folder)
    if not 1 <= shards <= len(data):
        raise UserError(f"{len(data)} examples do not fill {shards} shards; give a number from 1 to {len(data)}")
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and holds no {MANIFEST}; give a new folder, or empty it")
    bounds = [len(data) * i // shards for i in range(shards + 1)]
    with atomic_folder(folder) as tmp:
        files = []
        for shard in range(shards):
            name = f"pretraining-{shard + 1:05}-of-{shards:05}.mindrecord"
            _write_shard(data, range(bounds[shard], bounds[shard + 1]), tmp / name)
            count = bounds[shard + 1] - bounds[shard]
            files.append({"file": name, "examples": count, "sha256": _checksum(tmp / name)})
        write_json(
            tmp / MANIFEST, {"format": _FORMAT, "examples": len(data), "shards": files, "settings": data.settings}
        )


def read_shards(folder: str | Path, tokenizer: Tokenizer | None = None, name: str = "the tokenizer") -> PretrainingData:
    """Reads all the examples of a folder that write_shards wrote, in their order, into memory.

    Args:
        folder: the shards.
        tokenizer: the one to train with; None does not check that its vocabulary is the examples'.
        name: the tokenizer's, for messages.

    Raises:
        UserError: a file is missing, damaged, of another sharding or another run, or the vocabularies differ.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    settings = manifest["settings"]
    if tokenizer is not None and (found := vocabulary_checksum(tokenizer)) != settings["vocabulary"]:
        raise UserError(
            f"{folder} was written with the vocabulary {settings['vocabulary'][:12]} of {settings['tokenizer']} "
            f"({settings['vocab_size']} tokens), and {name} has {found[:12]} ({len(tokenizer)} tokens); "
            f"use that tokenizer, or write the shards again with this one"
        )
    examples, count = Collector(), 0
    for shard in manifest["shards"]:
        for row in _read_shard(folder / shard["file"], count, shard["examples"]):
            examples.add(*(row[key] for key in _EXAMPLE))
        count += shard["examples"]
    return examples.data(settings)


def _mindrecord():
    os.environ.setdefault("GLOG_v", "3")  # read once by MindSpore's logger, which else has much to say
    with signals.wait():
        from mindspore import mindrecord
    return mindrecord


def _write_shard(data: PretrainingData, indices: range, path: Path) -> None:
    try:
        writer = _mindrecord().FileWriter(str(path), shard_num=1)
        writer.set_header_size(_HEADER)
        writer.set_page_size(_PAGE)
        writer.add_schema(_SCHEMA, _FORMAT)
        for start in range(indices.start, indices.stop, _ROWS):
            rows = range(start, min(start + _ROWS, indices.stop))
            writer.write_raw_data([{"index": i, **dict(zip(_EXAMPLE, data.flat(i), strict=True))} for i in rows])
        writer.commit()
    except RuntimeError as e:
        raise UserError(
            f"MindRecord cannot write {path.name}: {_reason(e)}; free space or choose another folder"
        ) from None


def _reason(error: RuntimeError) -> str:
    # Its messages are pages with a heading, a line that matters, and places in the C++ source.
    found = re.search(r"\[ERROR\] *(.+)", str(error))
    return found.group(1).rstrip(". ") if found else str(error).splitlines()[0]


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder whose files are those that it lists."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} has no {MANIFEST}; give a folder that write_shards wrote")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise UserError(f"{folder / MANIFEST} is of format {found!r}, expected {_FORMAT!r}; write the shards again")
    names = [shard["file"] for shard in manifest["shards"]]
    missing = [file.name for name in names for file in _files(folder / name) if not file.is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)} of its {len(names)} shards; copy what is missing, or write them again"
        )
    strange = sorted({file.name for file in folder.glob("*.mindrecord")} - set(names))
    if strange:
        raise UserError(
            f"{folder} holds {', '.join(strange)}, which {MANIFEST} with its {len(names)} shards does not list: "
            f"another sharding wrote it; write the shards again to an empty folder"
        )
    if sum(shard["examples"] for shard in manifest["shards"]) != manifest["examples"]:
        raise UserError(
            f"{folder / MANIFEST} promises {manifest['examples']} examples, and its shards have "
            f"{sum(shard['examples'] for shard in manifest['shards'])}; write the shards again"
        )
    for shard in manifest["shards"]:
        if _checksum(folder / shard["file"]) != shard["sha256"]:
            raise UserError(
                f"{folder / shard['file']} is not the file that {MANIFEST} describes (their checksums differ): "
                f"it is damaged, or another run wrote it; write the shards again"
            )
    return manifest


def _read_shard(path: Path, first: int, count: int) -> list[dict[str, Any]]:
    reader = _mindrecord().FileReader(str(path))
    rows = sorted(reader.get_next(), key=lambda row: row["index"])
    reader.close()
    if [row["index"] for row in rows] != list(range(first, first + count)):
        span = f"{rows[0]['index']} to {rows[-1]['index']}" if rows else "none"
        raise UserError(
            f"{path} holds {len(rows)} examples ({span}), and {MANIFEST} expects {count} ({first} to "
            f"{first + count - 1}); write the shards again"
        )
    return rows


def _files(path: Path) -> list[Path]:
    return [path, path.with_name(f"{path.name}.db")]


def _checksum(path: Path) -> str:
    """SHA-256 of a shard's two files."""
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
