"""msllm convert and msllm merge: from one kind of checkpoint folder to another."""

from pathlib import Path
from typing import Literal

from msllm.errors import UserError


def convert(
    source: str,
    output: str,
    to: Literal["huggingface", "mindspore"] = "huggingface",
    tokenizer: str | None = None,
) -> None:
    """Turns pytorch_model.bin (needs PyTorch), or a checkpoint that several workers wrote, into another kind of folder.

    Args:
        source: Hugging Face folder whose weights are pytorch_model.bin, whole or in shards; or a checkpoint in parts.
        output: new folder.
        to: huggingface for safetensors; mindspore, of a checkpoint in parts, for what mindspore.transform_checkpoints
            reads: a folder a rank and strategy.ckpt.
        tokenizer: folder of a tokenizer to put beside the weights of a checkpoint in parts.
    """
    from msllm.training.checkpoint import LAYOUT, find

    if not Path(source).is_dir():
        near = ", ".join(path.name for path in find(Path(source).parent)) or "none"
        raise UserError(f"{source} is not a folder; checkpoints beside it: {near}; choose one")
    if (Path(source) / LAYOUT).is_file():
        _convert_parts(Path(source), output, to, tokenizer)
    elif to != "huggingface" or tokenizer is not None:
        raise UserError(
            f"{source} is no checkpoint in parts, it has no {LAYOUT}; to and tokenizer are for those: leave them out"
        )
    else:
        from msllm.conversion.torch_bin import convert_folder

        convert_folder(source, output)
    print(f"saved {output}")


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
