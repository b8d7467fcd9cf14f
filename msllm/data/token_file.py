"""Token ids in one flat file that is memory-mapped, and the examples of next-token prediction that are cut from it.

A file is a header of 4,096 bytes (a magic line, then JSON, filled up with spaces) and the ids, unsigned and
little-endian: uint16 for vocabularies of at most 65,536 tokens, else uint32. N tokens of a file.
"""

import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msllm.data.pretraining import vocabulary_checksum
from msllm.errors import UserError
from msllm.files import atomic_file
from msllm.tokenization import Tokenizer

TRAIN, VALIDATION = "train.bin", "validation.bin"
_MAGIC = b"msllm token ids\n"
_HEADER = 4096  # bytes: a page, so that the ids are aligned
_VERSION = 1
_KEYS = ("version", "dtype", "count", "vocab_size", "vocabulary", "tokenizer", "crc32")
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_CHUNK = 1 << 22  # ids that are looked at together
_PIECE = 1 << 16  # characters of a long text that are encoded together
_BATCH = 1 << 20  # characters handed to the encoder at a time
_SEAM = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)")
# Epochs draw their order from (seed, epoch): crops drawn from the same would come sorted by their places.
_CROPS = 0x63726F70


def write_tokens(path: str | Path, pieces: Iterable[Sequence[int]], tokenizer: Tokenizer, name: str = "") -> int:
    """Writes ids to a file, whole or not at all, and returns their number.

    Args:
        path: replaced in one step.
        pieces: ids, in stretches of any length; one stretch at a time is in memory.
        tokenizer: the ids' tokenizer; its size decides between uint16 and uint32, its checksum goes into the header.
        name: where the tokenizer comes from, for messages.

    Raises:
        UserError: an id outside the vocabulary (its value and position from 0), no id at all, or a full disk.
    """
    size, count, crc = len(tokenizer), 0, 0
    kind = "uint16" if size <= 1 << 16 else "uint32"
    with atomic_file(path) as tmp, tmp.open("wb") as stream:
        stream.write(bytes(_HEADER))
        for piece in pieces:
            ids = np.asarray(piece, np.int64)
            outside = np.flatnonzero((ids < 0) | (ids >= size))
            if len(outside):
                raise _outside(path, int(ids[outside[0]]), count + int(outside[0]), size)
            content = ids.astype(_DTYPES[kind]).tobytes()
            crc = zlib.crc32(content, crc)
            stream.write(content)
            count += len(ids)
        if not count:
            raise UserError(f"there is no token to write to {path}; give a text that is not empty")
        words = {"vocab_size": size, "vocabulary": vocabulary_checksum(tokenizer), "tokenizer": name[-500:]}
        header = {"version": _VERSION, "dtype": kind, "count": count, **words, "crc32": f"{crc:08x}"}
        stream.seek(0)
        stream.write((_MAGIC + json.dumps(header, ensure_ascii=False).encode()).ljust(_HEADER - 1) + b"\n")
    return count


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFile:
    """The ids of a file that write_tokens wrote, mapped into memory: only what is read takes room.

    Attributes:
        path: of the file.
        ids: uint16 or uint32 (N,), read-only.
        vocab_size: tokens of the vocabulary; every id is below.
        tokenizer: where the tokenizer came from, as write_tokens was told.
        checksum: CRC-32 of the ids, hexadecimal.
        largest: the largest id.
    """

    path: Path
    ids: np.ndarray
    vocab_size: int
    tokenizer: str
    checksum: str
    largest: int

    @classmethod
    def open(cls, path: str | Path, tokenizer: Tokenizer | None = None, name: str = "the tokenizer") -> "TokenFile":
        """Maps a file, after one look at all its ids.

        Args:
            path: the file.
            tokenizer: the one to train with; None does not check that its vocabulary is the file's.
            name: the tokenizer's, for messages.

        Raises:
            UserError: no such file, one of another kind or version, cut off or too long, damaged, written with
                another tokenizer, or an id outside the vocabulary (its value and position from 0).
        """
        path = Path(path)
        header = _read_header(path)
        if tokenizer is not None and (found := vocabulary_checksum(tokenizer)) != header["vocabulary"]:
            raise UserError(
                f"{path} was written with the vocabulary {header['vocabulary'][:12]} of "
                f"{header['tokenizer'] or 'another tokenizer'} ({header['vocab_size']} tokens), and {name} has "
                f"{found[:12]} ({len(tokenizer)} tokens); use that tokenizer, or tokenize the text again with this one"
            )
        # A view as a plain array: slices of a memmap cost several times as much.
        ids = np.asarray(np.memmap(path, _DTYPES[header["dtype"]], "r", _HEADER, (header["count"],)))
        largest = _look_through(path, ids, header)
        return cls(path, ids, header["vocab_size"], header["tokenizer"], header["crc32"], largest)

    def __len__(self) -> int:
        return len(self.ids)


def _read_header(path: Path) -> dict[str, Any]:
    """Returns the header of a file that is as long as its header says."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEADER)
        size = path.stat().st_size
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; give a file that msllm data tokenize wrote") from None
    if not head.startswith(_MAGIC):
        raise UserError(
            f"{path} is no file of token ids: it begins with {head[:16]!r}, expected {_MAGIC!r}; write one with "
            f"msllm data tokenize"
        )
    try:
        header = json.loads(head[len(_MAGIC) :])
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("version", _VERSION) != _VERSION:
        found = "damaged" if not isinstance(header, dict) else f"of version {header['version']!r}, expected {_VERSION}"
        raise UserError(f"the header of {path} is {found}; write the file again with msllm data tokenize")
    missing = [key for key in _KEYS if key not in header]
    if missing or header["dtype"] not in list(_DTYPES) or type(header["count"]) is not int:
        found = (
            f"lacks {', '.join(missing)}" if missing else f"has dtype {header['dtype']!r}, count {header['count']!r}"
        )
        raise UserError(f"the header of {path} {found}; write the file again with msllm data tokenize")
    width = _DTYPES[header["dtype"]].itemsize
    expected = _HEADER + header["count"] * width
    if size != expected:
        raise UserError(
            f"{path} has {size:,} bytes, and its header of {header['count']:,} ids of {width} bytes asks for "
            f"{expected:,}: it was {'cut off' if size < expected else 'added to'}; copy it again or write it again"
        )
    return header


def _look_through(path: Path, ids: np.ndarray, header: dict[str, Any]) -> int:
    """Returns the largest id; UserError where one is outside the vocabulary, or the ids are not those written."""
    crc = largest = 0
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        crc, largest = zlib.crc32(chunk, crc), max(largest, int(chunk.max()))
        if largest >= header["vocab_size"]:
            place = int((chunk >= header["vocab_size"]).argmax())
            raise _outside(path, int(chunk[place]), start + place, header["vocab_size"])
    if f"{crc:08x}" != header["crc32"]:
        raise UserError(
            f"{path} is damaged: the checksum of its ids is {crc:08x}, its header says {header['crc32']}; copy it "
            f"again or write it again"
        )
    return largest


def _outside(path: str | Path, value: int, position: int, size: int) -> UserError:
    return UserError(
        f"{path}: the id {value} at position {position} is outside the vocabulary of {size} tokens (0 to {size - 1}); "
        f"tokenize the text again with the tokenizer that the model uses"
    )


class _Blocks(Sequence):
    """Stretches of a TokenFile: data[i] is {"input_ids": int32 (T + 1,)}, T inputs and the T targets after each.

    Attributes:
        starts: int (len(data),), the place of each example's first token in the file.
        lengths: int (len(data),), the inputs T of each example.
        checksum: names the content; equal for equal examples in the same order.
    """

    tokens: TokenFile
    block_size: int
    starts: np.ndarray
    lengths: np.ndarray
    checksum: str

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self.starts[index]
        return {"input_ids": self.tokens.ids[start : start + self.block_size + 1].astype(np.int32)}


class RandomCrops(_Blocks):
    """Crops of ``block_size`` + 1 tokens from places drawn at random, each place as likely.

    Crop i is a function of ``seed`` and i alone, whatever the number of crops.

    Args:
        tokens: the file, of more than ``block_size`` tokens.
        block_size: T, what the model reads of a crop.
        count: crops.
        seed: of the places.

    Raises:
        UserError: a ``block_size`` below 1 or that the file does not fill, or a ``count`` below 1.
    """

    def __init__(self, tokens: TokenFile, block_size: int, count: int, seed: int = 0):
        _check_block_size(tokens, block_size, block_size + 1)
        if count < 1:
            raise UserError(f"{count} crops are nothing to train on; give 1 or more")
        self.tokens, self.block_size = tokens, block_size
        draws = np.random.Generator(np.random.PCG64((seed, _CROPS))).random(count)
        self.starts = (draws * (len(tokens) - block_size)).astype(np.int64)
        self.lengths = np.broadcast_to(np.int64(block_size), count)
        self.checksum = f"random crops of {block_size} from {len(tokens)} tokens {tokens.checksum}, seed {seed}"


class Windows(_Blocks):
    """A file from front to end in windows of ``block_size``: each token but the first is predicted exactly once.

    A window's last target is the next one's first input; the last window may be shorter.

    Args:
        tokens: the file, of 2 tokens or more.
        block_size: T, what the model reads of a window.

    Raises:
        UserError: a ``block_size`` below 1, or a file of one token.
    """

    def __init__(self, tokens: TokenFile, block_size: int):
        _check_block_size(tokens, block_size, 2)
        self.tokens, self.block_size = tokens, block_size
        targets = len(tokens) - 1
        self.lengths = np.full(-(-targets // block_size), block_size)
        self.starts = np.arange(len(self.lengths)) * block_size
        self.lengths[-1] = targets - block_size * (len(self.lengths) - 1)
        self.checksum = f"windows of {block_size} over {len(tokens)} tokens {tokens.checksum}"


def _check_block_size(tokens: TokenFile, block_size: int, needed: int) -> None:
    if block_size < 1:
        raise UserError(f"block_size is {block_size}, expected 1 or more; change it")
    if len(tokens) < needed:
        raise UserError(
            f"{tokens.path} has {len(tokens)} tokens, and an example of block_size {block_size} takes at least "
            f"{needed}; lower block_size, or give more text"
        )


def token_stream(
    texts: Iterable[str], tokenizer: Tokenizer, several: bool, advance: Callable[[int], object] | None = None
) -> Iterator[Sequence[int]]:
    """Yields the ids of texts, one after the other, for write_tokens: those of tokenizer.encode.

    Args:
        texts: of any length; long ones are encoded in parts where that leaves their tokens as they are.
        several: the texts are documents by themselves, each of which ends in the eos token, where there is one.
        advance: gets the number of characters done since it was last called.
    """
    eos = tokenizer.eos_token_id if several else None
    prefix = tokenizer.prefix_ids
    suffix = tokenizer.encode("x")[len(prefix) + len(tokenizer.encode("x", add_special_tokens=False)) :]
    for batch in _batches_of_pieces(texts, tokenizer):
        encodings = tokenizer.backend.encode_batch([piece for piece, _, _ in batch], add_special_tokens=False)
        for (_, first, last), encoding in zip(batch, encodings, strict=True):
            if first:
                yield prefix
            yield encoding.ids
            if last:
                end = suffix or encoding.ids[-1:]
                yield suffix if eos is None or end[-1:] == [eos] else [*suffix, eos]
        if advance is not None:
            advance(sum(len(piece) for piece, _, _ in batch))


def _batches_of_pieces(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[tuple[str, bool, bool]]]:
    """Yields lists of (piece, whether it opens its text, whether it ends it), of about _BATCH characters together."""
    batch: list[tuple[str, bool, bool]] = []
    size = 0
    for text in texts:
        start = 0
        while start < len(text):
            end = _seam(text, start + _PIECE, tokenizer)
            batch.append((text[start:end], start == 0, end == len(text)))
            size, start = size + end - start, end
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _seam(text: str, after: int, tokenizer: Tokenizer, tries: int = 8, around: int = 64) -> int:
    """Returns where to cut ``text``, at or after a place, so that the parts have the tokens of the whole; or its end.

    A vocabulary is applied within the words of its pre-tokenizer. Where those around the end of a line or of a word
    are the same with and without the cut, the tokens are too. With SentencePiece, which puts a space before a text,
    they never are. Tokens are compared as well: special tokens in a text may take the spaces beside them.
    """
    words = tokenizer.backend.pre_tokenizer
    if words is None or len(text) - after < _PIECE:
        return len(text)
    normalizer = tokenizer.backend.normalizer

    def split(part: str) -> list[str]:
        part = part if normalizer is None else normalizer.normalize_str(part)
        return [word for word, _ in words.pre_tokenize_str(part)]

    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    for _, seam in zip(range(tries), _SEAM.finditer(text, after)):
        left, right = text[seam.start() - around : seam.start()], text[seam.start() : seam.start() + around]
        if all(do(left + right) == do(left) + do(right) for do in (split, encode)):
            return seam.start()
    return len(text)
