"""msllm train-tokenizer and pretraining-data: from raw documents to a vocabulary and examples for a BERT."""

from typing import Literal

from msllm.errors import UserError


def train_tokenizer(
    data: list[str],
    output: str,
    vocab_size: int | None = None,
    kind: Literal["wordpiece", "bpe", "sentencepiece", "gpt", "word", "char"] = "wordpiece",
    lowercase: bool = False,
) -> None:
    """Trains a vocabulary on text files; the folder loads here and in transformers.

    Args:
        data: text files.
        output: new folder.
        vocab_size: ids in all, the special tokens included; word and char go without it too, and keep all.
        kind: wordpiece (BERT), bpe (byte-level, GPT-2), sentencepiece (LLaMA), gpt (GPT), word or char.
        lowercase: lower-case all text, in training and in use.
    """
    from msllm import tokenization
    from msllm.conversion.output import new_folder
    from msllm.files import atomic_folder, read_text

    if vocab_size is None and kind not in ("word", "char"):
        raise UserError(f"vocab_size is missing, and {kind} needs one; add it, such as --vocab_size 8000")
    new_folder(output)
    texts = map(read_text, data)
    if kind != "char":  # a line feed is a character too, and for all others the end of a word
        texts = (line for text in texts for line in text.splitlines() if line.strip())
    tokenizer = tokenization.train_tokenizer(texts, vocab_size, kind, lowercase=lowercase)
    with atomic_folder(output) as tmp:
        tokenizer.save_pretrained(tmp)
    print(f"saved {output}: {len(tokenizer)} tokens")


def pretraining_data(
    data: list[str],
    tokenizer: str,
    output: str,
    max_length: int = 128,
    duplicate_factor: int = 5,
    whole_words: Literal["no", "english", "chinese"] = "no",
    mask_share: float = 0.15,
    max_predictions: int | None = None,
    short_share: float = 0.1,
    shards: int = 4,
    seed: int = 0,
) -> None:
    """Builds BERT's pre-training examples from raw documents and writes them as MindRecord files.

    Args:
        data: text files, a sentence a line, a blank line between documents.
        tokenizer: folder of a BERT tokenizer; it is copied beside the examples.
        output: new folder.
        max_length: most tokens of an example, both sentences and special tokens together.
        duplicate_factor: how often the documents are used, each time with other pairs and masks.
        whole_words: mask all tokens of a word together; english goes by ##, chinese by jieba's words.
        mask_share: share of the tokens that are predicted.
        max_predictions: most tokens of an example that are predicted.
        short_share: share of the examples that aim at a random shorter length.
        shards: files that the examples are spread over.
        seed: of pairs and masks.
    """
    from msllm.conversion.output import new_folder
    from msllm.data.mindrecord import write_shards
    from msllm.data.pretraining import build_pretraining, read_documents
    from msllm.tokenization import load_tokenizer

    new_folder(output)
    documents, words = read_documents(data), load_tokenizer(tokenizer)
    examples = build_pretraining(
        documents,
        words,
        max_length,
        mask_share=mask_share,
        max_predictions=max_predictions,
        whole_words=None if whole_words == "no" else whole_words,
        short_share=short_share,
        duplicate_factor=duplicate_factor,
        seed=seed,
        tokenizer_name=tokenizer,
    )
    write_shards(examples, output, min(shards, len(examples)))
    words.save_pretrained(output)
    print(
        f"saved {output}: {len(examples):,} examples of {len(documents):,} documents, {len(examples.ids):,} tokens, "
        f"{len(examples.targets):,} masked, in {min(shards, len(examples))} files"
    )
