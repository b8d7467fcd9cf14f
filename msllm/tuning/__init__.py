"""Parameter-efficient tuning: a model is changed in place, and files that peft reads are written."""

from msllm.tuning.lora import LoraConfig, apply, load_adapter, merge, save_adapter

__all__ = ["LoraConfig", "apply", "load_adapter", "merge", "save_adapter"]
