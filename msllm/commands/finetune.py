"""msllm finetune: a Hugging Face folder and instruction data in, a fine-tuned folder out."""

import functools
import logging
import sys
from typing import Literal

from msllm.errors import UserError
from msllm.parallel.config import ParallelConfig
from msllm.parallel.launch import ALONE, start_command
from msllm.parallel.offload import IN_MEMORY, OffloadConfig
from msllm.training.arguments import TrainingArguments
from msllm.tuning.config import LoraConfig

log = logging.getLogger(__name__)


def finetune(
    model: str,
    data: list[str] | str,
    training: TrainingArguments,
    lora: LoraConfig,
    output: str | None = None,
    eval_data: list[str] | str | None = None,
    val_size: float = 0.0,
    max_length: int = 1024,
    packing: bool = False,
    limit: int | None = None,
    tuning: Literal["full", "lora"] = "full",
    preview: bool = False,
    resume: str | None = None,
    overwrite: bool = False,
    workers: int = 1,
    time_limit: float | None = None,
    parallel: ParallelConfig = ALONE,
    offload: OffloadConfig = IN_MEMORY,
) -> None:
    """Fine-tunes a model on instructions, conversations or plain text.

    Args:
        model: Hugging Face folder of the model to start from.
        data: files (Alpaca, ShareGPT, messages, prompt/completion, article/summary, LCSTS, plain text) or hub names.
        training: options of the run.
        lora: options of LoRA.
        output: folder of the result; gets model, tokenizer, log.jsonl, loss.png and checkpoints. Only preview goes
            without it.
        eval_data: files to evaluate on.
        val_size: without eval_data, the share (below 1) or number of records held out for evaluation.
        max_length: most tokens of an example; at most the model's context.
        packing: fill rows of max_length with several examples, which do not see each other.
        limit: use only the first records of each file.
        tuning: full trains every weight; lora trains adapters, and the result is an adapter folder.
        preview: print the first record with its loss mask in colour, and stop.
        resume: "auto" or a checkpoint folder: go on where an earlier run stopped.
        overwrite: replace what an earlier run left in the output folder.
        workers: processes of this machine to train on; their logs go to output/logs. Under msrun, leave it out.
        time_limit: seconds after which these workers save a checkpoint and end.
        parallel: how the run is spread over the workers.
        offload: what is on the host or in files rather than in memory.
    """
    if lora != LoraConfig() and tuning != "lora":
        raise UserError(f"options of lora were given but tuning is {tuning!r}; add --tuning lora")
    if output is None and not preview:
        raise UserError("output is missing: where does the result go? add --output FOLDER")
    if tuning == "lora" and not parallel.plain:
        raise UserError("adapters are trained by data-parallel workers alone; leave out the other parallel options")
    fits = functools.partial(_fits, model, training, max_length, offload, tuning)
    if not preview and start_command("finetune", output, resume, overwrite, workers, time_limit, parallel, fits):
        return
    from msllm.data import encode_records, load_records, train_validation_split
    from msllm.data import preview as show
    from msllm.models.causal_lm import require_causal
    from msllm.models.pretrained import model_class, read_config
    from msllm.parallel import Server, join
    from msllm.tokenization import load_tokenizer

    group = None if preview else join(parallel, output, resume, offload)
    if isinstance(group, Server):
        return group.serve()
    model_class(read_config(model), f"{model}/config.json")  # a wrong folder shows before the data is read
    tokenizer = load_tokenizer(model)
    records = [r for source in _files(data) for r in load_records(source, limit=limit)]
    if preview:
        show(records[0], tokenizer, max_length)
        return
    held_out = [r for source in _files(eval_data) for r in load_records(source, limit=limit)]
    if not held_out and val_size:
        records, held_out = train_validation_split(records, val_size if val_size < 1 else int(val_size), training.seed)

    from msllm.tuning.loading import open_checkpoint

    network, tokenizer = open_checkpoint(model)
    require_causal(network, model)
    offload.apply(network)
    length = min(max_length, network.max_length or max_length)
    examples, report = encode_records(records, tokenizer, length)
    print(f"training data: {report}", file=sys.stderr)
    eval_examples = None
    if held_out:
        eval_examples, report = encode_records(held_out, tokenizer, length)
        print(f"evaluation data: {report}", file=sys.stderr)
    if packing:
        from msllm.data import pack

        rows = pack(examples, length)
        print(f"packing: {len(examples)} examples -> {len(rows)} rows of at most {length} tokens", file=sys.stderr)
        examples = rows
    train_model(
        network,
        tokenizer,
        model,
        examples,
        eval_examples,
        output,
        training,
        lora if tuning == "lora" else None,
        resume,
        overwrite,
        group,
    )
    if group is None or group.rank == 0:
        articles = all(record.article is not None for record in records)
        command = f"summarize --model {output} --text TEXT" if articles else f"chat --model {output}"
        print(f"saved {output}; try it: msllm {command}", file=sys.stderr)


def _fits(
    model: str,
    training: TrainingArguments,
    max_length: int,
    offload: OffloadConfig,
    tuning: str,
    parallel: ParallelConfig,
) -> None:
    """Raises UserError where a model or its batches cannot be spread so."""
    offload.check(parallel, training.optim, tuning)
    if parallel.plain:
        return
    from msllm.models.pretrained import model_config
    from msllm.parallel.plans import check_layout, sizes

    config = model_config(model)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    # Rows are filled up to a multiple of what the workers share, and must not leave the model's positions.
    length = longest if longest is not None and max_length >= longest else None
    check_layout(parallel, training, config.model_type, sizes(config), length)


def _files(names: list[str] | str | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def train_model(
    network,
    tokenizer,
    base: str,
    examples,
    eval_examples,
    output: str,
    training: TrainingArguments,
    lora: LoraConfig | None = None,
    resume: str | None = None,
    overwrite: bool = False,
    workers=None,
):
    """Trains ``network`` on encoded examples and leaves a folder that chats; returns the trainer's state.

    Args:
        base: the folder that ``network`` came from; an adapter names it.
        lora: None trains every weight.
        workers: see Trainer.
    """
    from msllm.training.moe_objective import with_router_losses
    from msllm.training.objective import CAUSAL_LM
    from msllm.tuning.training import build_trainer

    routed = getattr(network.config, "output_router_logits", False)  # as in transformers, where it adds their loss
    objective = with_router_losses(network, CAUSAL_LM) if routed else CAUSAL_LM
    trainer = build_trainer(
        network, tokenizer, base, examples, eval_examples, output, training, objective, lora, workers
    )
    return trainer.train(resume, overwrite)
