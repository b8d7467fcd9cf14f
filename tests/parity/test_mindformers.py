"""MindFormers 1.9.0 with what the bridge wrote, and the bridge with what it wrote: the same logits, the same weights.

One process of its own runs all of MindFormers: its import takes ten seconds, sets up loggers and global registers, and
writes an output folder where it stands.
"""

import json
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from msllm.conversion.mindformers import Run, from_mindformers, to_mindformers, to_run_yaml
from msllm.conversion.mindformers.keys import DEFAULTS, check_keys
from msllm.conversion.yaml_files import write_yaml
from msllm.models.llama import LlamaConfig, LlamaForCausalLM
from msllm.models.weights import read_weights
from msllm.parallel.config import ParallelConfig
from msllm.training.arguments import TrainingArguments

CONFIGS = {
    "plain": {"num_key_value_heads": 2, "rope_theta": 5000.0},
    "rich": {
        "num_key_value_heads": 4,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
}
IDS = np.random.default_rng(1).integers(1, 61, (2, 24))  # 0 is MindFormers' padding
LAYOUT = ParallelConfig(data=2, tensor=2, pipeline=2, micro_batches=4, mode="auto", recompute=True)


def tiny(values: dict) -> LlamaForCausalLM:
    """A random LLaMA whose norms are no ones and whose biases are no zeros."""
    rng = np.random.default_rng(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    model = LlamaForCausalLM(LlamaConfig.from_dict({**sizes, "initializer_range": 0.3, **values}))
    for parameter in model.get_parameters():
        if len(parameter.shape) == 1:
            start = 0.0 if parameter.name.endswith("bias") else 1.0
            parameter.set_data(ms.Tensor(rng.normal(start, 0.3, parameter.shape).astype(np.float32)))
    return model.set_train(False)


@pytest.fixture(scope="module")
def models():
    return {name: tiny(values) for name, values in CONFIGS.items()}


@pytest.fixture(scope="module")
def theirs(models, tmp_path_factory):
    """The folder in which MindFormers has run, and what it said."""
    folder = tmp_path_factory.mktemp("mindformers")
    job = {"ids": IDS.tolist(), "folders": []}
    for name, model in models.items():
        model.save_pretrained(folder / f"{name}-ours")
        for concat in (True, False):  # the last is the one that MindFormers saves and trains
            job["folders"].append(f"{name}-concat" if concat else name)
            to_mindformers(folder / f"{name}-ours", folder / job["folders"][-1], concat)
    to_mindformers(folder / "plain-ours", folder / "parts", file_format="safetensors", max_shard_bytes=9000)
    training = TrainingArguments(per_device_train_batch_size=8, seed=5)
    runs = {"run_yaml": ParallelConfig(data=1), "layout_yaml": LAYOUT}
    for name, parallel in runs.items():
        run = Run(model=models["plain"].config, training=training, parallel=parallel, length=IDS.shape[1])
        write_yaml(folder / f"{name}.yaml", to_run_yaml(run, "float32", "CPU")[0])
        job[name] = f"{name}.yaml"
    job |= {"safetensors": "parts", "names": list(models["plain"].state_dict())}
    (folder / "job.json").write_text(json.dumps(job))
    side = Path(__file__).with_name("mindformers_side.py")
    done = subprocess.run([sys.executable, str(side), str(folder)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, np.load(folder / "answers.npz"), json.loads((folder / "answers.json").read_text())


def same_logits(model, got: np.ndarray) -> None:
    expected = model(ms.Tensor(IDS, ms.int32)).asnumpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("folder", ["plain", "plain-concat", "rich", "rich-concat"])
def test_its_model_gives_our_logits(models, theirs, folder):
    same_logits(models[folder.split("-")[0]], theirs[1][folder])


def test_its_model_of_our_run_yaml_with_our_safetensors(models, theirs):
    same_logits(models["plain"], theirs[1]["run_yaml"])
    said = theirs[2]["run"]
    assert said == {"batch_size": 8, "mode": 1, "seed": 5, "lacking": [], "extra": [], "is_hf": False}
    layout = theirs[2]["layout"]
    degrees = ("data_parallel", "model_parallel", "pipeline_stage", "micro_batch_num", "expert_parallel")
    assert [layout[name] for name in degrees] == [2, 2, 2, 4, 1]


def test_what_it_saves_is_read_back(models, theirs, tmp_path):
    folder, answers, _ = theirs
    from_mindformers(folder / "saved", tmp_path / "back")  # with the mindspore_model.yaml that it wrote
    ours, back = read_weights(folder / "rich-ours"), read_weights(tmp_path / "back")
    assert ours.keys() == back.keys()
    assert all(np.array_equal(ours[name], back[name]) for name in ours)
    same_logits(models["rich"], LlamaForCausalLM.from_pretrained(tmp_path / "back")(ms.Tensor(IDS, ms.int32)).asnumpy())
    from_mindformers(folder / "run", tmp_path / "run", folder / "rich-ours")  # training: its optimiser's states, steps
    assert np.array_equal(read_weights(tmp_path / "run")["model.embed_tokens.weight"], answers["run"])


def test_names_and_keys_are_its_own(theirs, models):
    from msllm.conversion.mindformers.names import to_names

    tensors = models["plain"].state_dict()
    ours = dict(zip(tensors, to_names(tensors, models["plain"].config), strict=True))
    assert ours == theirs[2]["names"]
    for section, keys in theirs[2]["keys"].items():
        if section in ("callbacks", "eval_callbacks", "metric", "monitor_config", "processor", "trainer"):
            continue
        name = "" if section == "general_config" else section
        check_keys({name: dict.fromkeys(keys, 1)} if name else dict.fromkeys(keys, 1), "the template")
        for key, value in DEFAULTS.get(name, {}).items():
            assert key not in keys or keys[key] == repr(value), (section, key)
        if section in ("general_config", "parallel_config", "recompute_config", "swap_config", "runner_config"):
            assert DEFAULTS[name].keys() <= keys.keys()
