"""Reading a checkpoint's tokenizer files into a Tokenizer."""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from msllm.errors import UserError
from msllm.files import read_json, read_text
from msllm.tokenization import spm
from msllm.tokenization.tokenizer import SPECIAL_TOKENS, Tokenizer

# What transformers' tokenizer classes assume when tokenizer_config.json does not say.
_ENDOFTEXT = "<|endoftext|>"
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "GPT2": {"bos_token": _ENDOFTEXT, "eos_token": _ENDOFTEXT, "unk_token": _ENDOFTEXT},
    "OpenAIGPT": {"unk_token": "<unk>"},
    "Bert": {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    "Llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Bloom": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "Qwen2": {"eos_token": _ENDOFTEXT, "unk_token": _ENDOFTEXT, "pad_token": _ENDOFTEXT},
}
END_OF_WORD = "</w>"
_MODEL_TYPE_CLASSES = {
    "gpt2": "GPT2",
    "openai-gpt": "OpenAIGPT",
    "bert": "Bert",
    "llama": "Llama",
    "mistral": "Llama",
    "mixtral": "Llama",
    "bloom": "Bloom",
    "qwen2": "Qwen2",
    "qwen2_moe": "Qwen2",
    "qwen3": "Qwen2",
    "qwen3_moe": "Qwen2",
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face checkpoint folder; ids equal those of transformers 4.57.

    Args:
        folder: holds tokenizer.json, or tokenizer.model (SentencePiece), or vocab.json + merges.txt (GPT,
            GPT-2), or vocab.txt (BERT); and where present tokenizer_config.json, special_tokens_map.json,
            added_tokens.json, chat_template.jinja, generation_config.json and config.json.

    Raises:
        UserError: files are missing (with what the folder holds), malformed, or of a kind that is not supported.
    """
    folder = Path(folder)
    kind = _kind(folder)
    config, added = _read_config(folder)
    family = _family(folder, config, kind)
    words: tuple[dict, list] = ({}, [])
    if kind == "vocab.json":
        words = _load_backend(models.BPE.read_file, folder / "vocab.json", folder / "merges.txt")
        family = _bpe_family(folder, family, words[0])
    sentencepiece = None
    if (folder / "tokenizer.model").is_file():
        sentencepiece = (folder / "tokenizer.model").read_bytes()
        # transformers builds LLaMA's anew from tokenizer.model when this key is set, whatever tokenizer.json says.
        if kind == "tokenizer.json" and family == "Llama" and config.get("add_prefix_space") is not None:
            kind = "tokenizer.model"
    config = {**_CLASS_DEFAULTS.get(family, {}), **config}
    if kind == "tokenizer.json":
        backend = _load_backend(tokenizers.Tokenizer.from_file, folder / kind)
    elif kind == "tokenizer.model":
        # Other classes than LLaMA's let the model file say whether a space goes in front.
        prefix_space = bool(config.get("add_prefix_space", True)) if family == "Llama" else None
        backend = spm.build(folder / kind, prefix_space, config.get("legacy", True) in (True, None))
    elif kind == "vocab.txt":
        backend = _wordpiece(folder / kind, config)
        config.setdefault("clean_up_tokenization_spaces", True)
    elif family == "OpenAIGPT":
        backend = word_bpe(*words, config["unk_token"])
    else:
        backend = _byte_level_bpe(*words, config)
    _add_tokens(backend, config, added)
    _apply_class(backend, config, family)
    known_class = f"{family}Tokenizer" if family in _CLASS_DEFAULTS else "PreTrainedTokenizerFast"
    config.setdefault("tokenizer_class", known_class)
    return Tokenizer(
        backend, config, _chat_template(folder, config.pop("chat_template", None)), _stop_ids(folder), sentencepiece
    )


def _kind(folder: Path) -> str:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a checkpoint, with its tokenizer files")
    for names in (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",)):
        if all((folder / name).is_file() for name in names):
            return names[0]
    found = sorted(path.name for path in folder.iterdir())
    held = ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    have, lack = ("vocab.json", "merges.txt") if "vocab.json" in found else ("merges.txt", "vocab.json")
    if have in found:
        raise UserError(
            f"{folder} lacks {lack}, which goes with its {have}; it holds: {held}; copy {lack} from the checkpoint"
        )
    raise UserError(
        f"{folder} has no tokenizer: expected tokenizer.json, or tokenizer.model, or vocab.json with "
        f"merges.txt, or vocab.txt; it holds: {held or 'nothing'}; copy them from the checkpoint"
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """Returns tokenizer_config.json with special tokens as strings, and the added tokens by id."""
    config = _optional_json(folder / "tokenizer_config.json")
    added: dict[int, AddedToken] = {}
    specials_map: dict[str, Any] = {}
    decoder = config.pop("added_tokens_decoder", None)
    if decoder is not None:
        added = {int(i): _added_token(token) for i, token in decoder.items()}
    else:  # folders written before transformers 4.34
        specials_map = _optional_json(folder / "special_tokens_map.json")
    described = {
        name: value
        for name, value in {**config, **specials_map}.items()
        if name in (*SPECIAL_TOKENS, "additional_special_tokens") and value is not None
    }
    extra = [*(config.get("additional_special_tokens") or []), *(specials_map.get("additional_special_tokens") or [])]
    config.update({name: _content(value) for name, value in described.items() if name in SPECIAL_TOKENS})
    if extra:
        config["additional_special_tokens"] = list(dict.fromkeys(_content(token) for token in extra))
    if decoder is not None:
        return config, added
    specials = {config.get(name) for name in SPECIAL_TOKENS} | set(config.get("additional_special_tokens") or [])
    for token, i in _optional_json(folder / "added_tokens.json").items():
        added[int(i)] = AddedToken(token, normalized=token not in specials, special=token in specials)
    return config, added


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object; take it from the checkpoint")
    return value


def _content(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def _added_token(token: dict[str, Any]) -> AddedToken:
    flags = {
        key: bool(token[key]) for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in token
    }
    return AddedToken(token["content"], **flags)


def _family(folder: Path, config: dict[str, Any], kind: str) -> str:
    model = _optional_json(folder / "config.json")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is not None:
        return name.removesuffix("Fast").removesuffix("Tokenizer")
    by_kind = {"tokenizer.model": "Llama", "vocab.json": "GPT2", "vocab.txt": "Bert"}
    return _MODEL_TYPE_CLASSES.get(model.get("model_type")) or by_kind.get(kind, "PreTrained")


def _load_backend(read, *paths: Path, **options) -> Any:
    try:
        return read(*map(str, paths), **options)
    except Exception as e:  # the Rust library raises bare Exception
        raise UserError(f"{paths[0]} cannot be read as a tokenizer: {e}; take the file from the checkpoint") from None


def _bpe_family(folder: Path, family: str, vocab: dict[str, int]) -> str:
    """Tells GPT's pieces, which say where a word ends, from GPT-2's: a folder may lack what names its class."""
    if family not in ("GPT2", "OpenAIGPT"):
        raise UserError(
            f"{folder}: vocab.json with merges.txt is read as the BPE of GPT or GPT-2, and this is a "
            f"{family}Tokenizer; save it once with transformers to get a tokenizer.json"
        )
    return "OpenAIGPT" if any(token.endswith(END_OF_WORD) for token in vocab) else "GPT2"


def word_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str) -> tokenizers.Tokenizer:
    """GPT's BPE (Radford et al. 2018, section 4.1; Sennrich et al. 2016): words, whose last piece says so."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token=unk_token, end_of_word_suffix=END_OF_WORD, fuse_unk=False)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return backend


def _byte_level_bpe(vocab: dict[str, int], merges: list, config: dict[str, Any]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    if config.get("add_bos_token"):
        bos = config["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _wordpiece(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """BERT's WordPiece (Devlin et al. 2019, section 3): [CLS] text [SEP], words split at their longest known prefix."""
    model = _load_backend(models.WordPiece.from_file, path, unk_token=config["unk_token"])
    backend = tokenizers.Tokenizer(model)
    missing = [
        config[name] for name in ("unk_token", "cls_token", "sep_token") if backend.token_to_id(config[name]) is None
    ]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}, which BERT needs; name its own in tokenizer_config.json")
    backend.normalizer = _bert_normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = config["cls_token"], config["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, backend.token_to_id(cls)), (sep, backend.token_to_id(sep))],
    )
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _bert_normalizer(config: dict[str, Any]) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def _add_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], added: dict[int, AddedToken]) -> None:
    specials = [config[name] for name in SPECIAL_TOKENS if config.get(name) is not None]
    specials += config.get("additional_special_tokens") or []
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    wanted = [token for _, token in sorted(added.items()) if repr(token) not in known]
    for token in wanted:
        token.special = token.special or token.content in specials
    names = {token.content for token in [*backend.get_added_tokens_decoder().values(), *wanted]}
    wanted += [AddedToken(name, special=True) for name in dict.fromkeys(specials) if name not in names]
    backend.add_tokens(wanted)


def _apply_class(backend: tokenizers.Tokenizer, config: dict[str, Any], family: str) -> None:
    """What transformers' class does to a backend after loading, whatever tokenizer.json says."""
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer.add_prefix_space = bool(config.get("add_prefix_space"))
    if family == "Bert" and isinstance(backend.normalizer, normalizers.BertNormalizer):
        backend.normalizer = _bert_normalizer(config)
    if family != "Llama":
        return
    bos = [config["bos_token"]] if config.get("add_bos_token", True) else []
    eos = [config["eos_token"]] if config.get("add_eos_token", False) else []
    if None in bos + eos:
        raise UserError(
            "tokenizer_config.json has add_bos_token or add_eos_token without naming that token; "
            "name bos_token and eos_token there"
        )
    first = [f"{token}:0" for token in bos] + ["$A:0"] + [f"{token}:0" for token in eos]
    second = [f"{token}:1" for token in bos] + ["$B:1"] + [f"{token}:1" for token in eos]
    backend.post_processor = processors.TemplateProcessing(
        single=first, pair=first + second, special_tokens=[(token, backend.token_to_id(token)) for token in bos + eos]
    )


def _chat_template(folder: Path, template: Any) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    if isinstance(template, list):  # several named templates
        template = {item["name"]: item["template"] for item in template}
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), None)
    return template


def _stop_ids(folder: Path) -> list[int]:
    ids = _optional_json(folder / "generation_config.json").get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
