"""Section 6.9's bridge: a LLaMA under MindFormers' names, its own model's logits beside ours, a run in its YAML."""

from pathlib import Path

from msllm.lessons import Run, run

SHOWN = ("embed_tokens", "q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "input_layernorm", ".norm", "lm_head")


@run("6.9 a LLaMA in MindFormers: names, logits beside ours, a run in its YAML (about a minute)")
def mindformers(job: Run) -> None:
    import shutil

    import numpy as np

    from msllm.conversion.mindformers import from_mindformers, to_mindformers
    from msllm.models.weights import read_weights

    model = llama(job)
    ours, theirs, back = (job.output / name for name in ("ours", "theirs", "back"))
    for folder in (ours, theirs, back):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(ours)
    to_mindformers(ours, theirs)
    names = name_table(job, model)

    ids = np.random.default_rng(job.seed).integers(1, model.config.vocab_size, (2, 32), np.int32)
    got, expected = mindformers_logits(job, theirs, ids), model_logits(model, ids)
    difference, largest = float(np.abs(got - expected).max()), float(np.abs(expected).max())
    job.say(f"logits {got.shape} of MindFormers' LlamaForCausalLM and of ours: largest difference {difference:.1e},")
    job.say(f"  {difference / largest:.1e} of the largest logit, {largest:.2f}")
    assert difference <= 1e-5 * largest

    from_mindformers(theirs, back)
    before, after = read_weights(ours), read_weights(back)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    job.say(f"back again: {len(after)} tensors, all bit-equal")
    sections = run_yaml(job)
    figures = {"names": names, "largest_difference": difference, "largest_logit": largest, "run_yaml": sections}
    job.write_json("mindformers.json", figures)


def llama(job: Run):
    """Returns a random LLaMA with grouped queries, whose norms are no ones."""
    import mindspore as ms
    import numpy as np

    from msllm.models.llama import LlamaConfig, LlamaForCausalLM

    width, layers = (64, 2) if job.quick else (256, 4)
    sizes = {"vocab_size": 1000, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    sizes |= {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    ms.set_seed(job.seed)
    model, rng = LlamaForCausalLM(LlamaConfig.from_dict(sizes)), np.random.default_rng(job.seed)
    for parameter in model.get_parameters():
        if len(parameter.shape) == 1:
            parameter.set_data(ms.Tensor(rng.normal(1, 0.3, parameter.shape).astype(np.float32)))
    return model.set_train(False)


def name_table(job: Run, model) -> dict[str, str]:
    """Says what some tensors of the first layer, and those outside the layers, are called here and there."""
    from msllm.conversion.mindformers.names import to_names

    tensors = model.state_dict()
    names = dict(zip(tensors, to_names(tensors, model.config), strict=True))
    for ours, theirs in names.items():
        if ".layers." not in ours or (".layers.0." in ours and any(part in ours for part in SHOWN)):
            job.say(f"{ours:48} {theirs:48} {tensors[ours].shape}")
    return names


def model_logits(model, ids):
    import mindspore as ms

    return model(ms.Tensor(ids)).asnumpy()


def mindformers_logits(job: Run, folder: Path, ids):
    import subprocess
    import sys

    import numpy as np

    given, made = (job.output / f"{name}.npy" for name in ("ids", "logits"))
    np.save(given, ids)
    script = Path(__file__).with_name("mindformers_logits.py")
    words = [sys.executable, str(script), *(str(path.resolve()) for path in (folder, given, made))]
    done = subprocess.run(words, cwd=job.output, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(made)


def run_yaml(job: Run) -> dict:
    """Writes LLaMA-2-7B on 64 cards as a run of MindFormers and reads it back; returns some of its sections."""
    from msllm.conversion.mindformers import Run as TrainingRun
    from msllm.conversion.mindformers import from_run_yaml, to_run_yaml
    from msllm.conversion.yaml_files import write_yaml
    from msllm.models.presets import config_of
    from msllm.parallel.config import ParallelConfig
    from msllm.training import TrainingArguments

    training = TrainingArguments(
        max_steps=1000, learning_rate=3e-4, lr_scheduler_type="cosine", warmup_ratio=0.03, adam_beta2=0.95
    )
    layout = ParallelConfig(data=8, tensor=4, pipeline=2, micro_batches=8, optimizer=1, recompute=True, mode="auto")
    planned = TrainingRun(model=config_of("llama2-7b"), training=training, parallel=layout, data="tokens")
    values, lost = to_run_yaml(planned)
    write_yaml(job.output / "llama2-7b-mindformers.yaml", values)
    again, unread = from_run_yaml(job.output / "llama2-7b-mindformers.yaml")
    assert again == planned and not lost and not unread
    job.say(f"a run of {layout} in MindFormers' YAML: {len(values)} sections; read again, the same options")
    return {name: values[name] for name in ("runner_config", "lr_schedule", "parallel", "parallel_config")}
