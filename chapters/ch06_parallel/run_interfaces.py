"""Section 6.9, the interfaces of MindFormers: Trainer, pipeline, Auto classes, the Transformer cell."""

from msllm.lessons import Run, run

SKILLS = ("even", "larger", "reverse")
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@run("6.9 Trainer, evaluate, predict and pipeline on two tasks; the Transformer cell (about a minute)", short=True)
def interfaces(job: Run) -> None:
    import msllm
    from msllm.data.instructions import generate

    parts = [[r for r in part if r["task"] in SKILLS] for part in generate(job.seed)]
    train, held_out = (part[:200] for part in parts) if job.quick else parts
    answers = write_answers(job, train, held_out)
    skills = name_skills(job, train, held_out)
    cell = run_cell(msllm)
    job.say(f"Transformer: output {cell['output']}, keys of an encoder layer {cell['encoder_present'][0]}")
    job.write_json("interfaces.json", {"answers": answers, "skills": skills, "transformer": cell})
    job.savefig("interfaces.png", curves(job))


def write_answers(job: Run, train: list[dict], held_out: list[dict]) -> dict:
    """A new LLaMA learns to answer, by Trainer("text_generation"); a pipeline opens what it leaves."""
    import msllm
    from msllm.commands.demo import PATTERN, VOCAB_SIZE
    from msllm.data.instructions import check
    from msllm.tokenization import train_tokenizer

    folder = str(job.output / "answers")
    tokenizer = train_tokenizer([prompt(r) + r["output"] for r in train], VOCAB_SIZE, pattern=PATTERN)
    config = msllm.AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **LLAMA,
    )
    trainer = msllm.Trainer(
        "text_generation",
        config,
        options(job, 400, 4e-3),
        train_dataset=[{"prompt": prompt(r), "completion": r["output"]} for r in train],
        eval_dataset=[{"prompt": prompt(r), "completion": r["output"]} for r in held_out],
        tokenizer=tokenizer,
        output_dir=folder,
    )
    trainer.train()
    figures = trainer.evaluate()
    found = trainer.predict([prompt(r) for r in held_out], batch_size=100, max_new_tokens=16, return_full_text=False)
    right = [check(r, line["generated_text"]) for r, line in zip(held_out, found)]
    share = sum(right) / len(right)
    job.say(f"text_generation: loss {figures['loss']:.4f}, perplexity {figures['perplexity']:.3f} on held-out answers")
    job.say(f"  predict: {share:.1%} of {len(right)} held-out questions answered right")
    pipe = msllm.pipeline("text-generation", folder, max_new_tokens=16, return_full_text=False)
    shown = [next(r for r in held_out if r["task"] == skill) for skill in SKILLS]
    again = [line[0]["generated_text"] for line in pipe([prompt(r) for r in shown])]
    for r, text in zip(shown, again):
        job.say(f"  pipeline: {prompt(r).strip()} -> {text} ({'right' if check(r, text) else 'wrong'})")
    return {**figures, "right": share, "questions": len(right)}


def name_skills(job: Run, train: list[dict], held_out: list[dict]) -> dict:
    """A new BERT learns which skill a question asks for, by Trainer("text_classification")."""
    import msllm
    from msllm.models.bert import BertConfig
    from msllm.tokenization import train_tokenizer

    folder = str(job.output / "skills")
    tokenizer = train_tokenizer([prompt(r) for r in train], 1000, "wordpiece")
    config = BertConfig.from_dict({"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **BERT})
    parts = [[{"text": prompt(r), "label": r["task"]} for r in part] for part in (train, held_out)]
    trainer = msllm.Trainer(
        "text_classification",
        config,
        options(job, 80, 4e-3),
        train_dataset=parts[0],
        eval_dataset=parts[1],
        tokenizer=tokenizer,
        output_dir=folder,
    )
    trainer.train()
    figures = trainer.evaluate()
    job.say(f"text_classification: accuracy {figures['accuracy']:.1%}, macro F1 {figures['macro_f1']:.3f} held out")
    line = msllm.pipeline("text-classification", folder)(parts[1][0]["text"])[0]
    job.say(f"  pipeline: {parts[1][0]['text'].strip()} -> {line['label']} {line['score']:.4f}")
    return {name: figures[name] for name in ("loss", "accuracy", "macro_f1")}


def run_cell(msllm) -> dict:
    """The book's Transformer(...) on random vectors: the shapes of what comes out."""
    import mindspore as ms
    import numpy as np

    rng = np.random.default_rng(0)
    cell = msllm.Transformer(
        batch_size=2, hidden_size=64, ffn_hidden_size=64, src_seq_length=20, tgt_seq_length=10, encoder_layers=1,
        decoder_layers=2,
    ).set_train(False)  # fmt: skip
    source, target = (ms.Tensor(rng.normal(size=(2, length, 64)).astype(np.float32)) for length in (20, 10))
    masks = [ms.Tensor(np.ones((2, *shape), np.float32)) for shape in ((20, 20), (10, 10), (10, 20))]
    masks[1] = ms.Tensor(np.tril(np.ones((2, 10, 10), np.float32)))
    output, encoder, decoder = cell(source, masks[0], target, masks[1], masks[2])
    return {
        "parameters": int(sum(p.size for p in cell.get_parameters())),
        "output": list(output.shape),
        "encoder_present": [list(x.shape) for x in encoder[0]],
        "decoder_present": [list(x.shape) for x in decoder[0]],
    }


def prompt(record: dict) -> str:
    return f"{record['instruction']} {record['input']}\n"


def options(job: Run, steps: int, rate: float) -> dict:
    """The options of a run, as they would stand in a YAML file."""
    return {
        "max_steps": steps // 20 if job.quick else steps,
        "learning_rate": rate,
        "per_device_train_batch_size": 16 if job.quick else 32,
        "per_device_eval_batch_size": 100,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "weight_decay": 0.1,
        "group_by_length": True,
        "save_steps": 0,
        "seed": job.seed,
        "overwrite_output_dir": True,
    }


def curves(job: Run):
    """The losses of both runs."""
    from matplotlib.figure import Figure

    from msllm.files import read_json_lines

    figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("answers", "skills")):
        log = [e for e in read_json_lines(job.output / name / "log.jsonl") if "loss" in e]
        axes.plot([e["step"] for e in log], [e["loss"] for e in log], linewidth=1)
        task = {"answers": "text_generation", "skills": "text_classification"}[name]
        axes.set(title=f"Trainer({task!r})", xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
    return figure
