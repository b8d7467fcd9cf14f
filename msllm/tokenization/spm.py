"""SentencePiece model files as a ``tokenizers`` backend."""

from pathlib import Path

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from msllm.errors import UserError

_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "▁"


def build(path: Path, prefix_space: bool | None, legacy: bool) -> tokenizers.Tokenizer:
    """Converts a tokenizer.model as transformers does for LLaMA (Touvron et al. 2023, section 2.1).

    Other than transformers it takes from the file which piece is the unknown one, whether characters fall back to
    bytes, and how characters are normalised; of LLaMA's file all this is what transformers assumes.

    Args:
        path: the SentencePiece model, of type BPE or Unigram.
        prefix_space: put a space before the text; None: as the model file says.
        legacy: put that space before each stretch of text between special tokens, not only at the start.

    Returns:
        A backend without post-processor.

    Raises:
        UserError: not a SentencePiece file, or of another type.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError:
        proto.Clear()
    if len(proto.pieces) < 3:
        raise UserError(f"{path} is not a SentencePiece model; take a tokenizer.json from the checkpoint instead")
    if prefix_space is None:
        prefix_space = proto.normalizer_spec.add_dummy_prefix
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    backend = tokenizers.Tokenizer(_model(path, proto, pieces))
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
            for piece in proto.pieces
            if piece.type in (_CONTROL, _USER_DEFINED)
        ]
    )
    charsmap = _charsmap(proto.normalizer_spec.precompiled_charsmap)
    if legacy:
        steps = [normalizers.Prepend(_SPACE)] if prefix_space else []
        backend.normalizer = normalizers.Sequence([*charsmap, *steps, normalizers.Replace(" ", _SPACE)])
    else:
        if charsmap:
            backend.normalizer = normalizers.Sequence(charsmap)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first" if prefix_space else "never", split=False
        )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", left=1)] if prefix_space else []))
    return backend


def _model(path: Path, proto, pieces: list[tuple[str, float]]) -> models.Model:
    kind, byte_fallback = proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback
    unknown = next((i for i, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN), None)
    if unknown is None:
        raise UserError(f"{path} marks no piece as the unknown one; take a tokenizer.json from the checkpoint instead")
    if kind == _UNIGRAM:
        return models.Unigram(pieces, unknown, byte_fallback)
    if kind == _BPE:
        return models.BPE(
            {piece: i for i, (piece, _) in enumerate(pieces)},
            _merges(pieces),
            unk_token=pieces[unknown][0],
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    raise UserError(f"{path} is a SentencePiece model of type {kind}; expected 1 (Unigram) or 2 (BPE)")


def _charsmap(rules: bytes) -> list[normalizers.Normalizer]:
    """Returns the steps that replace characters as the file says, none where it leaves them as they are.

    To a letter with combining marks Precompiled applies the first rule that fits its beginning: where "E" has one, the
    mark of "E\u0301" is lost. Composing first, or lower-casing, where the rules do so too, leaves no such letters but
    those that have no composed form (in rules that fold case) and those of a user's own rules.
    """
    if not rules:
        return []
    charsmap, lowercase = normalizers.Precompiled(rules), normalizers.Lowercase()
    if charsmap.normalize_str("e\u0301") == "\u00e9":  # as NFKC, which all rules of SentencePiece's own are made from
        return [normalizers.NFC(), charsmap]
    cased = "\n".join(c for c in map(chr, range(0x20000)) if c.lower() != c)
    folds = charsmap.normalize_str(cased) == charsmap.normalize_str(lowercase.normalize_str(cased))
    return [lowercase, charsmap] if folds else [charsmap]


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """The merge list that a SentencePiece BPE leaves implicit: all splits of a piece into two, best score first."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    found = []
    for piece, score in dict(pieces).items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        found += [(score, left, right) for left, right in sorted(splits, key=lambda s: (ids[s[0]], ids[s[1]]))]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]
