"""Run YAMLs of MindFormers: options there and back, what has no counterpart is named, misspelt keys are refused."""

import dataclasses
import logging

import pytest
import yaml

from msllm.commands.convert_yaml import convert_yaml
from msllm.conversion.mindformers import Run, from_run_yaml, to_run_yaml
from msllm.conversion.yaml_files import write_yaml
from msllm.errors import UserError
from msllm.files import write_json
from msllm.models.presets import config_of
from msllm.parallel.config import ParallelConfig
from msllm.training.arguments import TrainingArguments

LLAMA = config_of("llama2-7b")
SCALED = dataclasses.replace(
    LLAMA,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    tie_word_embeddings=True,
    attention_bias=True,
    pad_token_id=3,
)
AUTO = {"mode": "auto"}
# What a run is, and the options that MindFormers has no key for.
RUNS = {
    "one worker": (Run(model=LLAMA, training=TrainingArguments(), parallel=ParallelConfig(data=1)), []),
    "layout": (
        Run(
            model=LLAMA,
            training=TrainingArguments(
                learning_rate=3e-4,
                num_train_epochs=2.0,
                per_device_train_batch_size=24,
                gradient_accumulation_steps=2,
                lr_scheduler_type="cosine",
                warmup_ratio=0.03,
                weight_decay=0.1,
                adam_beta2=0.95,
                adam_epsilon=1e-5,
                max_grad_norm=0.5,
                logging_steps=5,
                eval_steps=50,
                per_device_eval_batch_size=24,
                save_steps=100,
                save_total_limit=3,
                seed=0,
            ),
            parallel=ParallelConfig(
                data=2, tensor=4, pipeline=2, micro_batches=8, optimizer=1, recompute=True, split_norms=True, **AUTO
            ),
            data="tokens",
            output="out",
            eval_data="held_out",
            length=2048,
        ),
        [],
    ),
    "interleaved": (
        Run(
            model=SCALED,
            training=TrainingArguments(optim="lamb", max_steps=70, warmup_steps=7, lr_scheduler_type="constant"),
            parallel=ParallelConfig(
                data=1,
                pipeline=4,
                micro_batches=8,
                schedule="interleaved",
                chunks=2,
                sequence=2,
                attention="heads",
                **AUTO,
            ),
            task="finetune",
            data="d.jsonl",
            weights="llama",
            length=512,
        ),
        [],
    ),
    "searched": (
        Run(
            model=LLAMA,
            training=TrainingArguments(save_steps=0, max_grad_norm=0.0),
            parallel=ParallelConfig(data=8, tensor=2, optimizer=3, search="recursive_programming", **AUTO),
            resume=True,
        ),
        [],
    ),
    "copies": (Run(model=LLAMA, training=TrainingArguments(), parallel=ParallelConfig(data=8)), []),
    "ours": (
        Run(
            model=LLAMA,
            training=TrainingArguments(num_train_epochs=0.5, group_by_length=True, load_best_model_at_end=True),
            parallel=ParallelConfig(data=1, tensor=2, micro_batches=4, cut="cost"),
            options={"sampling": "sequential"},
        ),
        [
            "num_train_epochs",
            "load_best_model_at_end",
            "group_by_length",
            "parallel.micro_batches",
            "parallel.cut",
            "parallel.mode",
            "sampling",
        ],
    ),
}


def saved(path, run, **options):
    values, lost = to_run_yaml(run, **options)
    write_yaml(path, values)
    return lost


@pytest.mark.parametrize("name", RUNS)
def test_there_and_back(name, tmp_path):
    run, without = RUNS[name]
    assert saved(tmp_path / "run.yaml", run) == without
    back, lost = from_run_yaml(tmp_path / "run.yaml")
    assert back == run and lost == []


def test_where_options_stand(tmp_path):
    """The meaning of each place is MindFormers': read as it does, not as the way back does."""
    values, _ = to_run_yaml(RUNS["layout"][0])
    layout, runner = values["parallel_config"], values["runner_config"]
    # 24 examples a worker and pass, in 8 micro-batches, twice a step: its pipeline knows micro-batches alone
    assert (runner["batch_size"], layout["micro_batch_num"], layout["data_parallel"]) == (3, 16, 2)
    assert values["parallel"]["parallel_mode"] == 1 and values["parallel"]["full_batch"]
    assert values["optimizer"] == {
        "type": "AdamW", "learning_rate": 3e-4, "betas": [0.9, 0.95], "eps": 1e-5, "weight_decay": 0.1
    }  # fmt: skip
    assert values["lr_schedule"]["type"] == "CosineWithWarmUpLR" and values["lr_schedule"]["warmup_ratio"] == 0.03
    assert values["model"]["model_config"]["seq_length"] == 2048
    assert values["model"]["model_config"]["max_position_embedding"] == 4096
    copies, _ = to_run_yaml(RUNS["copies"][0])
    assert copies["parallel"]["parallel_mode"] == 0 and copies["parallel"]["gradients_mean"]
    searched, _ = to_run_yaml(RUNS["searched"][0])
    assert searched["parallel"]["search_mode"] == "recursive_programming"
    assert searched["parallel"]["parallel_optimizer_config"]["optimizer_level"] == "level3"
    assert searched["load_checkpoint"] == "output/checkpoint" and searched["resume_training"]
    cpu, _ = to_run_yaml(RUNS["one worker"][0], "float32", "CPU")
    assert cpu["model"]["model_config"]["use_rope_slice"] and not cpu["model"]["model_config"]["use_flash_attention"]


FOREIGN = """
seed: 0
run_mode: train
output_dir: ./output
load_checkpoint: ''
trainer: {type: CausalLanguageModelingTrainer, model_name: llama}
runner_config: {epochs: 2, batch_size: 1, sink_mode: True, gradient_accumulation_steps: 8}
optimizer: {type: FP32StateAdamWeightDecay, beta1: 0.9, beta2: 0.95, learning_rate: 5.e-5}
lr_schedule: {type: CosineWithWarmUpLR, learning_rate: 1e-4, lr_end: 1.e-6, warmup_ratio: 0.03, total_steps: -1}
train_dataset: &train
  data_loader: {type: MindDataset, dataset_dir: wiki, shuffle: True}
  input_columns: [input_ids]
  batch_size: 6
train_dataset_task: {type: CausalLanguageModelDataset, dataset_config: *train}
use_parallel: True
parallel: {parallel_mode: 1, full_batch: True, enable_parallel_optimizer: True}
parallel_config: {data_parallel: 8, model_parallel: 1, micro_batch_num: 1, vocab_emb_dp: True}
recompute_config: {recompute: False, recompute_slice_activation: True}
callbacks:
- {type: MFLossMonitor}
- {type: CheckpointMonitor, prefix: llama, save_checkpoint_steps: 100}
context: {mode: 0, device_target: Ascend, max_device_memory: 58GB}
model:
  model_config:
    {type: LlamaConfig, seq_length: 2048, hidden_size: 256, num_layers: 2, num_heads: 8, n_kv_heads: 2, vocab_size: 99,
    multiple_of: 64, ffn_dim_multiplier: 1.5, compute_dtype: float16, param_init_type: float16,
    use_flash_attention: True}
  arch: {type: LlamaForCausalLM}
"""


def test_a_yaml_of_others(tmp_path):
    (tmp_path / "theirs.yaml").write_text(FOREIGN)
    run, lost = from_run_yaml(tmp_path / "theirs.yaml")
    assert run.model.intermediate_size == 1088  # of 4 x 256 x 1.51 x 2/3 = 1030.8, in steps of 64
    assert run.model.num_key_value_heads == 2 and run.model.max_position_embeddings == 2048
    assert run.parallel == ParallelConfig(data=8, optimizer=1, mode="auto")
    training = run.training
    assert (training.learning_rate, training.adam_beta2, training.seed) == (1e-4, 0.95, 0)
    assert (training.gradient_accumulation_steps, training.per_device_train_batch_size) == (8, 1)
    assert (training.save_steps, training.save_total_limit, training.lr_scheduler_type) == (100, 5, "cosine")
    assert lost == [
        "optimizer.type",
        "lr_schedule.lr_end",
        "recompute_config.recompute_slice_activation",
        "model.model_config.param_init_type",
    ]


WRONG = {
    "runer_config:\n  epochs: 2": "unknown key runer_config (did you mean 'runner_config'?)",
    "runner_config:\n  epoch: 2": "unknown key runner_config.epoch (did you mean 'epochs'?)",
    "model: {model_config: {hiden_size: 8}}": "unknown key model.model_config.hiden_size (did you mean 'hidden_size'?)",
    "lr_schedule: {warmup_step: 3}": "unknown key lr_schedule.warmup_step (did you mean 'warmup_steps'?)",
    "callbacks: [{type: CheckpointMonitor, save_checkpoint_step: 3}]": (
        "unknown key callbacks.CheckpointMonitor.save_checkpoint_step (did you mean 'save_checkpoint_steps'?)"
    ),
    "parallel: {pipeline_config: {pipeline_sheduler: gpipe}}": "pipeline_sheduler (did you mean 'pipeline_scheduler'?)",
    "runner_config: {batch_size: four}": "runner_config.batch_size is 'four', expected a whole number",
    "runner_config: {gradient_accumulation_steps: 0}": "gradient_accumulation_steps is 0, expected 1 or more",
    "optimizer: {betas: [0.9]}": "optimizer.betas has 1 numbers, expected 2",
    "parallel: 1": "parallel is 1, expected keys with values",
    "model: {model_config: {type: LlamaConfig, hidden_size: wide}, arch: {type: LlamaForCausalLM}}": (
        "model.model_config: hidden_size is 'wide', expected a whole number"
    ),
    "model: {model_config: {type: LlamaConfig, hidden_size: 9, num_heads: 2}, arch: {type: LlamaForCausalLM}}": (
        "model.model_config: hidden_size = 9 is not a multiple of num_attention_heads = 2"
    ),
    "run_mode: predict": "run_mode is 'predict'; read are train, finetune",
    "lr_schedule: {type: CosineAnnealingLR}": "lr_schedule.type is 'CosineAnnealingLR'",
    "moe_config: {expert_num: 8}": "moe_config.expert_num is 8",
    "use_legacy: False": "use_legacy is false",
    "parallel: {parallel_mode: 3}": "parallel.parallel_mode is 3",
    "msllm: {training: {sed: 1}}": "unknown key msllm.training.sed (did you mean 'seed'?)",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_refused(text, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**yaml.safe_load(FOREIGN), **yaml.safe_load(text)}))
    with pytest.raises(UserError) as e:
        from_run_yaml(tmp_path / "run.yaml")
    assert WRONG[text] in str(e.value) and str(tmp_path / "run.yaml") in str(e.value)


def test_what_cannot_be_written(tmp_path):
    run = RUNS["one worker"][0]
    for change, message in (
        ({"training": TrainingArguments(lr_scheduler_type="inverse_sqrt")}, "inverse_sqrt, which MindFormers"),
        ({"model": config_of("bloom-7b1")}, "builds no bloom any more"),
        ({"model": dataclasses.replace(LLAMA, head_dim=64)}, "knows no head_dim 64"),
    ):
        with pytest.raises(UserError, match=message):
            to_run_yaml(dataclasses.replace(run, **change))
    (tmp_path / "x.yaml").write_text("a: [1,\nb: 2")
    with pytest.raises(UserError, match=r"x.yaml is not YAML: .* at line 2, column 5"):
        from_run_yaml(tmp_path / "x.yaml")


OURS = {
    "config_name": "llama2-7b",
    "data": "tokens",
    "output": "out",
    "workers": 8,
    "learning_rate": "3e-4",
    "block_size": 2048,
    "sampling": "sequential",
    "parallel": {"tensor": 2, "pipeline": 2, "micro_batches": 4, "mode": "auto"},
}


def test_the_command_both_ways(tmp_path, capsys, caplog):
    write_yaml(tmp_path / "ours.yaml", OURS)
    ours, theirs, back = (str(tmp_path / f"{name}.yaml") for name in ("ours", "theirs", "back"))
    with caplog.at_level(logging.WARNING):
        convert_yaml(ours, theirs)
        assert "no key for sampling" in caplog.text
    convert_yaml(theirs, back)
    out = capsys.readouterr().out
    assert f"msllm pretrain --config {back} --data DATA --output FOLDER, on 8 cards under msrun" in out
    expected = {**OURS, "learning_rate": 3e-4, "parallel": {"data": 2, **OURS["parallel"]}}
    del expected["workers"]
    assert yaml.safe_load((tmp_path / "back.yaml").read_text()) == expected
    (tmp_path / "foreign.yaml").write_text(FOREIGN)
    with caplog.at_level(logging.WARNING):
        convert_yaml(str(tmp_path / "foreign.yaml"), back)
        assert "lr_schedule.lr_end" in caplog.text
    values = yaml.safe_load((tmp_path / "back.yaml").read_text())
    assert config_of(values["config_name"]).num_key_value_heads == 2  # a config.json beside the YAML
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", LLAMA.to_dict())
    resumed = {"data": "d", "output": "o", "model": str(tmp_path / "model"), "resume": "auto"}
    write_yaml(tmp_path / "ours.yaml", resumed)
    convert_yaml(ours, theirs)
    assert yaml.safe_load((tmp_path / "theirs.yaml").read_text())["load_checkpoint"] == "o/checkpoint"
    convert_yaml(theirs, back)
    assert yaml.safe_load((tmp_path / "back.yaml").read_text()) == resumed
    write_yaml(tmp_path / "ours.yaml", {**OURS, "learning_rat": 1})
    with pytest.raises(UserError, match=r"ours.yaml: unknown key learning_rat \(did you mean 'learning_rate'"):
        convert_yaml(ours, theirs)
    write_yaml(tmp_path / "ours.yaml", {**OURS, "parallel": {"tenser": 2}})
    with pytest.raises(UserError, match=r"ours.yaml: unknown key parallel.tenser \(did you mean 'tensor'"):
        convert_yaml(ours, theirs)
