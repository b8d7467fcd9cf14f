"""A model's way from a Hugging Face folder and back."""

import importlib
import logging
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from msllm.errors import UserError, nearest
from msllm.files import atomic_folder, read_json, write_json
from msllm.layers import initialise, no_initial_values
from msllm.models import weights
from msllm.models.config import ModelConfig

log = logging.getLogger(__name__)
_NOT_FAMILIES = ("causal_lm", "config", "presets", "pretrained", "weights")
_HYPHENATED = {"openai_gpt": "openai-gpt"}  # module -> model type, where a module cannot be called so


class PretrainedModel(nn.Cell):
    """Base of every model class.

    Class attributes:
        config_class: the family's configuration.
        base_model_prefix: the attribute that holds the body; files of a bare body lack this prefix.
        new_heads: beginnings of tensor names that a checkpoint may lack: a new head starts from its initial values.
        task_heads: those of heads that belong to one task.
    """

    config_class: type[ModelConfig]
    base_model_prefix = ""
    new_heads: tuple[str, ...] = ()
    task_heads: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, folder: str | Path):
        """Builds this class from a folder with config.json and safetensors; see msllm.from_pretrained."""
        folder = Path(folder)
        with no_initial_values():
            model = cls(cls.config_class.from_dict(read_config(folder)))
        parameters = {p.name: p for p in model.get_parameters()}
        for name in model.load(weights.read_weights(folder), folder):
            initialise(parameters[name])
        return model

    @classmethod
    def from_body(cls, folder: str | Path, labels: Sequence[str] | None = None, **own):
        """Builds this class on the body of any folder of its family, in inference mode.

        Args:
            folder: as for from_pretrained; which class its config.json names does not matter.
            labels: the classes of a classification head. The folder's head is kept where it is this class with the
                same labels; else the head is new, with random values.
            own: other values of the configuration, such as ``msllm_task``; with a larger ``vocab_size`` than the
                folder's, the new tokens have random embeddings (a SequenceClassifier).

        Raises:
            UserError: as from_pretrained.
        """
        values, own = read_config(folder), {**own, **cls.head_values(labels)}
        found = cls.config_class.from_dict(values)
        new_head = found.architectures[:1] != own["architectures"] or (
            labels is not None and found.labels != list(labels)
        )
        of_head = ("id2label", "label2id", "num_labels", "problem_type") if new_head else ()
        body = {k: v for k, v in values.items() if k not in of_head}
        with no_initial_values():
            model = cls(cls.config_class.from_dict({**body, **own}))
        tensors = weights.read_weights(folder)
        if new_head:
            tensors = {k: v for k, v in tensors.items() if not k.startswith(cls.task_heads)}
        if model.config.vocab_size > found.vocab_size:
            tensors = cls.with_more_words(tensors, model.config)
        parameters = {p.name: p for p in model.get_parameters()}
        for name in model.load(tensors, folder):
            initialise(parameters[name])
        return model.set_train(False)

    @classmethod
    def head_values(cls, labels: Sequence[str] | None = None) -> dict:
        """Returns what the configuration of this class says that a body's does not: its name, and its classes."""
        values: dict = {"architectures": [cls.__name__]}
        if labels is not None:
            values["id2label"] = {str(i): name for i, name in enumerate(labels)}
            values["label2id"] = {name: i for i, name in enumerate(labels)}
        return values

    def load(self, tensors: dict[str, np.ndarray], where: str | Path) -> list[str]:
        """Sets every parameter from Hugging Face tensors; ``where`` is named in errors.

        Of tensors that are mapped from a file, those that had to be copied are read from the file again if they are
        used again: changes made to them in place are lost.

        Returns:
            The names of parameters that the tensors lack and may lack; they are left as they are.
        """
        tensors = self.sanitize(self._with_prefix(tensors))
        parameters = {p.name: p for p in self.get_parameters()}
        missing = weights.compare({n: p.shape for n, p in parameters.items()}, tensors, where, self.new_heads)
        if missing:
            log.warning("%s has no %s: new, random values are used; train them", where, ", ".join(missing))
        extra = [name for name in tensors if name not in parameters]
        body = [name for name in extra if self.base_model_prefix and name.startswith(self.base_model_prefix + ".")]
        if body:
            raise UserError(
                f"{where}: the weights hold {len(body)} tensors that config.json does not ask for, first "
                f"{body[0]}; use the config.json that belongs to these weights"
            )
        if extra:
            log.info("%s: not used: %s", where, ", ".join(extra))
        for name, parameter in parameters.items():
            if name in tensors:
                parameter.set_data(Tensor.from_numpy(weights.in_order(tensors[name])))
        return missing

    def _with_prefix(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        prefix = self.base_model_prefix
        if not prefix or any(name.startswith(prefix + ".") for name in tensors):
            return tensors
        heads = tuple(n for n, _ in self.name_cells().items() if n != prefix)
        return {name if name.startswith(heads) and heads else f"{prefix}.{name}": t for name, t in tensors.items()}

    def sanitize(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Hugging Face's tensors to this model's, where they differ."""
        return tensors

    def unsanitize(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse of sanitize."""
        return tensors

    def config_values(self) -> dict:
        """Returns what config.json says of this model and of the tensors that are written."""
        return {**self.config.to_dict(), "architectures": [type(self).__name__], "torch_dtype": "float32"}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns the tensors as Hugging Face names and lays them out, float32."""
        return self.unsanitize({p.name: p.asnumpy() for p in self.get_parameters()})

    def save_pretrained(self, folder: str | Path, tokenizer=None, max_shard_bytes: int = 5 * 10**9) -> None:
        """Writes config.json and safetensors (and the tokenizer's files), whole or not at all.

        Args:
            folder: created or replaced in one step; other files in it are lost.
            tokenizer: an msllm.tokenization.Tokenizer to save along.
            max_shard_bytes: see msllm.models.weights.write_weights.
        """
        with atomic_folder(folder) as tmp:
            self.write_files(tmp, tokenizer, max_shard_bytes)

    def write_files(self, folder: Path, tokenizer=None, max_shard_bytes: int = 5 * 10**9) -> None:
        """Writes the files of save_pretrained into an existing folder."""
        write_json(folder / "config.json", self.config_values())
        weights.write_weights(folder, self.state_dict(), max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def read_config(folder: str | Path) -> dict:
    """Returns the mapping in the folder's config.json; UserError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the path of a Hugging Face checkpoint folder")
    if (folder / "layout.json").is_file():
        raise UserError(
            f"{folder} is a checkpoint in parts; make a folder of it: "
            f"msllm convert --source {folder} --tokenizer FOLDER --output FOLDER"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} lacks config.json; found: {weights.list_folder(folder)}; "
            f"give the path of a Hugging Face checkpoint folder"
        )
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise UserError(f"{folder}/config.json holds a {type(values).__name__}, expected an object; copy it again")
    return values


def families() -> list[str]:
    """Returns the known model types."""
    package = importlib.import_module("msllm.models")
    names = (m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in _NOT_FAMILIES)
    return sorted(_HYPHENATED.get(name, name) for name in names)


def family_classes(model_type: str, where: str | Path = "config.json") -> tuple[dict[str, type[PretrainedModel]], str]:
    """Returns the classes of a family by name, and the name of the one for a config.json that names none.

    Raises:
        UserError: an unknown family; ``where`` is named in it.
    """
    if model_type not in families():
        raise UserError(
            f"{where}: unknown model_type {model_type!r}{nearest(model_type, families())}; "
            f"known are {', '.join(families())}"
        )
    module = importlib.import_module(f"msllm.models.{model_type.replace('-', '_')}")
    classes = {
        n: c
        for n, c in vars(module).items()
        if isinstance(c, type) and issubclass(c, PretrainedModel) and hasattr(c, "config_class")
    }
    return classes, module.DEFAULT_ARCHITECTURE


def model_class(values: dict, where: str | Path = "config.json") -> type[PretrainedModel]:
    """Returns the class that config.json's ``model_type`` and ``architectures`` name; UserError when unknown."""
    kind = str(values.get("model_type", ""))
    classes, default = family_classes(kind, where)
    wanted = values.get("architectures") or default
    name = wanted if isinstance(wanted, str) else wanted[0]
    if name not in classes:
        raise UserError(
            f"{where}: unknown architecture {name!r}{nearest(name, classes)}; "
            f"known for {kind} are {', '.join(sorted(classes))}"
        )
    return classes[name]


def model_config(folder: str | Path) -> ModelConfig:
    """Returns the configuration of a model folder, without its weights; UserError as from_pretrained."""
    values = read_config(folder)
    return model_class(values, Path(folder) / "config.json").config_class.from_dict(values)


def check_vocabulary(tokenizer, model: PretrainedModel, name: str | Path) -> None:
    """Raises UserError where the tokenizer has ids that the model does not know; ``name`` is named in it."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size} "
            f"(vocab_size in config.json); use the tokenizer that belongs to the model"
        )


def from_pretrained(folder: str | Path) -> PretrainedModel:
    """Loads a model from a Hugging Face folder, in inference mode.

    Args:
        folder: holds config.json and model.safetensors, or its shards and their index.

    Returns:
        The class that ``architectures`` names, with float32 weights.

    Raises:
        UserError: a missing or damaged file, an unknown model type, config and weights that disagree.
    """
    model = model_class(read_config(folder), Path(folder) / "config.json").from_pretrained(folder)
    return model.set_train(False)
