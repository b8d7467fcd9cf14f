"""msllm train-translator and msllm translate: from pairs of sentences to a model that translates."""

import sys
from pathlib import Path
from typing import Literal

from msllm.errors import UserError
from msllm.files import atomic_files, decode_text
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

    if eval_target is not None and eval_source is None:
        raise UserError(f"eval_target is {eval_target} and eval_source is missing; give both files, or neither")
    if average_last - 1 > training.save_total_limit:
        raise UserError(
            f"average_last is {average_last} and save_total_limit {training.save_total_limit}: fewer checkpoints are "
            f"kept; raise save_total_limit to {average_last - 1}"
        )
    checkpoint.source(output, resume, overwrite)
    workers = start_workers()
    pairs = read_parallel(source, target)
    if limit is not None:
        pairs = pairs.first(limit)
    tokenizer = train_tokenizer([*pairs.source, *pairs.target], vocab_size, vocabulary, lowercase=lowercase)
    examples, longer = encode_pairs(pairs, tokenizer, max_length)
    eval_examples = None
    if eval_source is not None:
        eval_examples, _ = encode_pairs(read_parallel(eval_source, eval_target, "validation"), tokenizer, max_length)
    sizes = {
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "attention_heads": heads,
        "ffn_dim": ffn_dim,
        "dropout": dropout,
        "pre_norm": pre_norm,
        "max_positions": max_length,
    }
    tokens = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    ms.set_seed(training.seed)
    model = TransformerForTranslation(TransformerConfig.from_dict({**sizes, **tokens}))
    print(
        f"training data: {pairs}; {longer} longer than {max_length} tokens; vocabulary {len(tokenizer)}\n"
        f"Transformer with {sum(p.size for p in model.get_parameters()):,} parameters",
        file=sys.stderr,
    )
    trainer = Trainer(
        model,
        training,
        examples,
        output,
        eval_examples,
        tokenizer.pad_token_id,
        translation(tokenizer.bos_token_id, label_smoothing),
        write_model=lambda folder: model.write_files(folder, tokenizer),
        workers=workers,
        settings={"label_smoothing": label_smoothing},
    )
    state = trainer.train(resume, overwrite)
    if trainer.rank == 0:
        if average_last > 1:
            _average(trainer, state, average_last)
        print(f"saved {output}; try it: msllm translate --model {output}", file=sys.stderr)


def _average(trainer, state, count: int) -> None:
    """Replaces the result of a run by the mean of its last checkpoints and its end."""
    from msllm.training import checkpoint

    # The best checkpoint is kept for its own sake, wherever it stands; one of the last step is the end itself.
    kept = [p for p in checkpoint.find(trainer.output) if p.name != f"checkpoint-{state.step}"]
    last = kept[-(count - 1) :]
    if len(last) < count - 1:
        raise UserError(
            f"average_last is {count} and the run kept {len(last)} checkpoints before its end; lower average_last, or "
            f"save_steps; the model of the last step is in {trainer.output}"
        )
    trainer.model.load(checkpoint.average([*last, trainer.output]), trainer.output)
    with atomic_files(trainer.output) as tmp:
        trainer.write_model(tmp)
    print(f"the result is the mean of steps {', '.join(p.name[11:] for p in last)} and {state.step}", file=sys.stderr)


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
    from msllm.data.parallel_text import read_lines, split_lines
    from msllm.generation.translate import translate as translate_sentences
    from msllm.tuning.loading import open_checkpoint

    lines = [text] if text is not None else None if file is None else read_lines(file)
    network, tokenizer = open_checkpoint(model)
    if not hasattr(network, "encode"):
        raise UserError(
            f"{model} holds a {type(network).__name__}, which does not translate; give the folder of a "
            f"train-translator run"
        )
    if lines is None and not sys.stdin.isatty():
        lines = split_lines(decode_text(sys.stdin.buffer.read(), "standard input"))
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
