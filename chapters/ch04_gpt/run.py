"""Chapter 4, GPT: one body for every task: pre-trained on text, fine-tuned with what the figure of the paper adds.

msllm chapter 4                         lists the runs; they build on each other in that order
msllm chapter 4 --run finetune          the full run
msllm chapter 4 --run finetune --quick  the same in a minute, which learns little
"""

from msllm.lessons import Run, run

MODEL = {"hidden_size": 256, "layers": 4, "heads": 4, "max_positions": 128, "dropout": 0.1}
# File -> a function of a row that gives its text, None for plain text.
CORPUS = {
    "llama_factory/wiki_demo.txt": None,
    "llms_from_scratch/the-verdict.txt": None,
    "multi30k/train.en.gz": None,
    "sst2/train.tsv": lambda line: line.split("\t")[0],  # the sentences, not what was thought of them
    "llama_factory/alpaca_en_demo.json": lambda row: f"{row['instruction']} {row['input']} {row['output']}",
    "gsm8k/train.jsonl": lambda row: f"{row['question']} {row['answer']}",
}
LAMBDAS = (0.5, 0.0)


@run("4.2.3 task inputs: what the paper's figure makes of a text, a pair, two orders and choices", short=True)
def inputs(job: Run) -> None:
    import itertools

    import numpy as np

    from msllm.data.task_inputs import Choices, encode_sequences, with_task_tokens
    from msllm.data.tasks import LabelledText
    from msllm.tokenization import train_tokenizer

    text, other = "a moving film", "a film that moves"
    context, choices = "it rained", ("he took a coat", "the cat slept")
    tokenizer = with_task_tokens(train_tokenizer([text, other, context, *choices], 100, "gpt"))
    rows = {
        "classification": (LabelledText(text), False),
        "entailment": (LabelledText(text, other), False),
        "similarity": (LabelledText(text, other), True),
        "multiple choice": (Choices(context, choices), False),
    }
    for name, (record, both_orders) in rows.items():
        ((example,), _) = encode_sequences([record], tokenizer, None, 32, both_orders)
        ends = itertools.pairwise(np.cumsum([0, *example["lengths"]]))
        parts = [tokenizer.decode(example["input_ids"][a:b], skip_special_tokens=False) for a, b in ends]
        job.say(f"{name}: {' | '.join(parts)}")


@run(
    "4.2.1 the text and its BPE: six sources of English, one file of tokens",
    needs=("llama_factory", "llms_from_scratch", "multi30k", "sst2", "gsm8k"),
)
def prepare(job: Run) -> None:
    import json
    import shutil

    from msllm.commands.data import data
    from msllm.commands.prepare import train_tokenizer
    from msllm.data.loading import json_lines
    from msllm.data.order import random_order
    from msllm.data.parallel_text import read_lines
    from msllm.files import read_json, read_text

    shutil.rmtree(job.output / "tokenizer", ignore_errors=True)
    shutil.rmtree(job.output / "tokens", ignore_errors=True)
    documents = []
    for name, get in CORPUS.items():
        path = job.file(name)
        if name.endswith(".json"):
            rows = read_json(path)
        elif name.endswith(".jsonl"):
            rows = [row for _, row in json_lines(path, read_text(path))]
        else:
            rows = [line for line in read_lines(path) if line.strip()]
        found = [get(row) if get else row for row in rows]
        documents += found[:300] if job.quick else found
        job.say(f"{name}: {len(found):,} documents")
    documents = [documents[i] for i in random_order(len(documents), job.seed)]  # the held-out part is of all sources
    text = job.output / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    (job.output / "text.txt").write_text("\n".join(documents), encoding="utf-8")
    train_tokenizer([str(job.output / "text.txt")], str(job.output / "tokenizer"), 2000 if job.quick else 8000, "gpt")
    data("tokenize", [str(text)], str(job.output / "tokenizer"), str(job.output / "tokens"), val_share=0.02)


@run("4.2.1 unsupervised pre-training: the next word (about 20 minutes)")
def pretrain(job: Run) -> None:
    import shutil

    from msllm.commands.pretrain import pretrain as command
    from msllm.files import read_json_lines
    from msllm.training import TrainingArguments
    from msllm.training.report import training_seconds

    steps = 20 if job.quick else 2000
    arguments = TrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=8 if job.quick else 32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.05,
        weight_decay=0.01,
        eval_steps=steps // 4,
        save_steps=steps // 4,
        seed=job.seed,
    )
    data = str(job.earlier("prepare") / "tokens")
    command(data, arguments, str(job.output), family="openai-gpt", **MODEL, resume="auto", overwrite=True)
    log = read_json_lines(job.output / "log.jsonl")
    evaluations = [e for e in log if "eval_loss" in e]
    for e in evaluations:
        job.say(f"step {e['step']}: loss of the next token, on held-out text, {e['eval_loss']:.3f}")
    job.write_json("pretrain.json", {"training_seconds": training_seconds(log), "evaluations": evaluations})
    if not job.quick:
        shutil.copy(job.output / "loss.png", job.results / "pretrain-loss.png")


@run("4.3 SST-2 with and without pre-training and auxiliary loss, three seeds each (about 30 minutes)", needs=("sst2",))
def finetune(job: Run) -> None:
    ablation(job, str(job.file("sst2/train.tsv")), 3)


@run("4.3 the same with 1,000 labelled sentences (about 5 minutes)", needs=("sst2",))
def fewer(job: Run) -> None:
    from msllm.files import read_text

    lines = read_text(job.file("sst2/train.tsv")).splitlines(keepends=True)
    (job.output / "train.tsv").write_text("".join(lines[:1000]), encoding="utf-8")
    ablation(job, str(job.output / "train.tsv"), 5)


def ablation(job: Run, train: str, epochs: int) -> None:
    """Fine-tunes with and without pre-training and auxiliary loss, and tests."""
    import statistics

    from mindspore import set_seed

    from msllm import load_tokenizer
    from msllm.commands.tasks import TaskTrainingArguments, finetune_task
    from msllm.files import read_json
    from msllm.models.openai_gpt import OpenAIGPTConfig, OpenAIGPTLMHeadModel
    from msllm.models.pretrained import read_config

    pretrained, config = job.earlier("pretrain"), OpenAIGPTConfig.from_dict(read_config(job.earlier("pretrain")))
    dev, test = (str(job.file(f"sst2/{part}.tsv")) for part in ("dev", "test"))
    rows: dict[str, list[float]] = {}
    for words, lm_weight in ((words, weight) for words in ("pre-trained", "random weights") for weight in LAMBDAS):
        name = f"{words}, {'auxiliary loss' if lm_weight else 'no auxiliary loss'}"
        for seed in (1,) if job.quick else (1, 2, 3):
            start, output = pretrained, job.output / f"{words.split()[0]}-{lm_weight}-{seed}"
            if words != "pre-trained":
                start = job.output / f"random-{seed}"
                set_seed(seed)
                OpenAIGPTLMHeadModel(config).save_pretrained(start, load_tokenizer(pretrained))
            arguments = TaskTrainingArguments(learning_rate=3e-4, num_train_epochs=epochs, seed=seed, save_steps=0)
            limits = {"limit": 64} if job.quick else {}
            options = {"max_length": 64, "lm_weight": lm_weight, "overwrite": True, **limits}
            finetune_task("text-classification", str(start), train, str(output), arguments, dev, test, **options)
            rows.setdefault(name, []).append(read_json(output / "metrics.json")["test"]["accuracy"])
        shown = "  ".join(f"{accuracy:.2%}" for accuracy in rows[name])
        job.say(f"{name}: test accuracy {statistics.mean(rows[name]):.2%} ({shown})")
    job.write_json(f"{job.name}.json", {"test_accuracy": rows})
