"""Chapter 5, GPT-2: a larger GPT that is asked in words: letters, sums, several tasks, summaries, conversations.

msllm chapter 5                            lists the runs
msllm chapter 5 --run shakespeare          the full run
msllm chapter 5 --run shakespeare --quick  the same in under a minute, which learns little
"""

from msllm.lessons import Run, run

SIZES = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20), "XL": (1600, 48, 25)}
CHARACTERS = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "adam_beta2": 0.99,
}


@run("5.2 GPT-2 as a diff from GPT, and the four sizes of the paper", short=True)
def diff(job: Run) -> None:
    import difflib
    import inspect

    from msllm.layers import no_initial_values
    from msllm.models import gpt2, openai_gpt

    names = {"OpenAIGPT": "GPT2", "tokens_embed": "wte", "positions_embed": "wpe"}
    before = inspect.getsource(openai_gpt)
    for name, other in names.items():
        before = before.replace(name, other)
    sources = before, inspect.getsource(gpt2)  # from their first class on: what they import says nothing
    sides = [text[text.index("@dataclasses") :].splitlines() for text in sources]
    lines = list(difflib.unified_diff(*sides, "GPT", "GPT-2", lineterm=""))
    job.write_text("gpt-to-gpt2.diff", "\n".join(lines) + "\n")
    changed = [line[0] for line in lines[2:]]
    job.say(f"{changed.count('-')} lines go, {changed.count('+')} come")
    for name, (width, layers, heads) in SIZES.items():
        with no_initial_values():
            model = gpt2.GPT2LMHeadModel(gpt2.GPT2Config(n_embd=width, n_layer=layers, n_head=heads))
        job.say(
            f"GPT-2 {name}: width {width}, {layers} layers, {sum(p.size for p in model.get_parameters()):,} parameters"
        )


@run("5.4 Shakespeare, letter by letter, beside eager PyTorch (about 3 minutes)", needs=("tinyshakespeare",))
def shakespeare(job: Run) -> None:
    import shutil
    from pathlib import Path

    from msllm.files import read_json_lines
    from msllm.training.report import training_seconds

    steps, model = (100 if job.quick else 2000), {"hidden_size": 128, "layers": 4, "heads": 4, "max_positions": 64}
    log = read_json_lines(letters(job, steps, 12, model) / "log.jsonl")
    ours = {
        "seconds": training_seconds(log),
        "first_losses": [e["loss"] for e in log if "loss" in e][:5],
        "validation_loss": log[-1]["eval_loss"],
    }
    options = {"start": job.output / "start", "data": job.output / "tokens", "steps": steps, "seed": job.seed}
    options["learning_rate"] = CHARACTERS["learning_rate"]
    theirs = job.torch_script(Path(__file__).with_name("shakespeare_torch.py"), options)
    for name, side in (("msllm", ours), ("PyTorch", theirs)):
        job.say(f"{name}: {steps} steps in {side['seconds']:.1f} s, validation loss {side['validation_loss']:.4f}")
    job.say(f"time of msllm / time of PyTorch: {ours['seconds'] / theirs['seconds']:.2f}")
    pairs = zip(ours["first_losses"], theirs["first_losses"], strict=True)
    apart = max(abs(a - b) / b for a, b in pairs)
    job.say(f"the losses of the first {len(theirs['first_losses'])} steps are apart by {apart:.1e} at most")
    assert apart < 1e-4, "the two sides do not do the same work"
    job.write_json("shakespeare.json", {"msllm": ours, "pytorch": theirs})
    if not job.quick:
        shutil.copy(job.output / "model/loss.png", job.results / "shakespeare-loss.png")


@run("5.3 a larger GPT-2 on the same letters, and what it writes (about 10 minutes)", needs=("tinyshakespeare",))
def larger(job: Run) -> None:
    import contextlib
    import io

    from msllm.commands.generate import generate
    from msllm.commands.surprise import surprise
    from msllm.files import read_json_lines
    from msllm.generation import GenerationConfig

    model = {"hidden_size": 256, "layers": 4, "heads": 4, "max_positions": 128}
    steps = 20 if job.quick else 3000
    folder = letters(job, steps, 4 if job.quick else 16, model, dropout=0.1, eval_steps=steps // 4)
    evaluations = [e for e in read_json_lines(folder / "log.jsonl") if "eval_loss" in e]
    for e in evaluations:
        job.say(f"step {e['step']}: validation loss {e['eval_loss']:.4f}")
    job.write_json("larger.json", {"evaluations": evaluations})
    with contextlib.redirect_stdout(io.StringIO()) as written:
        options = GenerationConfig(max_new_tokens=120, do_sample=True, temperature=0.8, top_k=20, seed=job.seed)
        generate(str(folder), options, prompt="ROMEO:\n")
    job.say(f"ROMEO:\n{written.getvalue().strip()}")
    line, pictures = "To be, or not to be: that is the question", ("surprise.png", "attention.png")
    picture, attention = (str(job.results / name) for name in pictures)
    with contextlib.redirect_stdout(io.StringIO()) as written:
        surprise(str(folder), text=line, picture=picture, attention=attention, layer=1)
    job.write_text("surprise.txt", written.getvalue())


def letters(job: Run, steps: int, batch_size: int, model: dict, dropout: float = 0.0, eval_steps: int = 0):
    """Trains a GPT-2 on Shakespeare's letters, 9 of 10 parts of them; returns its folder."""
    import shutil

    from mindspore import set_seed

    from msllm.commands.data import data
    from msllm.commands.prepare import train_tokenizer
    from msllm.commands.pretrain import pretrain
    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from msllm.tokenization import load_tokenizer
    from msllm.training import TrainingArguments

    text = str(job.file("tinyshakespeare/input.txt"))
    for name in ("tokenizer", "tokens", "start"):
        shutil.rmtree(job.output / name, ignore_errors=True)
    train_tokenizer([text], str(job.output / "tokenizer"), None, "char")
    data("tokenize", [text], str(job.output / "tokenizer"), str(job.output / "tokens"), 0.1, whole_files=True)
    tokenizer = load_tokenizer(job.output / "tokenizer")
    sizes = {"n_embd": model["hidden_size"], "n_layer": model["layers"], "n_head": model["heads"]}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = {"vocab_size": len(tokenizer), "n_positions": model["max_positions"], **sizes, **drop}
    set_seed(job.seed)
    GPT2LMHeadModel(GPT2Config.from_dict(config)).save_pretrained(job.output / "start", tokenizer)
    arguments = TrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=64,
        eval_steps=eval_steps,
        save_steps=0,
        seed=job.seed,
        **CHARACTERS,
    )
    folder = job.output / "model"
    pretrain(str(job.output / "tokens"), arguments, str(folder), model=str(job.output / "start"), overwrite=True)
    return folder
