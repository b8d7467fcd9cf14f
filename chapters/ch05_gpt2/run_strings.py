"""Chapter 5, sums and operations on strings: what a prompt alone tells a model to do."""

from msllm.lessons import Run, run

TASKS = [["copy"], ["reverse"], ["sort"], ["upper"], ["first"], ["double"], ["reverse", "upper"], ["sort", "double"]]
NEVER_SHOWN = [["sort", "upper"], ["reverse", "double"], ["double", "upper"]]


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
