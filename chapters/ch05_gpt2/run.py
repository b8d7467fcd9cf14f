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
TASKS = [["copy"], ["reverse"], ["sort"], ["upper"], ["first"], ["double"], ["reverse", "upper"], ["sort", "double"]]
NEVER_SHOWN = [["sort", "upper"], ["reverse", "double"], ["double", "upper"]]


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
    sides = [text.splitlines() for text in (before, inspect.getsource(gpt2))]
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


@run("5.4 a larger GPT-2 on the same letters, and what it writes (about 10 minutes)", needs=("tinyshakespeare",))
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


@run("5.4 sums of two numbers of two digits by a GPT-2 of 0.09M parameters (about a minute)")
def addition(job: Run) -> None:
    from mindspore import set_seed

    from msllm.data.string_tasks import additions
    from msllm.files import read_json_lines
    from msllm.generation import GenerationConfig, generate_ids
    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from msllm.training import Trainer, TrainingArguments

    train, held_out = additions(2, 500, job.seed)
    prompts, sums = [e["input_ids"][:4] for e in held_out], [e["input_ids"][4:] for e in held_out]
    set_seed(job.seed)
    sizes = {"vocab_size": 10, "n_positions": 7, "n_embd": 48, "n_layer": 3, "n_head": 3}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config.from_dict({**sizes, **drop}))

    def exact_match() -> dict[str, float]:
        model.set_train(False)
        answers = generate_ids(model, prompts, GenerationConfig(max_new_tokens=3, eos_token_id=[]))
        return {"exact_match": sum(a.ids == s for a, s in zip(answers, sums)) / len(sums)}

    arguments = TrainingArguments(
        max_steps=100 if job.quick else 5000,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=500,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        eval_steps=50 if job.quick else 500,
        save_steps=0,
        seed=job.seed,
    )
    Trainer(model, arguments, train, job.output, held_out, metrics=exact_match).train(overwrite=True)
    evaluations = [e for e in read_json_lines(job.output / "log.jsonl") if "eval_loss" in e]
    job.say(
        f"{sum(p.size for p in model.get_parameters()):,} parameters, {len(train)} sums to learn from, 500 held out"
    )
    for e in evaluations:
        job.say(f"step {e['step']}: {e['eval_exact_match']:.1%} of the held-out sums are right")
    job.write_json("addition.json", {"evaluations": evaluations})


@run("5.1 one model, several tasks that only the prompt tells apart; three that it was never shown (about 4 minutes)")
def tasks(job: Run) -> None:
    from mindspore import set_seed

    from msllm import from_pretrained, load_tokenizer
    from msllm.commands.finetune import train_model
    from msllm.data import encode_records, parse_record
    from msllm.data.string_tasks import string_records
    from msllm.generation import GenerationConfig, generate_ids
    from msllm.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from msllm.tokenization import train_tokenizer
    from msllm.training import TrainingArguments

    rows = string_records(TASKS, 2000 if job.quick else 60000, 6, job.seed)
    words = sorted({word for names in TASKS + NEVER_SHOWN for word in names})
    pattern = rf"{'|'.join(words)}|[\s\S]"  # a word of the prompt is a token, and so is each letter
    tokenizer = train_tokenizer([r["prompt"] for r in rows], 400, pattern=pattern)
    examples, _ = encode_records([parse_record(r) for r in rows], tokenizer, 64)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 128, "n_layer": 3, "n_head": 4}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    set_seed(job.seed)
    model = GPT2LMHeadModel(GPT2Config.from_dict({**sizes, **tokens, **drop}))
    arguments = TrainingArguments(
        max_steps=50 if job.quick else 4000,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        save_steps=0,
        seed=job.seed,
    )
    train_model(model, tokenizer, str(job.output), examples, None, str(job.output), arguments, overwrite=True)
    model, tokenizer = from_pretrained(job.output), load_tokenizer(job.output)
    seen, rows = {r["prompt"] for r in rows}, {}
    for names in TASKS + NEVER_SHOWN:
        test = [
            r for r in string_records([names], 40 if job.quick else 400, 6, job.seed + 1) if r["prompt"] not in seen
        ]
        prompts = [tokenizer.encode(r["prompt"]) for r in test]
        answers = generate_ids(model, prompts, GenerationConfig(max_new_tokens=16))
        right = sum(tokenizer.decode(a.ids).strip() == r["completion"] for a, r in zip(answers, test))
        rows[", ".join(names)] = right / len(test)
        shown = "never shown together" if names in NEVER_SHOWN else "trained"
        job.say(f"{', '.join(names)} ({shown}): {right / len(test):.1%}")
    job.write_json("tasks.json", {"exact_match": rows, "never_shown": [", ".join(names) for names in NEVER_SHOWN]})


@run(
    "5.3 a GPT-2 on Chinese documents, which the next two runs start from (about 20 minutes)",
    needs=("clue_corpus_small",),
)
def chinese(job: Run) -> None:
    import shutil

    from msllm.commands.data import data
    from msllm.commands.prepare import train_tokenizer
    from msllm.commands.pretrain import pretrain
    from msllm.files import read_json_lines, read_text
    from msllm.training import TrainingArguments

    documents = read_text(job.file("clue_corpus_small/bert_sampled.txt")).strip().split("\n\n")
    documents = documents[: 220 if job.quick else None]
    for name in ("tokenizer", "tokens"):
        shutil.rmtree(job.output / name, ignore_errors=True)
    held = 20 if job.quick else 200
    for name, part in {"train": documents[held:], "held-out": documents[:held]}.items():
        (job.output / f"{name}.txt").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    train_tokenizer([str(job.output / "train.txt")], str(job.output / "tokenizer"), 8000, "bpe")
    data("tokenize", [str(job.output / "train.txt")], str(job.output / "tokenizer"), str(job.output / "tokens"), 0.02)
    steps = 20 if job.quick else 1500
    arguments = TrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=4 if job.quick else 16,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.1,
        eval_steps=steps // 5,
        save_steps=0,
        seed=job.seed,
    )
    sizes = {"hidden_size": 256, "layers": 4, "heads": 4, "max_positions": 256}
    pretrain(str(job.output / "tokens"), arguments, str(job.output / "model"), **sizes, overwrite=True)
    evaluations = [e for e in read_json_lines(job.output / "model" / "log.jsonl") if "eval_loss" in e]
    for e in evaluations:
        job.say(f"step {e['step']}: loss of the next token, on held-out documents, {e['eval_loss']:.3f}")
    job.write_json("chinese.json", {"evaluations": evaluations})


@run("5.4 summaries after TL;DR: tuned, untuned and the first three sentences (about 15 minutes)")
def summaries(job: Run) -> None:
    import json

    from msllm.commands.finetune import finetune
    from msllm.commands.summarize import SummaryGenerationConfig, summarize
    from msllm.files import read_json, read_text
    from msllm.training import TrainingArguments
    from msllm.tuning.config import LoraConfig

    base = job.earlier("chinese")
    files = {}
    for name, part in (("train", "train"), ("test", "held-out")):
        documents = [text.split("\n") for text in read_text(base / f"{part}.txt").strip().split("\n\n")]
        # No summaries are at hand: as in PEGASUS, a sentence that says much, in news the first, is taken out of a text.
        rows = [{"article": "".join(d[1:]), "summary": d[0]} for d in documents if len(d) > 3 and len(d[0]) <= 80]
        files[name] = str(job.output / f"{name}.jsonl")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (job.output / f"{name}.jsonl").write_text(text, encoding="utf-8")
    arguments = TrainingArguments(
        num_train_epochs=1 if job.quick else 3,
        max_steps=5 if job.quick else -1,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        warmup_ratio=0.1,
        group_by_length=True,
        save_steps=0,
        seed=job.seed,
    )
    tuned = str(job.output / "model")
    finetune(str(base / "model"), files["train"], arguments, LoraConfig(), tuned, max_length=256, overwrite=True)
    rows = {}
    for name, model in (("untuned", str(base / "model")), ("tuned", tuned)):
        folder = job.output / name
        options = SummaryGenerationConfig(max_new_tokens=48)
        limit = 8 if job.quick else 100
        summarize(model, options, data=files["test"], output=str(folder), limit=limit)
        metrics = read_json(folder / "metrics.json")
        rows[name] = metrics["model"]
    rows["first three sentences"] = metrics["lead_3"]
    for name, figures in rows.items():
        job.say(f"{name}: " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    job.write_json("summaries.json", {"rouge": rows, "articles": metrics["count"]})


@run("5.4 conversations: LoRA on ShareGPT records, then msllm chat (about 10 minutes)", needs=("llama_factory",))
def chat(job: Run) -> None:
    import json

    from msllm.commands.finetune import finetune
    from msllm.commands.loading import open_checkpoint
    from msllm.files import read_json, read_json_lines
    from msllm.generation import GenerationConfig
    from msllm.generation.text import generate_text
    from msllm.training import TrainingArguments
    from msllm.tuning.config import LoraConfig

    rows = []
    for name in ("identity", "alpaca_zh_demo"):
        for row in read_json(job.file(f"llama_factory/{name}.json")):
            question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
            pair = [{"from": "human", "value": question}, {"from": "gpt", "value": row["output"]}]
            rows.append({"conversations": pair})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[: 64 if job.quick else None])
    (job.output / "conversations.jsonl").write_text(text, encoding="utf-8")
    arguments = TrainingArguments(
        num_train_epochs=1 if job.quick else 3,
        max_steps=5 if job.quick else -1,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        warmup_ratio=0.1,
        group_by_length=True,
        eval_steps=0 if job.quick else 20,
        save_steps=0,
        seed=job.seed,
    )
    folder = str(job.output / "adapter")
    lora = LoraConfig(r=16, lora_alpha=32)
    base, data = str(job.earlier("chinese") / "model"), str(job.output / "conversations.jsonl")
    finetune(base, data, arguments, lora, folder, val_size=0.1, max_length=256, tuning="lora", overwrite=True)
    evaluations = [e for e in read_json_lines(job.output / "adapter" / "log.jsonl") if "eval_loss" in e]
    for e in evaluations:
        job.say(f"step {e['step']}: loss of the held-out answers {e['eval_loss']:.3f}")
    model, tokenizer = open_checkpoint(folder)
    questions = ["你好", "你是谁？", "写一个关于春天的句子。"]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], True) for q in questions]
    answers = generate_text(model, tokenizer, prompts, GenerationConfig(max_new_tokens=60), False)
    for question, (answer, _) in zip(questions, answers):
        job.say(f"user: {question}\nassistant: {answer.strip()}")
    job.write_json("chat.json", {"evaluations": evaluations})
