"""Auto classes: what a folder holds is told from its config.json, so that code need not name a model's class."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from mindspore import nn

from msllm.errors import UserError, nearest
from msllm.models import weights
from msllm.models.config import ModelConfig
from msllm.models.presets import PRESETS, config_of
from msllm.models.pretrained import PretrainedModel, family_classes, model_class, read_config
from msllm.tokenization import Tokenizer, load_tokenizer
from msllm.tuning.loading import open_checkpoint
from msllm.tuning.lora import CONFIG as ADAPTER


class AutoConfig:
    """Configurations: sizes and options of a model, without weights."""

    @staticmethod
    def from_pretrained(name: str | Path, **changes) -> ModelConfig:
        """Returns the configuration of a folder, a config.json or a preset.

        Args:
            name: the folder or file, or a name of msllm.models.presets such as "gpt2".
            changes: values that replace those of the file, such as n_layer=2.

        Raises:
            UserError: an unknown name, or a value that the family does not have.
        """
        return changed(config_of(name), **changes)

    @staticmethod
    def for_model(model_type: str, **values) -> ModelConfig:
        """Returns a configuration of a family, such as "llama", with its defaults but for ``values``."""
        return changed(model_class({"model_type": model_type}, "for_model").config_class(), **values)


def changed(config: ModelConfig, **values) -> ModelConfig:
    """Returns a configuration with other values; UserError for a name that it does not have, or a bad value."""
    if not values:
        return config
    known = {field.name for field in dataclasses.fields(config)} - {"extra"} | {*config.aliases, *config.extra}
    strange = next((name for name in values if name not in known), None)
    if strange is not None:
        raise UserError(f"a {config.model_type} has no {strange}{nearest(strange, known)}; known: {_listed(known)}")
    named = {config.aliases.get(name, name): value for name, value in values.items()}
    return type(config).from_dict({**config.to_dict(), **named})


class AutoTokenizer:
    """Tokenizers."""

    @staticmethod
    def from_pretrained(folder: str | Path) -> Tokenizer:
        """Returns the tokenizer of a folder; UserError where it has none."""
        refuse_preset(folder, "give the folder that holds the tokenizer")
        return load_tokenizer(folder)


class AutoModelForCausalLM:
    """Models that predict the next token. The other Auto classes of models are alike.

    Class attributes:
        ends: what the names of the classes end with.
        purpose: what they are for, in messages.
    """

    ends: tuple[str, ...] = ("LMHeadModel", "ForCausalLM")
    purpose = "next-token"

    @classmethod
    def from_pretrained(cls, folder: str | Path, num_labels: int | None = None) -> nn.Cell:
        """Loads a model in inference mode, float32; an adapter folder gives the adapted base model.

        Args:
            folder: Hugging Face folder of the family, with any head or none; a head that it lacks is new, with random
                values and a warning.
            num_labels: classes of a new head that classifies; None: those of the folder.

        Raises:
            UserError: as msllm.from_pretrained; a preset, which has no weights; a family without such a class, and the
                message names the Auto class for it.
        """
        refuse_preset(folder, f"for new random weights use {cls.__name__}.from_config(AutoConfig.from_pretrained(...))")
        path = Path(folder)
        if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
            return cls._fitting(open_checkpoint(path)[0], path)
        values = read_config(path)
        kind = cls.class_for(values, path / "config.json")
        labels = None if num_labels is None else [f"LABEL_{i}" for i in range(num_labels)]
        if labels is not None and not kind.task_heads:
            raise UserError(f"num_labels is {num_labels}, and a {kind.__name__} has no classes; leave it out")
        if labels is None and model_class(values, path / "config.json") is kind:
            return kind.from_pretrained(path).set_train(False)
        return kind.from_body(path, labels)

    @classmethod
    def from_config(cls, config: ModelConfig) -> nn.Cell:
        """Returns a model with random weights, in inference mode; mindspore.set_seed sets them."""
        kind = cls.class_for(config.to_dict(), "the configuration")
        return kind(type(config).from_dict(config.to_dict() | kind.head_values())).set_train(False)

    @classmethod
    def class_for(cls, values: dict, where: str | Path) -> type[PretrainedModel]:
        """Returns the class of a config.json's family; UserError, which names the right Auto class, where none is."""
        family = str(values.get("model_type", ""))
        found = _ending(family_classes(family, where)[0], cls.ends)
        if found is None:
            holds = model_class(values, where).__name__
            others = [auto.__name__ for auto in _AUTO_MODELS if _ending([holds], auto.ends)]
            raise UserError(
                f"{where}: a {family} has no {cls.purpose} model here, and this is a {holds}; use "
                f"{others[0] if others else 'AutoModel'}"
            )
        return family_classes(family, where)[0][found]

    @classmethod
    def _fitting(cls, model: nn.Cell, path: Path) -> nn.Cell:
        if not _ending([type(model).__name__], cls.ends):
            raise UserError(f"{path} is an adapter of a {type(model).__name__}; use AutoModelForCausalLM")
        return model


class AutoModelForMaskedLM(AutoModelForCausalLM):
    """Models that fill in masked words."""

    ends, purpose = ("ForMaskedLM",), "masked-word"


class AutoModelForPreTraining(AutoModelForCausalLM):
    """Models with the heads of pre-training: BERT's masked words and next sentence, or the next token."""

    ends, purpose = ("ForPreTraining", *AutoModelForCausalLM.ends), "pre-training"


class AutoModelForNextSentencePrediction(AutoModelForCausalLM):
    """Models that say whether a sentence follows another."""

    ends, purpose = ("ForNextSentencePrediction",), "next-sentence"


class AutoModelForSequenceClassification(AutoModelForCausalLM):
    """Models that classify texts."""

    ends, purpose = ("ForSequenceClassification",), "text-classifying"


class AutoModelForTokenClassification(AutoModelForCausalLM):
    """Models that tag tokens."""

    ends, purpose = ("ForTokenClassification",), "token-tagging"


class AutoModelForQuestionAnswering(AutoModelForCausalLM):
    """Models that find an answer in a text."""

    ends, purpose = ("ForQuestionAnswering",), "question-answering"


class AutoModelForSeq2SeqLM(AutoModelForCausalLM):
    """Encoder-decoder models that write a text from another."""

    ends, purpose = ("ForTranslation",), "encoder-decoder"


class AutoModel:
    """Bodies: from ids to hidden states, without a head."""

    @staticmethod
    def from_pretrained(folder: str | Path) -> nn.Cell:
        """Loads the body of a model in inference mode, float32.

        Args:
            folder: Hugging Face folder of the family, with any head or none.

        Returns:
            A BertModel, or of a model that predicts the next token what lies below its head, a cell from
            (input_ids, attention_mask) to hidden states (B, T, D); its configuration is in ``config``.

        Raises:
            UserError: as AutoModelForCausalLM.from_pretrained.
        """
        refuse_preset(folder, "for new random weights use AutoModel.from_config(AutoConfig.from_pretrained(...))")
        values = read_config(folder)
        whole = _whole(values, Path(folder) / "config.json")
        if _is_body(whole):
            return whole.from_pretrained(folder).set_train(False)
        model = _untied(whole, values)
        model.load(weights.read_weights(folder), folder)
        return _body(model, values)

    @staticmethod
    def from_config(config: ModelConfig) -> nn.Cell:
        """Returns a body with random weights, in inference mode; mindspore.set_seed sets them."""
        values = config.to_dict()
        whole = _whole(values, "the configuration")
        return whole(config).set_train(False) if _is_body(whole) else _body(_untied(whole, values), values)


def _whole(values: dict, where: str | Path) -> type[PretrainedModel]:
    """Returns the class of a body, or else of the model around it."""
    classes, _ = family_classes(str(values.get("model_type", "")), where)
    name = next((n for n, c in classes.items() if _is_body(c)), None) or _ending(classes, AutoModelForCausalLM.ends)
    if name is None:
        raise UserError(
            f"{where}: a {values['model_type']} has an encoder and a decoder, and no body by itself here; use "
            f"AutoModelForSeq2SeqLM"
        )
    return classes[name]


def _is_body(kind: type[PretrainedModel]) -> bool:
    return kind.__name__.endswith("Model") and not kind.__name__.endswith("LMHeadModel") and not kind.base_model_prefix


def _untied(whole: type[PretrainedModel], values: dict) -> PretrainedModel:
    """Returns a CausalLM without an output layer of its own, which files of a body lack."""
    return whole(whole.config_class.from_dict({**values, **whole.head_values(), "tie_word_embeddings": True}))


def _body(model, values: dict) -> nn.Cell:
    body = model.body
    body.config = type(model.config).from_dict(values)
    return body.set_train(False)


def _ending(names: Iterable[str], ends: tuple[str, ...]) -> str | None:
    """Returns the first name that ends with one of ``ends``, in the order of these."""
    return next((name for end in ends for name in names if name.endswith(end)), None)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def refuse_preset(name: str | Path, instead: str) -> None:
    """Raises UserError where a preset is named and files are wanted."""
    if str(name) in PRESETS and not Path(name).is_dir():
        raise UserError(f"{name} is a preset: it says how large a model is, and has no files; {instead}")


_AUTO_MODELS = (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForNextSentencePrediction,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
)
