"""Opening what a user names: a model folder or an adapter folder."""

from pathlib import Path

from msllm.errors import UserError


def open_checkpoint(folder: str):
    """Returns (model, tokenizer) of a Hugging Face folder, or of an adapter folder and the base model it names.

    Raises:
        UserError: missing files, or a tokenizer whose ids the model does not know.
    """
    from msllm.models.pretrained import from_pretrained
    from msllm.tokenization import load_tokenizer
    from msllm.tuning.lora import CONFIG, load_adapter, read_adapter_config

    path = Path(folder)
    if (path / CONFIG).is_file() and not (path / "config.json").is_file():
        base = read_adapter_config(path)[1]
        if not Path(base).is_dir():
            raise UserError(
                f"{path} is an adapter of {base!r}, which is no folder here; put the base model there, or "
                f"correct base_model_name_or_path in {CONFIG}"
            )
        model = from_pretrained(base)
        load_adapter(model, path)
        model.set_train(False)
        has_own = any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        tokenizer = load_tokenizer(path if has_own else base)
    else:
        model = from_pretrained(path)
        tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, model, folder)
    return model, tokenizer


def model_config(folder: str):
    """Returns the configuration of a model folder, without its weights; UserError as from_pretrained."""
    from msllm.models.pretrained import model_class, read_config

    values = read_config(folder)
    return model_class(values, f"{folder}/config.json").config_class.from_dict(values)


def check_layout(parallel, training, model_type: str, known: dict, length: int | None) -> None:
    """Raises UserError where a model or its batches cannot be spread so.

    Args:
        parallel: the ParallelConfig.
        training: the TrainingArguments.
        model_type: the family.
        known: sizes of the model, see msllm.parallel.plans.sizes.
        length: see ParallelConfig.check.
    """
    from msllm.parallel.plans import plan_for

    plan_for(model_type)
    parallel.check_training(training.optim, training.jit)
    batch = None if training.train_batch_tokens else training.per_device_train_batch_size
    parallel.check(**known, length=length, batch=batch)


def check_vocabulary(tokenizer, model, folder: str) -> None:
    """Raises UserError where the tokenizer has ids that the model does not know; ``folder`` is named in it."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size} "
            f"(vocab_size in config.json); use the tokenizer that belongs to the model"
        )


def require_causal(model, folder: str) -> None:
    """Raises UserError where the model does not predict the next token."""
    from msllm.models.causal_lm import CausalLM

    if not isinstance(model, CausalLM):
        raise UserError(
            f"{folder} holds a {type(model).__name__}, which does not predict the next token; "
            f"give a GPT, GPT-2, LLaMA or BLOOM folder"
        )
