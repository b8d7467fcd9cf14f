"""Opening what a user names: a model folder or an adapter folder."""

from pathlib import Path

from msllm.errors import UserError
from msllm.models.pretrained import check_vocabulary, from_pretrained
from msllm.tokenization import load_tokenizer
from msllm.tuning.lora import CONFIG, load_adapter, read_adapter_config


def open_checkpoint(folder: str | Path):
    """Returns (model, tokenizer) of a Hugging Face folder, or of an adapter folder and the base model it names.

    Raises:
        UserError: missing files, or a tokenizer whose ids the model does not know.
    """
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
