"""What every model configuration shares: reading Hugging Face's config.json and writing it back."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from msllm.errors import UserError


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """Base of a family's configuration; fields carry the names of config.json.

    ``extra`` keeps the keys that the family does not read, so that saving writes them back; ``aliases`` maps
    other spellings of a key to the field.
    """

    aliases: ClassVar[dict[str, str]] = {}

    model_type: str = ""
    architectures: list[str] = dataclasses.field(default_factory=list)
    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    extra: dict = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, values: Mapping):
        """Builds the configuration from the mapping in config.json; raises UserError on values that cannot be."""
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        values = {cls.aliases.get(k, k): v for k, v in values.items()}
        known = {k: v for k, v in values.items() if k in names}
        config = cls(**known, extra={k: v for k, v in values.items() if k not in names})
        config.check()
        return config

    def to_dict(self) -> dict:
        """Returns the mapping for config.json."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {**self.extra, **values}

    def check(self) -> None:
        """Raises UserError where two values contradict each other; families add their own checks."""
        self._positive("vocab_size")

    def _positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"config.json: {name} is {value!r}, expected a positive integer; correct it")

    def _divides(self, part: str, whole: str) -> None:
        p, w = getattr(self, part), getattr(self, whole)
        if w % p:
            raise UserError(f"config.json: {whole} = {w} is not a multiple of {part} = {p}; correct one of them")

    def _shares(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(f"config.json: {name} is {value!r}, expected at least 0 and below 1; correct it")

    def _one_of(self, name: str, *allowed: str) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise UserError(f"config.json: {name} is {value!r}; supported are {', '.join(allowed)}")


@dataclasses.dataclass(kw_only=True)
class LabelledConfig(ModelConfig):
    """Of families that classify too; ``id2label`` names the classes of a classification head."""

    id2label: dict[str, str] | None = None

    def to_dict(self) -> dict:
        values = super().to_dict()
        if self.id2label is None:
            del values["id2label"]
        return values

    @property
    def num_labels(self) -> int:
        """Classes of a classification head; two where the file names none, as in transformers."""
        return len(self.id2label) if self.id2label else self.extra.get("num_labels", 2)

    @property
    def labels(self) -> list[str]:
        """The names of the classes by their number, LABEL_0 and so on where the file names none."""
        if not self.id2label:
            return [f"LABEL_{i}" for i in range(self.num_labels)]
        return [self.id2label[i] for i in sorted(self.id2label, key=int)]
