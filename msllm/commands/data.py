"""msllm data: texts to the token files that GPT models are pre-trained on."""

import sys
from typing import Literal

from msllm.errors import UserError, nearest

_ACTIONS = ("tokenize",)


def data(
    action: Literal["tokenize"],
    data: list[str],
    tokenizer: str,
    output: str,
    val_share: float = 0.0,
    whole_files: bool = False,
) -> None:
    """Turns texts into one file of token ids, which pretrain trains a GPT on.

    Several documents are each followed by the tokenizer's eos token, where it has one; a single one is not.

    Args:
        action: tokenize.
        data: files, folders or hub names of texts: .txt with blank lines between documents, .jsonl or .json with a
            text in each record.
        tokenizer: folder of a tokenizer; it is copied beside the ids.
        output: new folder; gets train.bin, validation.bin where val_share asks for it, and the tokenizer's files.
        val_share: share of each of the data that becomes validation.bin: its last documents, or of a single document
            its last characters.
        whole_files: take each .txt file as one document, blank lines and all.
    """
    if action not in _ACTIONS:
        found = "is missing" if action is None else f"{action!r} is unknown{nearest(action, _ACTIONS)}"
        raise UserError(f"the action of msllm data {found}; known are {', '.join(_ACTIONS)}: msllm data tokenize ...")
    if not 0 <= val_share < 1:
        raise UserError(f"val_share is {val_share}, expected at least 0 and below 1, such as 0.1; change it")
    from msllm.conversion.output import new_folder
    from msllm.data.token_file import TRAIN, VALIDATION
    from msllm.files import atomic_folder
    from msllm.tokenization import load_tokenizer

    new_folder(output)
    words = load_tokenizer(tokenizer)
    sources = [_texts(source, whole_files) for source in data]
    several = sum(map(len, sources)) > 1
    if several and words.eos_token_id is None:
        print(
            f"{tokenizer} has no eos token: nothing stands between documents, and a model learns no end",
            file=sys.stderr,
        )
    parts = {TRAIN: [text for texts in sources for text in texts]}
    if val_share:
        pairs = [_split(texts, val_share, source) for texts, source in zip(sources, data, strict=True)]
        parts = {name: [t for pair in pairs for t in pair[i]] for i, name in enumerate((TRAIN, VALIDATION))}
    with atomic_folder(output) as tmp:
        lines = [_write(tmp / name, texts, words, tokenizer, several) for name, texts in parts.items()]
        words.save_pretrained(tmp)
    print(f"saved {output}: {'; '.join(lines)}")
    print(f"try it: msllm pretrain --data {output} --output FOLDER")


def _texts(source: str, whole_files: bool) -> list[str]:
    """Returns the documents of a source that are not blank."""
    from msllm.data.loading import load_records

    records = load_records(source, split_text=not whole_files)
    for record in records:
        if record.text is None:
            kinds = {"messages": "a conversation", "prompt": "a prompt with its completion"}
            found = next((kinds[k] for k in kinds if getattr(record, k) is not None), "an article with its summary")
            raise UserError(
                f'{record.source} is {found}, expected a text, such as {{"text": ...}} or a .txt file; '
                f"msllm finetune trains on such records"
            )
    texts = [record.text for record in records if record.text.strip()]
    if not texts:
        raise UserError(f"{source} holds blank texts only; give texts with words")
    return texts


def _split(texts: list[str], share: float, source: str) -> tuple[list[str], list[str]]:
    """Cuts off the last ``share``: of several documents, or of a single one's characters."""
    whole = texts if len(texts) > 1 else texts[0]
    kept = int(len(whole) * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is a little below 1
    if not 0 < kept < len(whole):
        unit = "documents" if len(texts) > 1 else "characters"
        raise UserError(
            f"val_share {share} of the {len(whole)} {unit} of {source} leaves {kept} to train on and "
            f"{len(whole) - kept} to evaluate on, and both need at least 1; change val_share"
        )
    train, validation = whole[:kept], whole[kept:]
    return (train, validation) if isinstance(whole, list) else ([train], [validation])


def _write(path, texts: list[str], tokenizer, name: str, several: bool) -> str:
    """Writes a token file under a bar of characters; returns what it holds, as a text."""
    from tqdm import tqdm

    from msllm.data.token_file import token_stream, write_tokens

    characters = sum(map(len, texts))
    with tqdm(total=characters, unit="char", unit_scale=True, desc=path.name, disable=None) as bar:
        count = write_tokens(path, token_stream(texts, tokenizer, several, bar.update), tokenizer, name)
    kind = "uint16" if len(tokenizer) <= 1 << 16 else "uint32"
    return (
        f"{path.name} with {count:,} tokens ({kind}, {path.stat().st_size:,} bytes) of {characters:,} characters in "
        f"{len(texts):,} {'documents' if len(texts) > 1 else 'document'}"
    )
