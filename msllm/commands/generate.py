"""msllm generate: one prompt or a file of them, continued."""

import json
import sys
from pathlib import Path

from msllm.errors import UserError
from msllm.generation.config import GenerationConfig


def generate(
    model: str,
    generation: GenerationConfig,
    prompt: str | None = None,
    prompts_file: str | None = None,
    chat: bool = False,
    batch_size: int = 8,
    json_output: bool = False,
) -> None:
    """Continues a prompt and prints the new text as it comes.

    Args:
        model: Hugging Face folder, or adapter folder.
        generation: options of generation.
        prompt: the text to continue; without it, standard input is read.
        prompts_file: a text file with one prompt a line, answered in batches, one line of output each.
        chat: lay the prompt out as a user's message with the checkpoint's chat template.
        batch_size: prompts of prompts_file that are answered together.
        json_output: print a JSON object for each answer, with prompt, text, new_tokens and finish_reason.
    """
    if prompt is not None and prompts_file is not None:
        raise UserError("both --prompt and --prompts_file were given; give one of them")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, expected 1 or more; change it")
    from msllm.files import read_text
    from msllm.generation.text import generate_text, stream_text
    from msllm.models.causal_lm import require_causal
    from msllm.tuning.loading import open_checkpoint

    if prompts_file is not None:
        prompts = read_text(prompts_file).splitlines()
        if not prompts:
            raise UserError(f"{prompts_file} is empty; give one prompt a line")
    else:
        prompts = [sys.stdin.read() if prompt is None else prompt]
    network, tokenizer = open_checkpoint(model)
    require_causal(network, model)

    def layout(text: str) -> str:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)

    if prompts_file is None and not json_output:
        ids = tokenizer.encode(layout(prompts[0]), add_special_tokens=False) if chat else tokenizer.encode(prompts[0])
        stream_text(network, tokenizer, ids, generation, lambda piece: print(piece, end="", flush=True))
        print()
        return
    for start in range(0, len(prompts), batch_size):
        group = prompts[start : start + batch_size]
        texts = [layout(p) for p in group] if chat else group
        for text, (answer, result) in zip(group, generate_text(network, tokenizer, texts, generation, not chat)):
            line = {
                "prompt": text,
                "text": answer,
                "new_tokens": len(result.ids),
                "finish_reason": result.finish_reason,
            }
            print(json.dumps(line, ensure_ascii=False) if json_output else " ".join(answer.split("\n")), flush=True)


def with_saved_options(model: str, values: dict, given: set[str]) -> dict:
    """Returns the options of generation: those given by the user, else the checkpoint's, else the defaults."""
    from msllm.generation.config import saved_options

    saved = {k: v for k, v in saved_options(Path(model)).items() if k not in given}
    return {**values, **saved}
