"""The model and the tokenizer of a task: found in a folder, checked, and made ready."""

from msllm.commands.loading import check_vocabulary
from msllm.errors import UserError


def is_gpt(job_class: type) -> bool:
    """Whether a task is one of a GPT's."""
    from msllm.evaluation.sequence_tasks import SequenceClassification

    return issubclass(job_class, SequenceClassification)


def task_classes(model: str, task: str) -> tuple[type, type, int]:
    """Returns the classes of a task and its model, and the model's positions.

    Raises:
        UserError: the folder holds neither a BERT nor a GPT, or one that has no such task.
    """
    from msllm.evaluation.sequence_tasks import SEQUENCE_TASKS
    from msllm.evaluation.tasks import TASKS
    from msllm.models.pretrained import model_class, read_config

    values = read_config(model)
    found = model_class(values, f"{model}/config.json").__name__
    families = {"bert": ("", TASKS), "gpt2": ("GPT2", SEQUENCE_TASKS), "openai-gpt": ("OpenAIGPT", SEQUENCE_TASKS)}
    if values["model_type"] not in families:
        raise UserError(
            f"{model} holds a {found}, finetune-task wants a BERT, GPT or GPT-2; for this model use msllm finetune"
        )
    prefix, tasks = families[values["model_type"]]
    if task not in tasks:
        raise UserError(f"{model} holds a {found}, which has no {task} here; its tasks are {', '.join(tasks)}")
    network = model_class({**values, "architectures": [prefix + tasks[task].architecture]})
    config = network.config_class.from_dict(values)
    positions = config.n_positions if prefix else config.max_position_embeddings
    return tasks[task], network, positions


def open_for_task(job, network_class, model: str, seed: int):
    """Returns (network, tokenizer) on the body in ``model``; what is new in the network has the values of ``seed``.

    Raises:
        UserError: missing files, or a tokenizer that is not the model's.
    """
    from msllm.data.task_inputs import with_task_tokens
    from msllm.models.pretrained import read_config
    from msllm.tokenization import load_tokenizer

    tokenizer, labels, own = load_tokenizer(model), job.labels, {}
    if is_gpt(type(job)):
        known = network_class.config_class.from_dict(read_config(model)).vocab_size
        if len(tokenizer) > known:
            raise UserError(
                f"{model}: the tokenizer has {len(tokenizer)} ids, the model {known} (vocab_size in config.json); use "
                f"the tokenizer that belongs to the model"
            )
        if job.lm_weight and not read_config(model).get("tie_word_embeddings", True):
            raise UserError(
                f"{model} has an output layer of its own (tie_word_embeddings), which a classifier does not keep, and "
                f"lm_weight is {job.lm_weight}; give --lm_weight 0"
            )
        tokenizer = with_task_tokens(tokenizer)
        own = {"msllm_task": job.kind, "pad_token_id": tokenizer.pad_token_id}
        own["vocab_size"] = max(len(tokenizer), known)
        labels = ["choice"] if job.kind == "multiple-choice" else labels  # one number for each sequence
    network = new_model(network_class, model, labels, seed, **own)
    check_tokenizer(tokenizer, network, model)
    return network, tokenizer


def new_model(network_class, folder: str, labels: list[str] | None, seed: int, **own):
    """Returns a model of a task on the body in ``folder``; what is new in it has the values of ``seed``.

    ``own`` are other values of its configuration.
    """
    import mindspore as ms

    from msllm import kernels

    kernels.set_seed(seed)
    ms.set_seed(seed)
    return network_class.from_body(folder, labels, **own)


def choose_labels(job, records, model: str, network_class) -> None:
    """Sets the labels of a task: the user's, else the model's where it knows all of the data's, else the data's."""
    from msllm.models.pretrained import read_config

    wanted = job.labels_of(records)
    if wanted is None:
        return
    if job.labels is None:
        config = network_class.config_class.from_dict(read_config(model))
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
    from msllm.models.causal_lm import SequenceClassifier

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
