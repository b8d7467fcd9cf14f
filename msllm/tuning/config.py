"""The options of parameter-efficient tuning; they carry peft's names."""

import dataclasses
import re

from msllm.errors import UserError

ALL_LINEAR = "all-linear"


@dataclasses.dataclass(kw_only=True)
class LoraConfig:
    """Options of LoRA; they carry peft's names.

    Args:
        r: rank of the update.
        lora_alpha: the update is multiplied by lora_alpha / r.
        lora_dropout: dropout on the adapter's input, in training.
        target_modules: names of the linear layers that get an adapter (the last parts of their full names, also
            as "a,b"), a regular expression for the full name, or "all-linear": every linear layer but the output
            head.
        use_rslora: multiply by lora_alpha / sqrt(r) instead (Kalajdzievski 2023).
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | str = ALL_LINEAR
    use_rslora: bool = False

    def __post_init__(self):
        if isinstance(self.target_modules, list) and len(self.target_modules) == 1:
            self.target_modules = self.target_modules[0]
        if isinstance(self.target_modules, str) and re.fullmatch(r"[\w.]+(,[\w.]+)*", self.target_modules):
            self.target_modules = self.target_modules.split(",")
        if self.r < 1:
            raise UserError(f"lora r is {self.r}, expected 1 or more; change it")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout is {self.lora_dropout}, expected 0 or more and below 1; change it")

    @property
    def scaling(self) -> float:
        """What B A x is multiplied by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)
