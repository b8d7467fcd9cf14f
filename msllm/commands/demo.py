"""msllm demo: from nothing to a model that answers, in minutes on a laptop."""

import dataclasses
import sys
import time
from pathlib import Path

from msllm.files import write_json
from msllm.training.arguments import TrainingArguments

# Roles are marked by the special tokens that the tokenizer has anyway: sequences stay short. Training shows one
# question at a time, so a chat shows the last one only.
CHAT_TEMPLATE = (
    "{% set last = namespace(question=0) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set last.question = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages[last.question:] %}"
    "{% if message['role'] == 'user' %}{{ bos_token }}{{ message['content'] }}\n{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
# A token a word, a digit, a Chinese character: what the tasks are about stands in one place each.
PATTERN = r"\p{N}|\p{Han}|[A-Za-z]+|\s|[^\s\p{L}\p{N}]+"
VOCAB_SIZE = 1000
MODEL = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
}
SCHEDULE = TrainingArguments(
    learning_rate=4e-3,
    max_steps=6000,
    per_device_train_batch_size=64,
    lr_scheduler_type="cosine",
    warmup_steps=100,
    weight_decay=0.3,
    adam_beta2=0.99,
    save_steps=2000,
    save_total_limit=1,
    group_by_length=True,
)


def demo(
    output: str = "outputs/demo",
    quick: bool = False,
    seed: int = 0,
    resume: str | None = None,
    overwrite: bool = False,
    profile: bool = False,
) -> None:
    """Trains a small LLaMA on the carried instructions and lets it answer held-out ones.

    Args:
        output: folder of the result, a Hugging Face folder with log.jsonl, loss.png and results.json.
        quick: a short run that shows every part and learns little.
        seed: seed of weights, order and instructions.
        resume: "auto" goes on where an earlier run stopped.
        overwrite: replace what an earlier run left in the output folder.
        profile: show what steps 4 to 13 spend their time on, and what would make them faster.
    """
    import mindspore as ms

    from msllm.commands.finetune import train_model
    from msllm.data import encode_records, parse_record
    from msllm.data.instructions import generate
    from msllm.models.llama import LlamaConfig, LlamaForCausalLM
    from msllm.tokenization import train_tokenizer

    train, held_out = generate(seed)
    if quick:
        train, held_out = train[:640], held_out[:60]
    tokenizer = train_tokenizer([f"{question(r)}\n{r['output']}" for r in train], VOCAB_SIZE, pattern=PATTERN)
    tokenizer.chat_template = CHAT_TEMPLATE
    conversations = [{"messages": [user(r), {"role": "assistant", "content": r["output"]}]} for r in train]
    records = [parse_record(c) for c in conversations]
    examples, report = encode_records(records, tokenizer, MODEL["max_position_embeddings"])
    ms.set_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig.from_dict(
            {
                **MODEL,
                "vocab_size": len(tokenizer),
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
        )
    )
    size = sum(p.size for p in model.get_parameters())
    print(f"LLaMA with {size:,} parameters, vocabulary of {len(tokenizer)}; {report}", file=sys.stderr)
    arguments = dataclasses.replace(SCHEDULE, seed=seed, profile=profile, **({"max_steps": 20} if quick else {}))
    start = time.perf_counter()
    state = train_model(model, tokenizer, output, examples, None, output, arguments, None, resume, overwrite)
    seconds = time.perf_counter() - start
    answers = answer_all(model, tokenizer, held_out)
    results = score(held_out, answers)
    write_json(
        Path(output) / "results.json",
        {
            **results,
            "training_seconds": round(seconds, 1),
            "steps": state.step,
            "parameters": size,
            "train_records": len(train),
            "held_out_records": len(held_out),
            "seed": seed,
        },
    )
    show(held_out, answers, results, seconds, output)


def answer_all(model, tokenizer, records: list[dict], batch_size: int = 100) -> list[str]:
    """Returns the model's greedy answer to every record."""
    from msllm.generation import GenerationConfig, generate_text

    config = GenerationConfig(max_new_tokens=48)
    answers: list[str] = []
    for start in range(0, len(records), batch_size):
        prompts = [
            tokenizer.apply_chat_template([user(r)], add_generation_prompt=True)
            for r in records[start : start + batch_size]
        ]
        answers += [text for text, _ in generate_text(model, tokenizer, prompts, config, add_special_tokens=False)]
    return answers


def question(record: dict) -> str:
    """An instruction and its input as one line, as one types it in a chat."""
    return f"{record['instruction']} {record['input']}"


def user(record: dict) -> dict:
    """The user's message for a record."""
    return {"role": "user", "content": question(record)}


def score(records: list[dict], answers: list[str]) -> dict:
    """Returns the share of right answers, over all and by task; a rule works each answer out from its question."""
    from msllm.data.instructions import check

    right = [check(r, a) for r, a in zip(records, answers, strict=True)]
    tasks = sorted({r["task"] for r in records})
    by_task = {t: [ok for r, ok in zip(records, right, strict=True) if r["task"] == t] for t in tasks}
    return {"exact_match": sum(right) / len(right), "by_task": {t: sum(v) / len(v) for t, v in by_task.items()}}


def show(records: list[dict], answers: list[str], results: dict, seconds: float, output: str) -> None:
    """Prints the score, five answers (of five tasks) and what to try next."""
    from rich.console import Console
    from rich.markup import escape

    from msllm.data.instructions import check

    console = Console(highlight=False)
    console.print(
        f"\nexact match on {len(records)} held-out questions: [bold]{results['exact_match']:.1%}[/bold] "
        f"after {seconds:.0f} s of training"
    )
    console.print("  " + ", ".join(f"{task} {share:.0%}" for task, share in results["by_task"].items()))
    seen: set[str] = set()
    for record, text in zip(records, answers, strict=True):
        if record["task"] in seen or len(seen) == 5:
            continue
        seen.add(record["task"])
        mark = "[green]right[/green]" if check(record, text) else f"[red]wrong[/red], {escape(record['output'])}"
        console.print(f"\n[bold]{escape(question(record))}[/bold]\n  {escape(text)}  ({mark})")
    console.print(f"\nwritten to {output}: a Hugging Face folder, log.jsonl, loss.png, results.json\n\ntry next:")
    prefix = ".venv/bin/" if Path(".venv/bin/msllm").exists() else ""
    for line in (
        f"msllm chat --model {output}    (and ask: What is the sum? 47 + 38)",
        f"msllm generate --model {output} --chat --prompt '按字母顺序排列。 tree cat pen'",
        "msllm finetune --help",
    ):
        console.print(f"  {prefix}{line}", soft_wrap=True)
