"""Runs as MindFormers 1.9.0's YAMLs describe them, and as the options of msllm pretrain and msllm finetune do.

Each option stands in the place that has its meaning there: ``per_device_train_batch_size`` in runner_config.batch_size
(of a micro-batch where there is a pipeline), ``parallel.optimizer`` in the level of the parallel optimiser, and so on.
What MindFormers has no place for is kept under ``msllm``, a key that it skips with a warning, so that the way back
gives the same options.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msllm.conversion.mindformers.keys import check_keys, leaves
from msllm.conversion.mindformers.llama_config import ARCHITECTURE, CONFIG, from_llama_config
from msllm.conversion.mindformers.run import NEVER, OPTIMIZERS, SCHEDULES, Run, run_sections
from msllm.conversion.yaml_files import Yaml, read_yaml
from msllm.errors import UserError
from msllm.models.llama import LlamaConfig
from msllm.parallel.config import ParallelConfig
from msllm.training.arguments import TrainingArguments

_MODES = ("data_parallel", "semi_auto_parallel", "auto_parallel")
_ADAMS = ("AdamW", "FusedAdamW", "PmaAdamW", "AdamWeightDecay", "FP32StateAdamWeightDecay", "FusedCastAdamWeightDecay")
_EXTRA = "msllm"
# Other spellings of what is read, and a rate that the schedule's takes the place of.
_READ = ("optimizer.beta1", "optimizer.beta2", "optimizer.learning_rate", "train_dataset.data_loader.dataset_files")


def to_run_yaml(
    run: Run, dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16", device: Literal["Ascend", "CPU"] = "Ascend"
) -> tuple[dict[str, Any], list[str]]:
    """Returns the mapping for a MindFormers 1.9.0 run YAML.

    Args:
        run: a run of a LLaMA.
        dtype: of the model's matrix products; the parameters are float32. Other than float32 lets it use flash
            attention, which computes in no other.
        device: CPU leaves out the operators that only Ascend has, so that the model can be built and run there.

    Returns:
        The mapping, and the names of the options that MindFormers has no key for, which stand under ``msllm``.
        A run of max_steps ends after num_train_epochs there, where these are fewer steps.

    Raises:
        UserError: as to_llama_config; a learning-rate schedule that MindFormers does not have.
    """
    values = run_sections(run, dtype, device)
    read = _run_of(values, "the YAML")
    rest: dict[str, dict[str, Any]] = {}
    for name in ("training", "parallel"):
        ours, theirs = (dataclasses.asdict(getattr(one, name)) for one in (run, read))
        rest[name] = {key: value for key, value in ours.items() if value != theirs[key]}
    rest["options"] = dict(run.options)
    if rest := {name: keys for name, keys in rest.items() if keys}:
        values[_EXTRA] = rest
    lost = [f"{name}.{key}" if name == "parallel" else key for name, keys in rest.items() for key in keys]
    return values, lost


def from_run_yaml(path: str | Path) -> tuple[Run, list[str]]:
    """Reads a MindFormers run YAML.

    Returns:
        The run, and the paths of keys whose values have no counterpart here; those that 1.9.0 would take anyway, and
        housekeeping such as profiles and log folders, are not among them.

    Raises:
        UserError: a misspelt or unknown key, a value of the wrong kind, a run_mode other than train and finetune, a
            model other than a LLaMA, a YAML of the format without legacy.
    """
    values = read_yaml(path)
    check_keys(values, str(path))
    run, yaml = _run_of(values, str(path)), Yaml(values, str(path))
    dtype = yaml.get("model.model_config.compute_dtype", str, "float16")
    device = "CPU" if yaml.get("context.device_target", str, "Ascend") == "CPU" else "Ascend"
    again = dict(leaves(run_sections(run, dtype, device)))
    lost = (name for name, value in leaves(values) if not _same(again.get(name), value))
    return run, [name for name in lost if name not in _READ]


def _same(one: Any, other: Any) -> bool:
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return one == other


def _run_of(values: Mapping[str, Any], where: str) -> Run:
    yaml = Yaml(values, where)
    task = yaml.one_of("run_mode", ("train", "finetune"))
    model = _model(yaml)
    parallel = _parallel(yaml)
    resume = bool(values.get("resume_training"))  # true, or the name of a checkpoint
    length = yaml.get("model.model_config.seq_length", int, 2048)
    run = Run(
        model=model,
        training=_training(yaml, parallel),
        parallel=parallel,
        task=task,
        data=yaml.get("train_dataset.data_loader.dataset_dir", str)
        or yaml.get("train_dataset.data_loader.dataset_files", str, ""),
        output=yaml.get("output_dir", str, "./output"),
        eval_data=yaml.get("eval_dataset.data_loader.dataset_dir", str) if yaml.get("do_eval", bool) else None,
        weights=None if resume else yaml.get("load_checkpoint", str) or None,
        length=None if task == "train" and length == model.max_position_embeddings else length,
        resume=resume,
    )
    return _with_extra(run, yaml)


def _model(yaml: Yaml) -> LlamaConfig:
    if not yaml.get("use_legacy", bool, True):
        raise UserError(f"{yaml.where}: use_legacy is false, and read are the YAMLs with model.arch; give one of those")
    yaml.one_of("model.model_config.type", (CONFIG,))
    yaml.one_of("model.arch.type", (ARCHITECTURE,))
    for path in ("moe_config.expert_num", "model.model_config.moe_config.expert_num"):
        if (experts := yaml.get(path, int, 1)) > 1:
            raise UserError(f"{yaml.where}: {path} is {experts}, and a LLaMA with experts is not known here; use 1")
    return from_llama_config(yaml.get("model.model_config", dict), f"{yaml.where}: model.model_config")


def _parallel(yaml: Yaml) -> ParallelConfig:
    if not yaml.get("use_parallel", bool, False):
        return ParallelConfig(data=1)
    number = yaml.get("parallel", dict, {}).get("parallel_mode", 1)
    mode = _MODES[number] if isinstance(number, int) and 0 <= number < len(_MODES) else str(number).lower()
    if mode not in _MODES:
        raise UserError(f"{yaml.where}: parallel.parallel_mode is {number!r}; read are 0 to 2: {', '.join(_MODES)}")
    degrees = {
        "data": "data_parallel",
        "tensor": "model_parallel",
        "pipeline": "pipeline_stage",
        "sequence": "context_parallel",
        "expert": "expert_parallel",
    }
    values: dict[str, Any] = {name: _count(yaml, f"parallel_config.{theirs}") for name, theirs in degrees.items()}
    if yaml.get("parallel_config.context_parallel_algo", str) == "ulysses_cp":
        values["attention"] = "heads"
    if yaml.get("parallel.enable_parallel_optimizer", bool, False):
        level = yaml.one_of(
            "parallel.parallel_optimizer_config.optimizer_level", ("level1", "level2", "level3"), "level1"
        )
        shard = yaml.get("parallel.parallel_optimizer_config.gradient_accumulation_shard", bool, False)
        values["optimizer"] = max(int(level[-1]), 2 if shard else 1)
    if mode != "data_parallel":
        values["mode"] = "auto"
    if mode == "auto_parallel":
        searches = ("sharding_propagation", "recursive_programming", "dynamic_programming")
        values["search"] = yaml.one_of("parallel.search_mode", searches, searches[0])
    if values["pipeline"] > 1:
        values |= _pipeline(yaml)
    return ParallelConfig(
        split_norms=yaml.get("parallel_config.use_seq_parallel", bool, False),
        recompute=yaml.get("recompute_config.recompute", bool, False),
        **values,
    )


def _pipeline(yaml: Yaml) -> dict[str, Any]:
    scheduler = yaml.one_of("parallel.pipeline_config.pipeline_scheduler", ("1f1b", "gpipe"), "1f1b")
    chunks = yaml.get("model.model_config.pp_interleave_num", int, 1)
    return {
        "schedule": "interleaved" if chunks > 1 else scheduler,
        "chunks": chunks,
        "micro_batches": _count(yaml, "parallel_config.micro_batch_num") // _accumulated(yaml, True),
    }


def _accumulated(yaml: Yaml, pipeline: bool) -> int:
    """Returns the forward passes of an optimiser step; in a pipeline MindFormers counts all as micro-batches."""
    steps = _count(yaml, "runner_config.gradient_accumulation_steps")
    return 1 if pipeline and _count(yaml, "parallel_config.micro_batch_num") % steps else steps


def _count(yaml: Yaml, path: str) -> int:
    value = yaml.get(path, int, 1)
    if value < 1:
        raise UserError(f"{yaml.where}: {path} is {value}, expected 1 or more; correct it")
    return value


def _training(yaml: Yaml, parallel: ParallelConfig) -> TrainingArguments:
    optimizer = yaml.one_of("optimizer.type", (*_ADAMS, "Lamb"), "AdamW")
    betas = [yaml.checked("optimizer.betas", beta, float) for beta in yaml.get("optimizer.betas", list, [0.9, 0.999])]
    if len(betas) != 2:
        raise UserError(f"{yaml.where}: optimizer.betas has {len(betas)} numbers, expected 2; correct it")
    schedule = yaml.one_of("lr_schedule.type", SCHEDULES.values(), SCHEDULES["constant"])
    batch = _count(yaml, "runner_config.batch_size")
    batch *= parallel.micro_batches if parallel.pipeline > 1 else 1
    steps = yaml.get("runner_config.stop_step", int, 0) or yaml.get("lr_schedule.total_steps", int, -1)
    clip = yaml.get("runner_wrapper.use_clip_grad", bool, True)
    saver = yaml.get("callbacks.CheckpointMonitor", dict)
    save = NEVER if saver is None else yaml.get("callbacks.CheckpointMonitor.save_checkpoint_steps", int, 1)
    evaluated = yaml.get("do_eval", bool, False)
    rate = yaml.get("optimizer.learning_rate", float, 5e-5)
    return TrainingArguments(
        optim="lamb" if optimizer == OPTIMIZERS["lamb"] else "adamw",
        learning_rate=yaml.get("lr_schedule.learning_rate", float, rate),
        num_train_epochs=float(yaml.get("runner_config.epochs", int, 1)),
        max_steps=steps if steps > 0 else -1,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch if evaluated else TrainingArguments.per_device_eval_batch_size,
        gradient_accumulation_steps=_accumulated(yaml, parallel.pipeline > 1),
        lr_scheduler_type=next(ours for ours, theirs in SCHEDULES.items() if theirs == schedule),
        warmup_ratio=yaml.get("lr_schedule.warmup_ratio", float, 0.0),
        warmup_steps=yaml.get("lr_schedule.warmup_steps", int, 0),
        weight_decay=yaml.get("optimizer.weight_decay", float, 0.0),
        adam_beta1=yaml.get("optimizer.beta1", float, betas[0]),
        adam_beta2=yaml.get("optimizer.beta2", float, betas[1]),
        adam_epsilon=yaml.get("optimizer.eps", float, 1e-8),
        max_grad_norm=yaml.get("runner_wrapper.max_grad_norm", float, 1.0) if clip else 0.0,
        logging_steps=yaml.get("callbacks.MFLossMonitor.per_print_times", int, 1),
        eval_steps=max(0, yaml.get("eval_step_interval", int, 100)) if evaluated else 0,
        save_steps=0 if save == NEVER else save,
        save_total_limit=yaml.get("callbacks.CheckpointMonitor.keep_checkpoint_max", int, 5),
        seed=yaml.get("seed", int, 1),
        jit=parallel.world == 1 and yaml.get("context.mode", int, 0) == 0,
    )


def _with_extra(run: Run, yaml: Yaml) -> Run:
    """Adds what an earlier conversion kept under ``msllm``."""
    extra = yaml.get(_EXTRA, dict, {})
    for name in extra:
        if name not in ("training", "parallel", "options"):
            raise UserError(f"{yaml.where}: unknown key {_EXTRA}.{name}; expected training, parallel or options")
    for name in ("training", "parallel"):
        own = getattr(run, name)
        run = dataclasses.replace(run, **{name: dataclasses.replace(own, **yaml.fields(f"{_EXTRA}.{name}", type(own)))})
    return dataclasses.replace(run, options=extra.get("options", {}))
