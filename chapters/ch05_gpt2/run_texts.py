"""Chapter 5, Chinese texts: pre-training, summaries, conversations."""

from msllm.lessons import Run, run


@run(
    "5.4 a GPT-2 on Chinese documents, which the next two runs start from (about 20 minutes)",
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


@run("5.4 summaries after TL;DR: tuned, untuned and the first three sentences (about 2 minutes)")
def summaries(job: Run) -> None:
    import json

    from msllm.commands.finetune import finetune
    from msllm.commands.summarize import summarize
    from msllm.files import read_json, read_text
    from msllm.generation.config import SummaryGenerationConfig
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


@run("5.4 conversations: LoRA on ShareGPT records, then msllm chat (about 2 minutes)", needs=("llama_factory",))
def chat(job: Run) -> None:
    import json

    from msllm.commands.finetune import finetune
    from msllm.files import read_json, read_json_lines
    from msllm.generation import GenerationConfig
    from msllm.generation.text import generate_text
    from msllm.training import TrainingArguments
    from msllm.tuning.config import LoraConfig
    from msllm.tuning.loading import open_checkpoint

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
