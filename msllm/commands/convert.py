"""msllm convert and msllm merge: from one kind of checkpoint folder to another."""

from pathlib import Path
from typing import Literal

from msllm.errors import UserError


def convert(
    source: str,
    output: str,
    to: Literal["huggingface", "mindspore", "mindformers"] = "huggingface",
    tokenizer: str | None = None,
    config_name: str | None = None,
    strategy: str | None = None,
    qkv_concat: bool = False,
    file_format: Literal["ckpt", "safetensors"] = "ckpt",
) -> None:
    """Turns a checkpoint of PyTorch (needs it), of several workers, or of MindFormers into another kind of folder.

    Args:
        source: Hugging Face folder, its weights pytorch_model.bin where they become safetensors; a checkpoint in parts;
            or a checkpoint of MindFormers: a .ckpt, a folder of them, or the output folder of a run.
        output: new folder.
        to: huggingface for safetensors; mindspore, of a checkpoint in parts, for what mindspore.transform_checkpoints
            reads: a folder a rank and strategy.ckpt; mindformers, of a Hugging Face folder, for the names of
            MindFormers 1.9.0 (LLaMA) or r0.8 (GPT-2, BLOOM).
        tokenizer: folder of a tokenizer to put beside the weights of a checkpoint in parts, or of MindFormers.
        config_name: which model a checkpoint of MindFormers is of: a name such as llama2-7b, a config.json or its
            folder, or a YAML of MindFormers; without it, such a file beside the weights.
        strategy: how the ranks of MindFormers cut the model: the run's strategy folder, or a strategy file; without it,
            the one beside the ranks.
        qkv_concat: to mindformers, fuse queries, keys and values as its option qkv_concat does.
        file_format: of the weights, to mindformers.
    """
    from msllm.conversion.mindformers import is_mindformers
    from msllm.training.checkpoint import LAYOUT, find

    path = Path(source)
    given = {"tokenizer": tokenizer, "config_name": config_name, "strategy": strategy}
    given |= {"qkv_concat": qkv_concat or None, "file_format": None if file_format == "ckpt" else file_format}
    if is_mindformers(path):
        _only(given, ("tokenizer", "config_name", "strategy"), "a checkpoint of MindFormers", to, ("huggingface",))
        _convert_mindformers(path, output, tokenizer, config_name, strategy)
    elif not path.is_dir():
        near = ", ".join(path.name for path in find(path.parent)) or "none"
        raise UserError(f"{source} is not a folder; checkpoints beside it: {near}; choose one")
    elif (path / LAYOUT).is_file():
        _only(given, ("tokenizer",), "a checkpoint in parts", to, ("huggingface", "mindspore"))
        _convert_parts(path, output, to, tokenizer)
    elif to == "mindformers":
        from msllm.conversion.mindformers import to_mindformers

        _only(given, ("qkv_concat", "file_format"), "a Hugging Face folder", to, ("mindformers",))
        to_mindformers(path, output, qkv_concat, file_format)
    else:
        from msllm.conversion.torch_bin import convert_folder

        _only(given, (), "a Hugging Face folder", to, ("huggingface", "mindformers"))
        convert_folder(source, output)
    print(f"saved {output}")


def _only(given: dict[str, object], fitting: tuple[str, ...], what: str, to: str, targets: tuple[str, ...]) -> None:
    """Raises UserError where the source is not one that goes with the options."""
    if to not in targets:
        raise UserError(f"the source is {what}, which can become {' or '.join(targets)}, not {to}; change to")
    wrong = [name for name, value in given.items() if value is not None and name not in fitting]
    if wrong:
        raise UserError(f"the source is {what} and {', '.join(wrong)} does not go with that; leave it out")


def _convert_mindformers(
    source: Path, output: str, tokenizer: str | None, config_name: str | None, strategy: str | None
) -> None:
    from msllm.conversion.mindformers import from_mindformers
    from msllm.tokenization import load_tokenizer

    words = None if tokenizer is None else load_tokenizer(tokenizer)
    from_mindformers(source, output, config_name, words, strategy)


def _convert_parts(source: Path, output: str, to: str, tokenizer: str | None) -> None:
    from msllm.models.pretrained import model_class
    from msllm.parallel.folders import to_folder
    from msllm.parallel.mindspore_strategy import export
    from msllm.parallel.sharded import ShardedCheckpoint
    from msllm.tokenization import load_tokenizer

    if to == "mindspore":
        if tokenizer is not None:
            raise UserError("a tokenizer belongs to a Hugging Face folder, not to what MindSpore reads; leave it out")
        export(source, output)
        return
    checkpoint = ShardedCheckpoint(source)
    if "config" not in checkpoint.info:
        raise UserError(
            f"{source} does not say which model it is of; use msllm.parallel.folders.to_folder with the model"
        )
    owner = model_class(checkpoint.info["config"], source)
    to_folder(checkpoint, owner, output, None if tokenizer is None else load_tokenizer(tokenizer))
    if tokenizer is None:
        print(
            "without a tokenizer: to use it on text, convert again with --tokenizer FOLDER, of the tokens or the model"
        )
    else:
        print(f"try it: msllm generate --model {output} --prompt TEXT")


def merge(adapter: str, output: str) -> None:
    """Adds an adapter to its base model and saves the whole model.

    Args:
        adapter: adapter folder, of msllm or peft.
        output: new Hugging Face folder.
    """
    from msllm.conversion.output import new_folder
    from msllm.tuning.loading import open_checkpoint
    from msllm.tuning.lora import merge as merge_in_place
    from msllm.tuning.lora import read_adapter_config

    new_folder(output)
    read_adapter_config(adapter)
    model, tokenizer = open_checkpoint(adapter)
    merge_in_place(model)
    model.save_pretrained(output, tokenizer)
    print(f"saved {output}; try it: msllm chat --model {output}")
