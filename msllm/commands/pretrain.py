"""msllm pretrain: from token ids, or pairs of sentences, to a GPT or a BERT."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any, Literal

from msllm.errors import UserError, nearest
from msllm.parallel.config import ParallelConfig
from msllm.parallel.launch import ALONE, start_command
from msllm.parallel.offload import IN_MEMORY, OffloadConfig
from msllm.training.arguments import TrainingArguments

_GPTS = {"gpt2": "GPT2LMHeadModel", "openai-gpt": "OpenAIGPTLMHeadModel"}
_BERT_INNER = 1024


def pretrain(
    data: str,
    training: TrainingArguments,
    output: str,
    eval_data: str | None = None,
    model: str | None = None,
    config_name: str | None = None,
    family: Literal["bert", "gpt2", "openai-gpt"] | None = None,
    hidden_size: int = 256,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int | None = None,
    max_positions: int = 512,
    dropout: float = 0.1,
    block_size: int | None = None,
    sampling: Literal["random", "sequential"] = "random",
    resume: str | None = None,
    overwrite: bool = False,
    workers: int = 1,
    time_limit: float | None = None,
    parallel: ParallelConfig = ALONE,
    offload: OffloadConfig = IN_MEMORY,
) -> None:
    """Pre-trains a GPT on next tokens, or a BERT on masked words and next sentences; under msrun, on several workers.

    Args:
        data: folder that msllm data tokenize wrote, or a .bin file of it, for a GPT; that pretraining-data wrote, for
            a BERT.
        training: options of the run; the batch size is that of each data-parallel worker.
        output: folder of the result; gets model, tokenizer, log.jsonl, loss.png and checkpoints.
        eval_data: the like of data, to evaluate on; without it, a GPT is evaluated on validation.bin where data has it.
        model: folder of a model to go on from, whose tokenizer built the data; without it, one of the sizes below.
        config_name: a new model of the sizes of a published one, such as llama2-7b, or of a config.json or its folder;
            the vocabulary is the one named there, and the data must fit into it.
        family: of the new model; without it, gpt2 for token files and bert for examples of sentence pairs.
        hidden_size: width.
        layers: depth.
        heads: of attention.
        intermediate_size: inner width of the feed-forward layers; without it, 1024 for bert, else 4 x hidden_size.
        max_positions: longest sequence.
        dropout: of embeddings, outputs and attention weights.
        block_size: tokens of a GPT's training example; without it, the longest that the model takes.
        sampling: where a GPT's examples come from; random draws places in the data, and an epoch is as many examples
            as fit into it; sequential goes through the data in windows, whose order is shuffled.
        resume: "auto" or a checkpoint folder: go on where an earlier run stopped.
        overwrite: replace what an earlier run left in the output folder.
        workers: processes of this machine to train on; their logs go to output/logs. Under msrun, leave it out.
        time_limit: seconds after which these workers save a checkpoint and end.
        parallel: how the run is spread over the workers.
        offload: what is on the host or in files rather than in memory.
    """
    sizes = {"hidden_size": hidden_size, "layers": layers, "heads": heads, "intermediate_size": intermediate_size}
    sizes |= {"max_positions": max_positions, "dropout": dropout}
    source = (model, config_name, family)
    job = _Job(data, training, output, eval_data, *source, sizes, block_size, sampling, offload).checked()
    if start_command("pretrain", output, resume, overwrite, workers, time_limit, parallel, job.fits):
        return
    from msllm.parallel import Server, join

    group = join(parallel, output, resume, offload)
    if isinstance(group, Server):
        return group.serve()
    trainer = _bert_trainer(job, group) if job.family == "bert" else _gpt_trainer(job, group)
    trainer.train(resume, overwrite)
    if trainer.rank == 0:
        command, option = ("predict", "--text '[MASK]'") if job.family == "bert" else ("generate", "--prompt TEXT")
        print(f"saved {output}; try it: msllm {command} --model {output} {option}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The options of pretrain that say what is trained, on what; ``sizes`` are those of a new model, by their names."""

    data: str
    training: TrainingArguments
    output: str
    eval_data: str | None
    model: str | None
    config_name: str | None
    family: str | None
    sizes: dict[str, Any]
    block_size: int | None
    sampling: str
    offload: OffloadConfig

    def checked(self) -> "_Job":
        """Returns the job with its family; UserError where options contradict each other or the data."""
        defaults = {name: option.default for name, option in inspect.signature(pretrain).parameters.items()}
        changed = [name for name, value in self.sizes.items() if value != defaults[name]]
        source = [name for name in ("model", "config_name") if getattr(self, name) is not None]
        if len(source) > 1:
            raise UserError("model and config_name were given: one goes on, the other starts anew; give one of both")
        if source and changed:
            raise UserError(
                f"{', '.join(changed)} and {source[0]} were given, and a model has its sizes; give one of both"
            )
        family = self._family()
        if family == "bert" and (self.block_size, self.sampling) != (None, "random"):
            raise UserError(
                "block_size and sampling are options for a GPT's token files, not for a BERT; leave them out"
            )
        inner, width = self.sizes["intermediate_size"], self.sizes["hidden_size"]
        if family == "openai-gpt" and inner not in (None, 4 * width):
            raise UserError(
                f"intermediate_size is {inner}, and that of an openai-gpt is always 4 x hidden_size, here {4 * width}; "
                f"leave it out"
            )
        return dataclasses.replace(self, family=family)

    def fits(self, parallel: ParallelConfig) -> None:
        """Raises UserError where the model or its batches cannot be spread so."""
        self.offload.check(parallel, self.training.optim)
        if parallel.plain:
            return
        from msllm.models.presets import config_of, longest
        from msllm.models.pretrained import model_config
        from msllm.parallel.plans import check_layout, sizes

        length = self.block_size
        if self.model is not None or self.config_name is not None:
            config = model_config(self.model) if self.model is not None else config_of(self.config_name)
            known = sizes(config)
            length = length or longest(config)
        else:
            heads, width = self.sizes["heads"], self.sizes["hidden_size"]
            inner = self.sizes["intermediate_size"] or 4 * width
            known = {"heads": heads, "kv_heads": heads, "layers": self.sizes["layers"], "inner": inner, "experts": 0}
            known["attention_dropout"] = self.sizes["dropout"]
            length = length or self.sizes["max_positions"]
        check_layout(parallel, self.training, self.family, known, length)

    def _family(self) -> str:
        """Returns the model type, from the options and what the data are for."""
        from msllm.data.mindrecord import MANIFEST
        from msllm.data.token_file import TRAIN

        path, known = Path(self.data), ("bert", *_GPTS)
        if self.family not in (None, *known):
            raise UserError(
                f"unknown family {self.family!r}{nearest(self.family, known)}; known are {', '.join(known)}"
            )
        ids = path.suffix == ".bin" or (path / TRAIN).is_file()
        if not ids and not (path / MANIFEST).is_file():
            raise UserError(
                f"{path} has neither {TRAIN} nor {MANIFEST}; give a folder that msllm data tokenize (for a GPT) or "
                f"msllm pretraining-data (for a BERT) wrote"
            )
        found = self.family or ("gpt2" if ids else "bert")
        if self.model is not None:
            from msllm.models.pretrained import read_config

            found = read_config(self.model).get("model_type", found)
            if self.family not in (None, found):
                raise UserError(f"family is {self.family} and {self.model} holds a {found}; leave family out")
        if self.config_name is not None:
            from msllm.models.presets import config_of

            found = config_of(self.config_name).model_type
            if self.family not in (None, found):
                raise UserError(f"family is {self.family} and {self.config_name} is a {found}; leave family out")
        if (found == "bert") == ids:
            holds, other = ("token ids, for a GPT", "pretraining-data")
            if not ids:
                holds, other = ("BERT's pairs of sentences", "data tokenize")
            raise UserError(f"{path} holds {holds}, and the model is a {found}; make its data with msllm {other}")
        return found


def _bert_trainer(job: _Job, workers):
    """Returns the Trainer of masked words and next sentences."""
    import mindspore as ms

    from msllm.data.mindrecord import read_shards
    from msllm.models.bert import BertForPreTraining
    from msllm.tokenization import load_tokenizer
    from msllm.training import Trainer
    from msllm.training.pretraining import PRETRAINING, check_length, pretraining_accuracy

    tokenizer = load_tokenizer(job.data)
    examples = read_shards(job.data, tokenizer)
    eval_examples = None if job.eval_data is None else read_shards(job.eval_data, tokenizer)
    ms.set_seed(job.training.seed)
    if job.model is not None:
        read_shards(job.data, load_tokenizer(job.model), f"the tokenizer of {job.model}")
        network = BertForPreTraining.from_pretrained(job.model)
    else:
        network = _new_bert(job.sizes, tokenizer)
    job.offload.apply(network)
    longest = check_length(network, [part for part in (examples, eval_examples) if part is not None])
    print(
        f"BERT with {sum(p.size for p in network.get_parameters()):,} parameters; {len(examples):,} examples of at "
        f"most {longest} tokens",
        file=sys.stderr,
    )
    return Trainer(
        network,
        job.training,
        examples,
        job.output,
        eval_examples,
        tokenizer.pad_token_id,
        PRETRAINING,
        write_model=lambda folder: network.write_files(folder, tokenizer),
        metrics=lambda: pretraining_accuracy(network, eval_examples, tokenizer.pad_token_id),
        workers=workers,
    )


def _new_bert(sizes: dict[str, Any], tokenizer):
    """Returns a BertForPreTraining with random weights."""
    from msllm.models.bert import BertConfig, BertForPreTraining

    values = {
        "hidden_size": sizes["hidden_size"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": _BERT_INNER if sizes["intermediate_size"] is None else sizes["intermediate_size"],
        "max_position_embeddings": sizes["max_positions"],
        "hidden_dropout_prob": sizes["dropout"],
        "attention_probs_dropout_prob": sizes["dropout"],
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "architectures": ["BertForPreTraining"],
    }
    return BertForPreTraining(BertConfig.from_dict(values))


def _gpt_trainer(job: _Job, workers):
    """Returns the Trainer of next tokens."""
    import mindspore as ms

    from msllm.data.token_file import Windows
    from msllm.models.causal_lm import require_causal
    from msllm.models.presets import config_of
    from msllm.models.pretrained import check_vocabulary, from_pretrained, model_class
    from msllm.tokenization import load_tokenizer
    from msllm.training import Trainer
    from msllm.training.blocks import BLOCKS, block_examples, block_length_of, open_token_files
    from msllm.training.moe_objective import with_router_losses

    owner = job.model or str(job.data if Path(job.data).is_dir() else Path(job.data).parent)
    tokenizer = load_tokenizer(owner)
    train, held_out = open_token_files(job.data, job.eval_data, tokenizer, f"the tokenizer of {owner}")
    ms.set_seed(job.training.seed)
    if job.model is not None:
        network = from_pretrained(job.model)
    elif job.config_name is not None:
        config = config_of(job.config_name)
        network = model_class(config.to_dict(), job.config_name)(config)
    else:
        network = _new_gpt(job.family, job.sizes, tokenizer)
    named = job.model or job.config_name
    if named is not None:
        require_causal(network, named)
        check_vocabulary(tokenizer, network, named)
    job.offload.apply(network)
    parts = [part for part in (train, held_out) if part is not None]
    block_size = block_length_of(network, parts, job.block_size, job.sizes["max_positions"])
    world = 1 if workers is None else workers.data_world
    training, examples = block_examples(train, block_size, job.sampling, job.training, world)
    print(
        f"{type(network).__name__} with {sum(p.size for p in network.get_parameters()):,} parameters; "
        f"{len(train):,} tokens, {len(examples):,} {job.sampling} examples of {block_size}; "
        f"{0 if held_out is None else len(held_out):,} tokens to evaluate on",
        file=sys.stderr,
    )
    return Trainer(
        network,
        training,
        examples,
        job.output,
        None if held_out is None else Windows(held_out, block_size),
        tokenizer.pad_token_id,
        with_router_losses(network, BLOCKS),
        write_model=lambda folder: network.write_files(folder, tokenizer),
        workers=workers,
    )


def _new_gpt(family: str, sizes: dict[str, Any], tokenizer):
    """Returns a causal language model with random weights."""
    from msllm.models.pretrained import model_class

    values = {
        "model_type": family,
        "architectures": [_GPTS[family]],
        "n_embd": sizes["hidden_size"],
        "n_layer": sizes["layers"],
        "n_head": sizes["heads"],
        "n_positions": sizes["max_positions"],
        **{f"{place}_pdrop": sizes["dropout"] for place in ("resid", "embd", "attn")},
        "vocab_size": len(tokenizer),
        **{f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")},
    }
    if family == "gpt2":
        values["n_inner"] = sizes["intermediate_size"]
    cls = model_class(values, "the new model")
    return cls(cls.config_class.from_dict(values))
