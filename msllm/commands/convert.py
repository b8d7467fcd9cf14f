"""msllm convert and msllm merge: from one kind of checkpoint folder to another."""


def convert(source: str, output: str) -> None:
    """Turns a folder with pytorch_model.bin into one with safetensors; needs PyTorch.

    Args:
        source: Hugging Face folder whose weights are pytorch_model.bin, whole or in shards.
        output: new folder.
    """
    from msllm.conversion.torch_bin import convert_folder

    convert_folder(source, output)
    print(f"saved {output}")


def merge(adapter: str, output: str) -> None:
    """Adds an adapter to its base model and saves the whole model.

    Args:
        adapter: adapter folder, of msllm or peft.
        output: new Hugging Face folder.
    """
    from msllm.commands.loading import open_checkpoint
    from msllm.conversion.output import new_folder
    from msllm.tuning.lora import merge as merge_in_place
    from msllm.tuning.lora import read_adapter_config

    new_folder(output)
    read_adapter_config(adapter)
    model, tokenizer = open_checkpoint(adapter)
    merge_in_place(model)
    model.save_pretrained(output, tokenizer)
    print(f"saved {output}; try it: msllm chat --model {output}")
