"""A training run as the sections of a MindFormers 1.9.0 YAML: what stands where, and what it means there."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msllm.conversion.mindformers.llama_config import ARCHITECTURE, to_llama_config
from msllm.errors import UserError
from msllm.models.config import ModelConfig
from msllm.models.presets import PRESETS, config_of
from msllm.parallel.config import ParallelConfig
from msllm.training.arguments import TrainingArguments

SCHEDULES = {"constant": "ConstantWarmUpLR", "linear": "LinearWithWarmUpLR", "cosine": "CosineWithWarmUpLR"}
OPTIMIZERS = {"adamw": "AdamW", "lamb": "Lamb"}
NEVER = 2**31 - 1  # steps between checkpoints of a run that saves at its end alone


@dataclasses.dataclass(kw_only=True)
class Run:
    """A training run.

    Args:
        model: its configuration.
        training: options of the run.
        parallel: how it is spread; ``data`` is filled in.
        task: train for msllm pretrain, finetune for msllm finetune.
        data: what it trains on.
        output: folder of the result.
        eval_data: what it is evaluated on.
        weights: folder of the weights to start from; None for random ones.
        length: tokens of an example; None for the most that the model takes.
        resume: go on where an earlier run with this output stopped.
        options: others of the command, by name, which say nothing to MindFormers.
    """

    model: ModelConfig
    training: TrainingArguments
    parallel: ParallelConfig
    task: Literal["train", "finetune"] = "train"
    data: str = ""
    output: str = "./output"
    eval_data: str | None = None
    weights: str | None = None
    length: int | None = None
    resume: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def preset_of(model: ModelConfig) -> str | None:
    """Returns the name of the published model that has this configuration."""
    return next((name for name in PRESETS if config_of(name) == model), None)


def run_sections(run: Run, dtype: str, device: str) -> dict[str, Any]:
    """Returns the YAML of a run, without the options that it has no key for; see to_run_yaml."""
    training, parallel = run.training, run.parallel
    preset = preset_of(run.model)
    name = preset.replace("-", "_") if preset else run.model.model_type
    data = {"data_loader": {"type": "MindDataset", "dataset_dir": run.data, "shuffle": True}}
    data |= {"input_columns": ["input_ids"], "num_parallel_workers": 8, "drop_remainder": True, "repeat": 1}
    return {
        "seed": training.seed,
        "run_mode": run.task,
        "output_dir": run.output,
        "load_checkpoint": str(Path(run.output) / "checkpoint") if run.resume else run.weights or "",
        "load_ckpt_format": "safetensors",
        "auto_trans_ckpt": parallel.world > 1 and bool(run.weights) and not run.resume,
        "resume_training": run.resume,
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": name},
        "runner_config": {
            "epochs": max(1, math.ceil(training.num_train_epochs)),
            "batch_size": _batch(run),
            "sink_mode": device != "CPU",
            "sink_size": 1,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "stop_step": max(0, training.max_steps),
        },
        "runner_wrapper": {
            "type": "MFTrainOneStepCell",
            "scale_sense": 1.0,
            "use_clip_grad": training.max_grad_norm > 0,
            "max_grad_norm": training.max_grad_norm or 1.0,
        },
        "optimizer": _optimizer(training),
        "lr_schedule": _schedule(training),
        "train_dataset": data,
        "train_dataset_task": {"type": "CausalLanguageModelDataset", "dataset_config": data},
        **_evaluation(run, data),
        **_parallel(parallel, training.gradient_accumulation_steps),
        "recompute_config": {"recompute": parallel.recompute},
        "context": {
            "mode": 0 if parallel.world > 1 or training.jit else 1,
            "device_target": device,
            "max_call_depth": 10000,
        },
        "callbacks": [
            {"type": "MFLossMonitor", "per_print_times": training.logging_steps},
            {
                "type": "CheckpointMonitor",
                "prefix": name,
                "save_checkpoint_steps": training.save_steps or NEVER,
                "keep_checkpoint_max": training.save_total_limit,
                "integrated_save": False,
                "checkpoint_format": "safetensors",
            },
        ],
        "model": {"model_config": _model(run, dtype, device), "arch": {"type": ARCHITECTURE}},
        "processor": {"type": "LlamaProcessor", "return_tensors": "ms", "tokenizer": {"type": "LlamaTokenizer"}},
    }


def _batch(run: Run) -> int:
    """MindFormers' batch is that of a micro-batch where there is a pipeline; elsewhere it has no micro-batches."""
    pieces = run.parallel.micro_batches if run.parallel.pipeline > 1 else 1
    return max(1, run.training.per_device_train_batch_size // pieces)


def _optimizer(training: TrainingArguments) -> dict[str, Any]:
    values = {"type": OPTIMIZERS[training.optim], "learning_rate": training.learning_rate}
    if training.optim == "adamw":
        values["betas"] = [training.adam_beta1, training.adam_beta2]
    else:
        values |= {"beta1": training.adam_beta1, "beta2": training.adam_beta2}
    return {**values, "eps": training.adam_epsilon, "weight_decay": training.weight_decay}


def _schedule(training: TrainingArguments) -> dict[str, Any]:
    if training.lr_scheduler_type not in SCHEDULES:
        raise UserError(
            f"lr_scheduler_type is {training.lr_scheduler_type}, which MindFormers 1.9.0 does not have; use "
            f"{', '.join(SCHEDULES)}"
        )
    warmup = {"warmup_steps": training.warmup_steps} if training.warmup_steps else {}
    return {
        "type": SCHEDULES[training.lr_scheduler_type],
        "learning_rate": training.learning_rate,
        "lr_end": 0.0,
        **(warmup or {"warmup_ratio": training.warmup_ratio}),
        "total_steps": training.max_steps if training.max_steps > 0 else -1,
    }


def _evaluation(run: Run, data: Mapping[str, Any]) -> dict[str, Any]:
    if run.eval_data is None:
        return {"do_eval": False}
    loader = {**data["data_loader"], "dataset_dir": run.eval_data, "shuffle": False}
    held_out = {**data, "data_loader": loader, "drop_remainder": False}
    return {
        "do_eval": True,
        "eval_step_interval": run.training.eval_steps or -1,
        "eval_epoch_interval": -1 if run.training.eval_steps else 1,
        "eval_dataset": held_out,
        "eval_dataset_task": {"type": "CausalLanguageModelDataset", "dataset_config": held_out},
    }


def _parallel(parallel: ParallelConfig, accumulated: int) -> dict[str, Any]:
    """The layout: MindFormers leaves the cutting to MindSpore's auto-parallel, but for data-parallel copies alone.

    Its pipeline has no accumulation beside micro-batches: those of all ``accumulated`` passes are one row of them.
    """
    copies = parallel.plain
    values: dict[str, Any] = {
        "parallel_mode": 0 if copies else 1 if parallel.search == "none" else 2,
        "full_batch": not copies,
        "gradients_mean": copies,
        "search_mode": "sharding_propagation" if parallel.search == "none" else parallel.search,
        "enable_parallel_optimizer": parallel.optimizer > 0,
        "strategy_ckpt_save_file": "./ckpt_strategy.ckpt",
    }
    if parallel.optimizer:
        level = {"optimizer_level": f"level{parallel.optimizer}", "parallel_optimizer_threshold": 64}
        values["parallel_optimizer_config"] = level
    if parallel.pipeline > 1:
        interleaved = parallel.schedule == "interleaved"
        scheduler = "1f1b" if interleaved else parallel.schedule
        values["pipeline_config"] = {"pipeline_interleave": interleaved, "pipeline_scheduler": scheduler}
    return {
        "use_parallel": parallel.world > 1,
        "parallel": values,
        "parallel_config": {
            "data_parallel": parallel.data,
            "model_parallel": parallel.tensor,
            "pipeline_stage": parallel.pipeline,
            "context_parallel": parallel.sequence,
            "context_parallel_algo": "ulysses_cp" if parallel.attention == "heads" else "colossalai_cp",
            "expert_parallel": parallel.expert,
            "micro_batch_num": parallel.micro_batches * accumulated if parallel.pipeline > 1 else 1,
            "use_seq_parallel": parallel.split_norms,
            "vocab_emb_dp": False,
        },
        "moe_config": {"expert_num": 1},
    }


def _model(run: Run, dtype: str, device: str) -> dict[str, Any]:
    """The model and how it is computed."""
    parallel, flash = run.parallel, dtype != "float32" and device == "Ascend"
    return {
        **to_llama_config(run.model, run.length, dtype),
        "use_flash_attention": flash,
        "use_ring_attention": flash and parallel.sequence > 1 and parallel.attention == "ring",
        "use_rope_slice": device == "CPU",
        "fused_rms_norm": device == "Ascend",
        "pp_interleave_num": parallel.chunks,
        "input_sliced_sig": False,
        "checkpoint_name_or_path": "",
    }
