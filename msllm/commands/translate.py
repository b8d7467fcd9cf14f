"""msllm train-translator and msllm translate: from pairs of sentences to a model that translates."""

import sys
from pathlib import Path
from typing import Literal

from msllm.errors import UserError
from msllm.files import atomic_files
from msllm.generation.config import GenerationConfig
from msllm.training.arguments import TrainingArguments


def train_translator(
    source: str,
    training: TrainingArguments,
    output: str,
    target: str | None = None,
    eval_source: str | None = None,
    eval_target: str | None = None,
    vocabulary: Literal["bpe", "word", "sentencepiece"] = "bpe",
    vocab_size: int = 8000,
    lowercase: bool = False,
    d_model: int = 256,
    layers: int = 3,
    heads: int = 8,
    ffn_dim: int = 512,
    dropout: float = 0.3,
    pre_norm: bool = False,
    label_smoothing: float = 0.1,
    max_length: int = 256,
    average_last: int = 1,
    limit: int | None = None,
    resume: str | None = None,
    overwrite: bool = False,
) -> None:
    """Trains a Transformer on pairs of sentences; the result is for msllm translate.

    Args:
        source: file of the source language, plain or .gz; or a .tsv, .jsonl or hub name that holds both languages.
        training: options of the run.
        output: folder of the result; gets model, tokenizer, log.jsonl, loss.png and checkpoints.
        target: file of the target language, line by line the translation of source.
        eval_source: pairs to evaluate on, as source.
        eval_target: as target.
        vocabulary: of both languages together: bpe (byte-level), word, or sentencepiece.
        vocab_size: its size.
        lowercase: lower-case all text, in training and in use.
        d_model: width.
        layers: of the encoder, and of the decoder.
        heads: of each attention.
        ffn_dim: inner width of the feed-forward layers.
        dropout: of embeddings and sub-layers' outputs.
        pre_norm: norm before each sub-layer instead of after it.
        label_smoothing: share of the target spread over the vocabulary.
        max_length: longer pairs are left out of training; the model takes no longer sentence.
        average_last: the result is the mean of so many last checkpoints, the end included.
        limit: use only the first pairs.
        resume: "auto" or a checkpoint folder: go on where an earlier run stopped.
        overwrite: replace what an earlier run left in the output folder.
    """
    import mindspore as ms

    from msllm.data.parallel_text import encode_pairs, read_parallel
    from msllm.models.transformer import TransformerConfig, TransformerForTranslation
    from msllm.parallel import start_workers
    from msllm.tokenization import train_tokenizer
    from msllm.training import Trainer, checkpoint
    from msllm.training.translation import translation

    workers = start_workers()
    pairs = read_parallel(source, target)
    if limit is not None:
        pairs = pairs.first(limit)
    tokenizer = train_tokenizer([*pairs.source, *pairs.target], vocab_size, vocabulary, lowercase=lowercase)
    examples, longer = encode_pairs(pairs, tokenizer, max_length)
    print(
        f"training data: {pairs}; {longer} longer than {max_length} tokens; vocabulary {len(tokenizer)}",
        file=sys.stderr,
    )
    eval_examples = None
    if eval_source is not None:
        eval_examples, _ = encode_pairs(read_parallel(eval_source, eval_target, "validation"), tokenizer, max_length)
    ms.set_seed(training.seed)
    model = TransformerForTranslation(
        TransformerConfig.from_dict(
            {
                "vocab_size": len(tokenizer),
                "d_model": d_model,
                "encoder_layers": layers,
                "decoder_layers": layers,
                "attention_heads": heads,
                "ffn_dim": ffn_dim,
                "dropout": dropout,
                "pre_norm": pre_norm,
                "max_positions": max_length,
                "pad_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "decoder_start_token_id": tokenizer.bos_token_id,
            }
        )
    )
    print(f"Transformer with {sum(p.size for p in model.get_parameters()):,} parameters", file=sys.stderr)

    def write_model(folder: Path) -> None:
        model.write_files(folder, tokenizer)

    trainer = Trainer(
        model,
        training,
        examples,
        output,
        eval_examples,
        tokenizer.pad_token_id,
        translation(tokenizer.bos_token_id, label_smoothing),
        write_model,
        workers=workers,
    )
    trainer.train(resume, overwrite)
    if trainer.rank > 0:
        return
    last = checkpoint.find(Path(output))[-(average_last - 1) :] if average_last > 1 else []
    if last:
        model.load(checkpoint.average([*last, Path(output)]), output)
        with atomic_files(output) as tmp:
            write_model(tmp)
        print(f"averaged the weights of {len(last)} checkpoints and the end", file=sys.stderr)
    print(f"saved {output}; try it: msllm translate --model {output}", file=sys.stderr)


def translate(
    model: str,
    generation: GenerationConfig,
    text: str | None = None,
    file: str | None = None,
    batch_size: int = 32,
) -> None:
    """Translates a line, a file or standard input, a sentence a line.

    Args:
        model: folder that train-translator wrote.
        generation: options of generation; --num_beams 5 is what the figures of chapter 2 are measured with.
        text: a sentence; without it and file, standard input is read.
        file: sentences, one a line, plain or .gz.
        batch_size: sentences at a time.
    """
    if text is not None and file is not None:
        raise UserError("both --text and --file were given; give one of them")
    from msllm.commands.loading import open_checkpoint
    from msllm.data.parallel_text import read_lines
    from msllm.generation.translate import translate as translate_sentences

    lines = [text] if text is not None else None if file is None else read_lines(file)
    network, tokenizer = open_checkpoint(model)
    if not hasattr(network, "encode"):
        raise UserError(
            f"{model} holds a {type(network).__name__}, which does not translate; give the folder of a "
            f"train-translator run"
        )
    if lines is None and not sys.stdin.isatty():
        lines = sys.stdin.read().splitlines()
    if lines is not None:
        for translation in translate_sentences(network, tokenizer, lines, generation, batch_size):
            print(translation)
        return
    print(f"{Path(model).name}: type a sentence, Ctrl-D to leave.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            print(translate_sentences(network, tokenizer, [line], generation)[0])
