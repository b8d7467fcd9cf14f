"""What a Trainer is told: options of a run from several sources, and a layout of workers in MindFormers' words."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from msllm.conversion.yaml_files import read_yaml
from msllm.errors import UserError, nearest
from msllm.parallel.config import ParallelConfig
from msllm.training.arguments import OPTIMIZER_NAMES, TrainingArguments
from msllm.tuning.config import LoraConfig

_OUTPUT = "output"

# Arguments of MindFormers' Trainer and of its methods that have no counterpart here, and what does their work.
UNSUPPORTED = {
    "audio_processor": "models here read text",
    "auto_trans_ckpt": "checkpoints of any layout are read by any other, as they are",
    "callbacks": "the loop writes log.jsonl, loss.png and checkpoints itself: logging_steps, eval_steps, save_steps",
    "compute_metrics": "each task has its figures: evaluate() returns them",
    "data_collator": "each task has its own, see msllm.training.Objective",
    "data_skip_steps": "a resumed run goes on at its place in the data",
    "eval_callbacks": "evaluate() returns its figures",
    "ignore_data_skip": "a resumed run goes on at its place in the data",
    "image_processor": "models here read text",
    "reset_model": "give another model",
    "save_config": "config.json in the output folder has the model's configuration",
    "src_strategy": "checkpoints of any layout are read by any other, as they are",
    "transform_process_num": "checkpoints of any layout are read by any other, as they are",
    "wrapper": "the step is built by msllm.training.step",
}


def refuse_others(others: Mapping, known: list[str]) -> None:
    """Raises UserError for arguments that have no meaning here; ``known`` are those that have."""
    for name, value in others.items():
        if name not in UNSUPPORTED:
            raise UserError(f"unknown argument {name}{nearest(name, known)}; known are {', '.join(known)}")
        if value:
            raise UserError(f"{name} is not supported: {UNSUPPORTED[name]}; leave it out")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where a run goes and how it is made."""

    training: TrainingArguments
    output: Path
    overwrite: bool


def read_options(
    args: TrainingArguments | Mapping | str | Path | None, output_dir: str | Path | None, optimizers: str | None
) -> Options:
    """Returns the options of a run.

    Args:
        args: TrainingArguments, a mapping of its values or a YAML file of them; the two latter may also have
            output_dir and overwrite_output_dir. None: the defaults.
        output_dir: of the result; None: that of ``args``, or "output".
        optimizers: adamw or lamb, as ``optim``; None: that of ``args``.

    Raises:
        UserError: an unknown or a bad value, an optimizer that is no name.
    """
    given = read_yaml(args) if isinstance(args, str | Path) else args
    values = dict(given) if isinstance(given, Mapping) else {}
    if given is not None and not isinstance(given, TrainingArguments | Mapping):
        raise UserError(
            f"args is a {type(given).__name__}, expected TrainingArguments, a mapping of their values or the path of a "
            f"YAML file"
        )
    output, overwrite = values.pop("output_dir", _OUTPUT), values.pop("overwrite_output_dir", False)
    if not isinstance(overwrite, bool):
        raise UserError(f"args: overwrite_output_dir is {overwrite!r}, expected true or false; change it")
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    strange = next((name for name in values if name not in known), None)
    if strange is not None:
        names = [*known, "output_dir", "overwrite_output_dir"]
        raise UserError(f"args has no {strange}{nearest(strange, names)}; known are {', '.join(names)}")
    _check_types(values)
    training = given if isinstance(given, TrainingArguments) else TrainingArguments(**values)
    if optimizers is not None:
        if optimizers not in OPTIMIZER_NAMES:
            raise UserError(
                f"optimizers is {optimizers!r}, expected the name of one: {', '.join(OPTIMIZER_NAMES)}; its options "
                f"are those of args"
            )
        training = dataclasses.replace(training, optim=optimizers)
    return Options(training, Path(output_dir or output), overwrite)


def _check_types(values: dict) -> None:
    """YAML reads 5e-5 as a text: numbers become numbers, and what is none is refused."""
    for field in dataclasses.fields(TrainingArguments):
        value, kind = values.get(field.name), type(field.default)
        if value is None or kind in (str, type(None)):
            continue
        try:
            fits = (
                isinstance(value, bool) if kind is bool else not isinstance(value, bool) and kind(value) == float(value)
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise UserError(f"args: {field.name} is {value!r}, expected {wanted}; change it")
        values[field.name] = kind(value)


def lora_of(pet_method: str | LoraConfig | None) -> LoraConfig | None:
    """Returns the adapter that MindFormers' pet_method names: "lora", its options, or None for none."""
    if not pet_method or isinstance(pet_method, LoraConfig):
        return pet_method or None
    if pet_method != "lora":
        raise UserError(
            f"pet_method is {pet_method!r}, expected lora or a LoraConfig; leave it out to train all weights"
        )
    return LoraConfig()


def parallel_config(
    data_parallel: int = 1,
    model_parallel: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    pipeline_stage: int = 1,
    micro_batch_interleave_num: int = 1,
    micro_batch_num: int = 1,
    use_seq_parallel: bool = False,
    optimizer_shard: bool = False,
    gradient_aggregation_group: int = 4,
    vocab_emb_dp: bool = True,
) -> ParallelConfig:
    """Returns the layout that these arguments of MindFormers' set_parallel_config describe.

    model_parallel is ``tensor``, context_parallel ``sequence``, use_seq_parallel ``split_norms``, optimizer_shard
    ``optimizer`` 1 of ParallelConfig. The workers of a tensor group share the vocabulary, whatever vocab_emb_dp says.

    Raises:
        UserError: micro_batch_interleave_num or gradient_aggregation_group, which have no counterpart.
    """
    for name, value, default in (
        ("micro_batch_interleave_num", micro_batch_interleave_num, 1),
        ("gradient_aggregation_group", gradient_aggregation_group, 4),
    ):
        if value != default:
            raise UserError(f"{name} is {value}, and collectives are neither interleaved nor fused here; leave it out")
    if vocab_emb_dp not in (True, False):
        raise UserError(f"vocab_emb_dp is {vocab_emb_dp!r}, expected true or false; change it")
    return ParallelConfig(
        data=data_parallel,
        tensor=model_parallel,
        sequence=context_parallel,
        expert=expert_parallel,
        pipeline=pipeline_stage,
        micro_batches=micro_batch_num,
        split_norms=use_seq_parallel,
        optimizer=1 if optimizer_shard else 0,
    )


def check_recompute(**others) -> None:
    """Raises UserError for what MindFormers' set_recompute_config knows beside recompute, unless it is the default."""
    for name, value in others.items():
        if value != (name == "mp_comm_recompute"):
            raise UserError(f"{name} is {value}, and whole blocks are recomputed here or none; leave it out")
