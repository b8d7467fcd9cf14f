"""Parameter-efficient tuning: a model is changed in place, and files that peft reads are written."""

from msllm.lazy import exports

__all__, __getattr__ = exports(
    __name__, {"LoraConfig": "config", "apply": "lora", "load_adapter": "lora", "merge": "lora", "save_adapter": "lora"}
)
