"""The model and the tokenizer of a task: found in a folder, checked, and made ready."""

from pathlib import Path

import mindspore as ms

from msllm import kernels
from msllm.data.task_inputs import with_task_tokens
from msllm.data.tasks import read_label_names
from msllm.errors import UserError, nearest
from msllm.evaluation.sequence_tasks import SEQUENCE_TASKS, SequenceClassification
from msllm.evaluation.tasks import TASKS
from msllm.models.causal_lm import SequenceClassifier
from msllm.models.config import ModelConfig
from msllm.models.pretrained import check_vocabulary, model_class, read_config
from msllm.tokenization import load_tokenizer

# A question and a window of its context need more room than a sentence (Devlin et al. 2019's SQuAD runs).
MAX_LENGTH = {
    "text-classification": 128,
    "token-classification": 128,
    "question-answering": 384,
    "similarity": 128,
    "multiple-choice": 256,
}
_LM_WEIGHT = 0.5  # lambda of Radford et al. 2018, section 4.1

Source = str | Path | ModelConfig


def is_gpt(job_class: type) -> bool:
    """Whether a task is one of a GPT's."""
    return issubclass(job_class, SequenceClassification)


def make_job(
    task: str,
    model: Source,
    max_length: int | None = None,
    labels: list[str] | None = None,
    label_names: str | None = None,
    lm_weight: float | None = None,
    answers: dict | None = None,
):
    """Returns a task with its options, and the class of its model.

    Args:
        task: of MAX_LENGTH.
        model: folder of a BERT or GPT, or the configuration of a new one.
        max_length: most tokens of an example; None: as the task asks, or the model's positions where they are fewer.
        labels: of texts or tags; None: choose_labels.
        label_names: file of what the labels of texts mean, instead of ``labels``.
        lm_weight: of a GPT, what the loss of the next word counts; None: 0.5.
        answers: of question-answering, options of QuestionAnswering.

    Raises:
        UserError: the model has no such task, or a value that does not belong to it.
    """
    job_class, network_class, positions = task_classes(model, task)
    options = {"max_length": length_for(name_of(model), positions, max_length, MAX_LENGTH[task])}
    if task == "question-answering":
        options |= answers or {}
    if labels is not None:
        if task in ("question-answering", "multiple-choice"):
            raise UserError(f"labels were given, and {task} has answers, not labels; leave --labels out")
        options["labels"] = labels
    if is_gpt(job_class):
        options["lm_weight"] = _LM_WEIGHT if lm_weight is None else lm_weight
    elif lm_weight is not None:
        raise UserError(
            f"lm_weight is {lm_weight}, and {name_of(model)} is a BERT, which has no next word; leave it out"
        )
    if label_names is not None:
        if task != "text-classification" or labels is not None:
            raise UserError(
                f"label_names {label_names} is for text-classification without --labels; leave one of them out"
            )
        options["label_names"] = read_label_names(label_names)
    return job_class(**options), network_class


def check_batches(task: str, training) -> None:
    """Raises UserError where the options of training ask for batches that a task's records do not make."""
    if task in ("similarity", "multiple-choice") and (
        training.train_batch_tokens or (training.jit and task == "multiple-choice")
    ):
        name = "train_batch_tokens" if training.train_batch_tokens else "jit"
        raise UserError(f"{name} is on, and a record of {task} is several rows, not always as many; turn it off")


def name_of(model: Source) -> str:
    """Returns what a model is called in messages."""
    return f"the new {model.model_type}" if isinstance(model, ModelConfig) else str(model)


def _values(model: Source) -> dict:
    return model.to_dict() if isinstance(model, ModelConfig) else read_config(model)


def task_classes(model: Source, task: str) -> tuple[type, type, int]:
    """Returns the classes of a task and its model, and the model's positions.

    Raises:
        UserError: the folder holds neither a BERT nor a GPT, or one that has no such task.
    """
    values, name = _values(model), name_of(model)
    found = model_class(values, f"{name}/config.json").__name__
    families = {"bert": ("", TASKS), "gpt2": ("GPT2", SEQUENCE_TASKS), "openai-gpt": ("OpenAIGPT", SEQUENCE_TASKS)}
    if values["model_type"] not in families:
        raise UserError(
            f"{name} holds a {found}, finetune-task wants a BERT, GPT or GPT-2; for this model use msllm finetune"
        )
    prefix, tasks = families[values["model_type"]]
    if task not in tasks:
        raise UserError(
            f"{name} holds a {found}, which has no {task} here{nearest(task, tasks)}; its tasks are {', '.join(tasks)}"
        )
    network = model_class({**values, "architectures": [prefix + tasks[task].architecture]})
    config = network.config_class.from_dict(values)
    positions = config.n_positions if prefix else config.max_position_embeddings
    return tasks[task], network, positions


def open_for_task(job, network_class, model: Source, seed: int, tokenizer=None):
    """Returns (network, tokenizer) on the body in ``model``; what is new in the network has the values of ``seed``.

    Args:
        tokenizer: the model's; None reads the folder's.

    Raises:
        UserError: missing files, or a tokenizer that is not the model's.
    """
    tokenizer, labels, own = tokenizer or load_tokenizer(model), job.labels, {}
    if is_gpt(type(job)):
        name, values = name_of(model), _values(model)
        known = network_class.config_class.from_dict(values).vocab_size
        if len(tokenizer) > known:
            raise UserError(
                f"{name}: the tokenizer has {len(tokenizer)} ids, the model {known} (vocab_size in config.json); use "
                f"the tokenizer that belongs to the model"
            )
        if job.lm_weight and not values.get("tie_word_embeddings", True):
            raise UserError(
                f"{name} has an output layer of its own (tie_word_embeddings), which a classifier does not keep, and "
                f"lm_weight is {job.lm_weight}; give --lm_weight 0"
            )
        tokenizer = with_task_tokens(tokenizer)
        own = {"msllm_task": job.kind, "pad_token_id": tokenizer.pad_token_id}
        own["vocab_size"] = max(len(tokenizer), known)
        labels = ["choice"] if job.kind == "multiple-choice" else labels  # one number for each sequence
    network = new_model(network_class, model, labels, seed, **own)
    check_tokenizer(tokenizer, network, name_of(model))
    return network, tokenizer


def new_model(network_class, model: Source, labels: list[str] | None, seed: int, **own):
    """Returns a model of a task on the body in ``model``; what is new in it has the values of ``seed``.

    ``own`` are other values of its configuration.
    """
    kernels.set_seed(seed)
    ms.set_seed(seed)
    if not isinstance(model, ModelConfig):
        return network_class.from_body(model, labels, **own)
    config = model.to_dict() | own | network_class.head_values(labels)
    return network_class(network_class.config_class.from_dict(config)).set_train(False)


def choose_labels(job, records, model: Source, network_class) -> None:
    """Sets the labels of a task: the user's, else the model's where it knows all of the data's, else the data's."""
    wanted = job.labels_of(records)
    if wanted is None:
        return
    if job.labels is None:
        config = network_class.config_class.from_dict(_values(model))
        fits = config.architectures[:1] == [network_class.__name__] and set(wanted) <= set(config.labels)
        job.labels = config.labels if fits else wanted
    if len(job.labels) < 2 or len(set(job.labels)) < len(job.labels):
        raise UserError(
            f"the labels are {', '.join(job.labels)}; expected two or more, all different; look at the data"
        )


def length_for(model: str, positions: int, wanted: int | None, default: int) -> int:
    """Returns the most tokens of an example; UserError where more are wanted than the model has positions."""
    if wanted is None:
        return min(default, positions)
    if not 1 <= wanted <= positions:
        raise UserError(f"max_length is {wanted}, {model} has {positions} positions; give 1 to {positions}")
    return wanted


def check_tokenizer(tokenizer, network, model: str) -> None:
    """Refuses a tokenizer of another model, or one without the special tokens of its family."""
    # Loading adds those that a vocabulary lacks, as transformers does, with ids that the model never saw.
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    if isinstance(network, SequenceClassifier):
        wanted = (tokenizer.bos_token, tokenizer.sep_token, tokenizer.cls_token)
        if None in wanted:
            raise UserError(
                f"{model}: the tokenizer has no start, delimiter or extract token, as msllm finetune-task adds them; "
                f"fine-tune the model with it first"
            )
        if len(tokenizer) > network.config.vocab_size:
            raise UserError(
                f"{model}: the tokenizer has {len(tokenizer)} ids, config.json {network.config.vocab_size}; "
                f"use the tokenizer that belongs to the model"
            )
        return
    wanted = (tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token)
    missing = [token or "a special token" for token in wanted if token not in vocabulary]
    if missing or tokenizer.prefix_ids[:1] != [tokenizer.cls_token_id]:
        raise UserError(
            f"{model}: the vocabulary lacks {', '.join(missing) or 'the rule that puts [CLS] before a text'}, which a "
            f"BERT needs; use the tokenizer that belongs to the model"
        )
    check_vocabulary(tokenizer, network, model)
