"""Section 6.5's experts: a small Mixtral on Shakespeare's letters, with and without the loss that balances them."""

from msllm.lessons import Run, run

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
WEIGHTS = {"without balancing": 0.0, "with balancing": 0.01}


@run("6.5 tokens per expert with and without the balancing loss (about 10 minutes)", needs=("tinyshakespeare",))
def experts(job: Run) -> None:
    import numpy as np

    tokenizer, tokens = letters(job)
    runs, figures = {}, {}
    for name, weight in WEIGHTS.items():
        runs[name] = train(job, name, weight, tokenizer, tokens)
        last = np.asarray(runs[name]["shares"])[-max(1, len(runs[name]["loss"]) // 10) :].mean(0)  # (layers, experts)
        figures[name] = {
            "validation_loss": runs[name]["validation_loss"],
            "busiest_over_mean": (last.max(1) * last.shape[1]).tolist(),
            "idlest_over_mean": (last.min(1) * last.shape[1]).tolist(),
        }
        busiest, idlest = (
            ", ".join(f"{v:.2f}" for v in figures[name][f"{k}_over_mean"]) for k in ("busiest", "idlest")
        )
        job.say(f"{name}: validation loss {figures[name]['validation_loss']:.4f}")
        job.say(f"  tokens of the busiest expert over the mean, by layer: {busiest}; of the idlest: {idlest}")
    job.write_json("experts.json", {"figures": figures, "weights": WEIGHTS})
    layer = int(np.argmax(figures["without balancing"]["busiest_over_mean"]))
    job.savefig("experts.png", pictures().experts(runs, layer))


def letters(job: Run):
    """Returns a tokenizer of Shakespeare's letters and the folder of the tokens."""
    import shutil

    from msllm.commands.data import data
    from msllm.commands.prepare import train_tokenizer
    from msllm.tokenization import load_tokenizer

    text, folder, tokens = (
        str(p) for p in (job.file("tinyshakespeare/input.txt"), job.output / "letters", job.output / "tokens")
    )
    for old in (folder, tokens):
        shutil.rmtree(old, ignore_errors=True)
    train_tokenizer([text], folder, None, "char")
    data("tokenize", [text], folder, tokens, 0.1, whole_files=True)
    return load_tokenizer(folder), tokens


def train(job: Run, name: str, weight: float, tokenizer, tokens: str) -> dict:
    """Trains one model; returns the shares of its experts in each step, the losses, and the last validation loss."""
    from mindspore import set_seed

    from msllm.data.token_file import TRAIN, VALIDATION, RandomCrops, TokenFile, Windows
    from msllm.files import read_json_lines
    from msllm.models.mixtral import MixtralConfig, MixtralForCausalLM
    from msllm.training import Trainer, TrainingArguments
    from msllm.training.blocks import BLOCKS
    from msllm.training.moe_objective import moe_objective

    steps, rows, block = (15, 4, 64) if job.quick else (1500, 12, 64)
    set_seed(job.seed)
    model = MixtralForCausalLM(MixtralConfig.from_dict({**SIZES, "vocab_size": len(tokenizer)}))
    shares: list = []
    objective = watched(moe_objective(weight, 0.0, BLOCKS), model, shares)
    train_file, held_out = (TokenFile.open(f"{tokens}/{part}", tokenizer) for part in (TRAIN, VALIDATION))
    arguments = TrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=64,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.1,
        save_steps=0,
        eval_steps=0 if job.quick else steps // 3,
        seed=job.seed,
    )
    folder = job.output / name.replace(" ", "-")
    crops, windows = RandomCrops(train_file, block, steps * rows, job.seed), Windows(held_out, block)
    windows = [windows[i] for i in range(64 if job.quick else len(windows))]
    Trainer(model, arguments, crops, folder, windows, objective=objective).train(overwrite=True)
    log = read_json_lines(folder / "log.jsonl")
    key = "lm_loss" if weight else "loss"
    return {
        "shares": shares,
        "loss": [entry[key] for entry in log if key in entry],
        "validation_loss": [entry[f"eval_{key}"] for entry in log if f"eval_{key}" in entry][-1],
    }


def watched(objective, model, shares: list):
    """Returns the objective; each training pass adds to ``shares`` what each layer's experts get, (layers, experts)."""
    import dataclasses

    from msllm.layers import moe_layers

    def loss(network, tensors):
        terms = objective.loss(network, tensors)
        if network.training:
            shares.append([(layer.load / layer.load.sum()).round(4).tolist() for layer in moe_layers(model)])
        return terms

    return dataclasses.replace(objective, loss=loss)


def pictures():
    from pathlib import Path

    from msllm.lessons.chapters import load_module

    return load_module(Path(__file__).with_name("pictures.py"), "msllm_ch06_pictures")
