"""msllm finetune-task: a BERT or GPT and labelled data in, a classifier, tagger or reader with its figures out."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

from msllm.errors import UserError
from msllm.training.arguments import TrainingArguments

METRICS, PREDICTIONS, CONFUSION = "metrics.json", "predictions.jsonl", "confusion_matrix.png"
# What predict wants, where it is not one text.
_INPUTS = {
    "similarity": "--text TEXT --text_pair TEXT",
    "multiple-choice": "--context TEXT --choices TEXT TEXT",
    "question-answering": "--question TEXT --context TEXT",
}


@dataclasses.dataclass(kw_only=True)
class TaskTrainingArguments(TrainingArguments):
    __doc__ = TrainingArguments.__doc__  # the options' help; the defaults are those of Devlin et al. 2019, A.3

    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01


def finetune_task(
    task: Literal["text-classification", "token-classification", "question-answering", "similarity", "multiple-choice"],
    model: str,
    data: str,
    output: str,
    training: TaskTrainingArguments,
    eval_data: str | None = None,
    test_data: str | None = None,
    labels: list[str] | None = None,
    label_names: str | None = None,
    max_length: int | None = None,
    doc_stride: int = 128,
    max_answer_length: int = 30,
    answer_language: Literal["auto", "en", "zh"] = "auto",
    lm_weight: float | None = None,
    limit: int | None = None,
    resume: str | None = None,
    overwrite: bool = False,
) -> None:
    """Fine-tunes a BERT or GPT on classes of texts, tags of words, answers or choices, and measures it.

    Args:
        task: of a BERT text-classification, token-classification or question-answering; of a GPT or GPT-2
            text-classification (of two texts: entailment), similarity or multiple-choice.
        model: Hugging Face folder of a BERT, GPT or GPT-2, with any head or none.
        data: training file: .tsv, .csv or .jsonl of texts, a folder with a folder of .txt files for each label (IMDB),
            or the name of a hub dataset and, after a colon, its split; columns or .jsonl of tagged words; .json as
            SQuAD's; .jsonl of choices.
        output: folder of the result; gets model, tokenizer, log.jsonl, loss.png, metrics.json, predictions.jsonl of
            the last part that is measured and, of classes of texts, confusion_matrix.png.
        training: options of the run.
        eval_data: file to evaluate on while training and at its end.
        test_data: file to evaluate on at the end only; where it has no labels, it is only predicted.
        labels: all labels, in order; without it those of the model where it has all of the data's, else the data's.
        label_names: JSON Lines file {"label": ..., "label_desc": ...} with a name for each label of texts.
        max_length: most tokens of an example, 128 (questions 384, choices 256) or the model's positions where they are
            fewer.
        doc_stride: of question-answering, tokens between the beginnings of two windows of a long context.
        max_answer_length: of question-answering, most tokens of an answer.
        answer_language: of question-answering, how answers are scored: en as SQuAD, zh as CMRC 2018.
        lm_weight: of a GPT, what the loss of the next word counts beside the task's, by default 0.5; 0 turns it off.
        limit: use only the first records of each file.
        resume: "auto" or a checkpoint folder: go on where an earlier run stopped.
        overwrite: replace what an earlier run left in the output folder.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} leaves no records; give 1 or more")
    from msllm.evaluation.task_models import check_batches, choose_labels, make_job
    from msllm.evaluation.tasks import read_labelled
    from msllm.parallel import start_workers
    from msllm.training import checkpoint

    answers = {"doc_stride": doc_stride, "max_answer_length": max_answer_length, "language": answer_language}
    job, network_class = make_job(task, model, max_length, labels, label_names, lm_weight, answers)
    check_batches(task, training)
    checkpoint.source(output, resume, overwrite)
    workers = start_workers()
    parts = {"train": read_labelled(job, data, limit)}
    if eval_data is not None:
        parts["eval"] = read_labelled(job, eval_data, limit)
    if test_data is not None:
        parts["test"] = read_labelled(job, test_data, limit, needed=False)
    choose_labels(job, parts["train"], model, network_class)
    _run(job, network_class, model, parts, output, training, resume, overwrite, workers)
    if workers is None or workers.rank == 0:
        inputs = _INPUTS.get(task, "--text TEXT")
        print(f"saved {output}; try it: msllm predict --model {output} {inputs}", file=sys.stderr)


def _run(job, network_class, model: str, parts: dict, output: str, training, resume, overwrite, workers) -> None:
    """Encodes, trains and measures."""
    from msllm.evaluation.task_models import is_gpt, open_for_task
    from msllm.evaluation.tasks import evaluate, headline
    from msllm.training import Trainer

    network, tokenizer = open_for_task(job, network_class, model, training.seed)
    tokenizer.config["model_max_length"] = job.max_length  # as transformers: what texts are cut to
    examples = {}
    for part, records in parts.items():
        examples[part], report = job.encode(records, tokenizer, training=part == "train")
        print(f"{part} data: {report}", file=sys.stderr)

    def measure(part: str) -> tuple[list[dict], dict | None]:
        size = training.per_device_eval_batch_size
        return evaluate(job, network, parts[part], examples[part], tokenizer.pad_token_id, size)

    results: dict[str, tuple[list[dict], dict | None]] = {}

    def measure_eval() -> dict[str, float]:
        results["eval"] = measure("eval")
        return headline(job, results["eval"][1])

    trainer = Trainer(
        network,
        training,
        examples["train"],
        output,
        examples.get("eval"),
        tokenizer.pad_token_id,
        objective=job.objective,
        write_model=lambda folder: network.write_files(folder, tokenizer),
        metrics=measure_eval,
        workers=workers,
        settings={"lm_weight": job.lm_weight} if is_gpt(type(job)) else None,
    )
    if overwrite and trainer.rank == 0:
        for name in (METRICS, PREDICTIONS, CONFUSION):
            (Path(output) / name).unlink(missing_ok=True)
    trainer.train(resume, overwrite)
    if trainer.rank > 0:
        return
    for part in [part for part in ("eval", "test") if part in parts]:
        # The last evaluation while training was of this very model, unless an earlier one was the best.
        if part not in results or training.load_best_model_at_end:
            results[part] = measure(part)
    _write_results(job, results, Path(output))


def _write_results(job, results: dict[str, tuple[list[dict], dict | None]], output: Path) -> None:
    """Writes the figures of all parts, and the predictions of the last one; prints the figures."""
    from msllm.evaluation.classification import figures_table, plot_confusion
    from msllm.evaluation.tasks import headline
    from msllm.files import atomic_file, write_json

    if not results:
        return
    figures = {part: metrics for part, (_, metrics) in results.items() if metrics is not None}
    for part, metrics in figures.items():
        print(f"{part}: " + "  ".join(f"{name} {value:.4f}" for name, value in headline(job, metrics).items()))
    write_json(output / METRICS, figures)
    predictions, last = list(results.values())[-1]
    with atomic_file(output / PREDICTIONS) as tmp:
        tmp.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions), encoding="utf-8")
    rows = last and (last.get("per_class") or last.get("per_type"))
    if rows:
        print(figures_table(rows))
    if last and "confusion_matrix" in last:
        plot_confusion(last["confusion_matrix"], job.labels, output / CONFUSION)
