"""msllm train-tokenizer, pretraining-data and pretrain: from raw documents to a BERT."""

import inspect
import sys
from typing import Literal

from msllm.errors import UserError
from msllm.training.arguments import TrainingArguments


def train_tokenizer(
    data: list[str],
    output: str,
    vocab_size: int,
    kind: Literal["wordpiece", "bpe", "sentencepiece", "word", "char"] = "wordpiece",
    lowercase: bool = False,
) -> None:
    """Trains a vocabulary on text files; the folder loads here and in transformers.

    Args:
        data: text files.
        output: new folder.
        vocab_size: ids in all, the special tokens included.
        kind: wordpiece (BERT), bpe (byte-level, GPT-2), sentencepiece (LLaMA), word or char.
        lowercase: lower-case all text, in training and in use.
    """
    from msllm import tokenization
    from msllm.conversion.output import new_folder
    from msllm.files import atomic_folder, read_text

    new_folder(output)
    lines = (line for path in data for line in read_text(path).splitlines() if line.strip())
    tokenizer = tokenization.train_tokenizer(lines, vocab_size, kind, lowercase=lowercase)
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


def pretrain(
    data: str,
    training: TrainingArguments,
    output: str,
    eval_data: str | None = None,
    model: str | None = None,
    hidden_size: int = 256,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int = 1024,
    max_positions: int = 512,
    dropout: float = 0.1,
    resume: str | None = None,
    overwrite: bool = False,
) -> None:
    """Pre-trains a BERT on masked words and next sentences; under msrun, on several workers.

    Args:
        data: folder that pretraining-data wrote.
        training: options of the run; the batch size is that of each worker.
        output: folder of the result; gets model, tokenizer, log.jsonl, loss.png and checkpoints.
        eval_data: folder of other examples, to evaluate on.
        model: folder of a BERT to go on from, whose tokenizer built the data; without it, a new one of the sizes below.
        hidden_size: width.
        layers: depth.
        heads: of attention.
        intermediate_size: inner width of the feed-forward layers.
        max_positions: longest sequence.
        dropout: of embeddings, outputs and attention weights.
        resume: "auto" or a checkpoint folder: go on where an earlier run stopped.
        overwrite: replace what an earlier run left in the output folder.
    """
    import mindspore as ms

    from msllm.data.mindrecord import read_shards
    from msllm.models.bert import BertConfig, BertForPreTraining
    from msllm.parallel import start_workers
    from msllm.tokenization import load_tokenizer
    from msllm.training import Trainer, checkpoint
    from msllm.training.pretraining import PRETRAINING, pretraining_accuracy

    given = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "intermediate_size": intermediate_size}
    changed = [name for name, value in given.items() if value != inspect.signature(pretrain).parameters[name].default]
    if model is not None and changed:
        raise UserError(f"{', '.join(changed)} and model were given, and a model has its sizes; give one of both")
    checkpoint.source(output, resume, overwrite)
    workers = start_workers()
    tokenizer = load_tokenizer(data)
    examples = read_shards(data, tokenizer)
    eval_examples = None if eval_data is None else read_shards(eval_data, tokenizer)
    ms.set_seed(training.seed)
    if model is not None:
        read_shards(data, load_tokenizer(model), f"the tokenizer of {model}")
        network = BertForPreTraining.from_pretrained(model)
    else:
        sizes = {
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": max_positions,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
        tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        network = BertForPreTraining(BertConfig.from_dict({**sizes, **tokens, "architectures": ["BertForPreTraining"]}))
    longest = max(part.settings["max_length"] for part in (examples, eval_examples) if part is not None)
    if longest > network.config.max_position_embeddings:
        raise UserError(
            f"the examples have up to {longest} tokens, the model takes {network.config.max_position_embeddings}; "
            f"build them with a smaller max_length"
        )
    print(
        f"BERT with {sum(p.size for p in network.get_parameters()):,} parameters; {len(examples):,} examples of at "
        f"most {longest} tokens",
        file=sys.stderr,
    )

    trainer = Trainer(
        network,
        training,
        examples,
        output,
        eval_examples,
        tokenizer.pad_token_id,
        PRETRAINING,
        write_model=lambda folder: network.write_files(folder, tokenizer),
        metrics=lambda: pretraining_accuracy(network, eval_examples, tokenizer.pad_token_id),
        workers=workers,
    )
    trainer.train(resume, overwrite)
    if trainer.rank == 0:
        print(f"saved {output}; try it: msllm predict --model {output} --text '[MASK]'", file=sys.stderr)
