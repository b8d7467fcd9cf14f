"""Tasks of models that write, and BERT's pre-training."""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

from msllm.data import encode_records, load_records, pack
from msllm.data.formats import Record, parse_record
from msllm.data.mindrecord import MANIFEST, read_shards
from msllm.data.parallel_text import ParallelText, encode_pairs, read_parallel
from msllm.data.summaries import in_chinese
from msllm.data.token_file import TRAIN, VALIDATION, Windows
from msllm.errors import UserError
from msllm.evaluation.rouge import rouge
from msllm.evaluation.summarization import write_summaries
from msllm.evaluation.translation import score_translator
from msllm.generation.config import GenerationConfig, SummaryGenerationConfig
from msllm.interfaces.auto import AutoModelForCausalLM
from msllm.interfaces.tasks import Data, Task, checked, name_of, new_network, records_of
from msllm.models.bert import BertForPreTraining
from msllm.models.causal_lm import require_causal
from msllm.models.config import ModelConfig
from msllm.models.pretrained import model_config
from msllm.models.transformer import TransformerForTranslation
from msllm.training.blocks import BLOCKS, block_examples, block_length_of, open_token_files
from msllm.training.moe_objective import with_router_losses
from msllm.training.objective import CAUSAL_LM
from msllm.training.pretraining import PRETRAINING, check_length, pretraining_accuracy
from msllm.training.translation import translation
from msllm.tuning.loading import open_checkpoint


@dataclasses.dataclass(kw_only=True)
class TextGeneration(Task):
    """The next token: of token files, of texts, and of answers in instructions and conversations.

    Args:
        max_length: of records, most tokens of an example; at most the model's context.
        packing: of records, fill rows with several examples.
        block_size: of token files, tokens of an example; None: the longest that the model takes, or 512.
        sampling: of token files, random or sequential, see msllm.training.blocks.block_examples.
    """

    pipeline: ClassVar[str] = "text-generation"
    adapts: ClassVar[bool] = True

    max_length: int = 1024
    packing: bool = False
    block_size: int | None = None
    sampling: str = "random"

    def read(self, source):
        if isinstance(source, str | Path) and (Path(source).suffix == ".bin" or (Path(source) / TRAIN).is_file()):
            return Path(source)
        return records_of(source, Record, lambda name: load_records(name, limit=self.limit), parse_record, self.limit)

    def held_out(self, source):
        if isinstance(source, str | Path) and (Path(source) / VALIDATION).is_file():
            return Path(source) / VALIDATION
        return None

    def open(self, model, tokenizer, records, seed):
        if isinstance(model, str | Path):
            network, own = open_checkpoint(model)
            tokenizer = tokenizer or own
        elif isinstance(model, ModelConfig):
            kind = AutoModelForCausalLM.class_for(model.to_dict(), name_of(model))
            network = new_network(kind, model, seed)
        else:
            network = model
        require_causal(network, name_of(model))
        if tokenizer is None and isinstance(records, Path):
            tokenizer = records if records.is_dir() else records.parent
        return checked(network, tokenizer, model)

    def encode(self, network, tokenizer, records, args, world, training):
        if isinstance(records, Path):
            return self._blocks(network, tokenizer, records, args, world, training)
        length = min(self.max_length, network.max_length or self.max_length)
        examples, report = encode_records(records, tokenizer, length)
        print(f"{'training' if training else 'evaluation'} data: {report}", file=sys.stderr)
        if self.packing and training:
            examples = pack(examples, length)
        routed = getattr(network.config, "output_router_logits", False)
        return Data(records, examples, with_router_losses(network, CAUSAL_LM) if routed else CAUSAL_LM, args)

    def _blocks(self, network, tokenizer, source: Path, args, world: int, training: bool) -> Data:
        if self.sampling not in ("random", "sequential"):
            raise UserError(f"sampling is {self.sampling!r}, expected random or sequential; change it")
        tokens, held_out = open_token_files(source, None, tokenizer, "the tokenizer of the model")
        if not training:
            tokens = held_out or tokens
        length = block_length_of(network, [tokens], self.block_size, 512)
        objective = with_router_losses(network, BLOCKS)
        if not training:
            return Data(tokens, Windows(tokens, length), objective, args)
        args, examples = block_examples(tokens, length, self.sampling, args, world)
        return Data(tokens, examples, objective, args)


@dataclasses.dataclass(kw_only=True)
class Summarization(TextGeneration):
    """The summary behind an article and "TL;DR:"; the figures are ROUGE's.

    Args:
        sentences: of a written summary, keep only the first ones; None keeps all.
        max_new_tokens: most tokens of a written summary.
    """

    pipeline: ClassVar[str] = "summarization"

    sentences: int | None = None
    max_new_tokens: int = 100

    def read(self, source):
        records = super().read(source)
        other = records if isinstance(records, Path) else next((r.source for r in records if r.article is None), None)
        if other is not None:
            raise UserError(f'{other} is no article with its summary; expected {{"article": ..., "summary": ...}}')
        return records

    def figures(self, network, tokenizer, data):
        config = SummaryGenerationConfig(max_new_tokens=self.max_new_tokens)
        articles = [record.article for record in data.records]
        found = write_summaries(network, tokenizer, articles, config, self.sentences)
        references = [record.completion.strip() for record in data.records]
        chinese = 2 * sum(map(in_chinese, references)) > len(references)
        return rouge(references, [summary.text for summary in found], chinese)

    def predicting(self):
        return {"sentences": self.sentences, "max_new_tokens": self.max_new_tokens}


@dataclasses.dataclass(kw_only=True)
class FillMask(Task):
    """BERT's pre-training: masked words and next sentences, of a folder that msllm pretraining-data wrote."""

    pipeline: ClassVar[str] = "fill-mask"

    def read(self, source):
        if self.limit is not None:
            raise UserError(f"limit is {self.limit}, and examples of pre-training have none; leave it out")
        if not isinstance(source, str | Path) or not (Path(source) / MANIFEST).is_file():
            raise UserError(f"{str(source)[:60]} has no {MANIFEST}; give a folder that msllm pretraining-data wrote")
        return Path(source)

    def open(self, model, tokenizer, records, seed):
        config = model_config(model) if isinstance(model, str | Path) else model
        if isinstance(config, BertForPreTraining):
            network = config
        elif not isinstance(config, ModelConfig) or config.model_type != "bert":
            raise UserError(
                f"{name_of(model)} is no BERT with its heads of pre-training; give a BERT's folder or config"
            )
        elif config is model:
            network = new_network(BertForPreTraining, config, seed)
        else:
            network = BertForPreTraining.from_body(model)
        return checked(network, tokenizer or records, model)

    def encode(self, network, tokenizer, records, args, world, training):
        examples = read_shards(records, tokenizer)
        check_length(network, [examples])
        return Data(records, examples, PRETRAINING, args)

    def figures(self, network, tokenizer, data):
        return pretraining_accuracy(network, data.examples, tokenizer.pad_token_id)


@dataclasses.dataclass(kw_only=True)
class Translation(Task):
    """Sentences into another language, by an encoder-decoder Transformer; the figures are BLEU and chrF.

    Args:
        max_length: longer pairs are left out.
        label_smoothing: share of the target spread over the vocabulary, while training.
        num_beams: of the search whose translations are measured.
    """

    pipeline: ClassVar[str] = "translation"

    max_length: int = 256
    label_smoothing: float = 0.1
    num_beams: int = 1

    def read(self, source):
        """Reads what read_parallel does; a pair of paths is source and target; or [(sentence, translation), ...]."""
        if not isinstance(source, str | Path) and not len(source):
            raise UserError("there are no pairs; give paths, or a list of (sentence, translation)")
        if isinstance(source, ParallelText):
            pairs = source
        elif isinstance(source, str | Path):
            pairs = read_parallel(source)
        elif len(source) == 2 and all(isinstance(path, str | Path) for path in source):
            pairs = read_parallel(*source)
        else:
            for number, pair in enumerate(source, 1):
                if len(pair) != 2 or not all(isinstance(text, str) and text.strip() for text in pair):
                    raise UserError(f"pair {number} is {str(pair)[:60]!r}, expected two sentences; mend it")
            pairs = ParallelText(*map(list, zip(*source)))
        return pairs if self.limit is None else pairs.first(self.limit)

    def open(self, model, tokenizer, records, seed):
        if isinstance(model, str | Path):
            network, own = open_checkpoint(model)
            tokenizer = tokenizer or own
        elif isinstance(model, ModelConfig) and model.model_type == "transformer":
            network = new_network(TransformerForTranslation, model, seed)
        else:
            network = model
        if not isinstance(network, TransformerForTranslation):
            raise UserError(
                f"{name_of(model)} does not translate; give the folder of a train-translator run or a TransformerConfig"
            )
        return checked(network, tokenizer, model)

    def encode(self, network, tokenizer, records, args, world, training):
        longest = min(self.max_length, network.max_length)
        examples, longer = encode_pairs(records, tokenizer, longest)
        kind = "training" if training else "evaluation"
        print(f"{kind} data: {records}; {longer} longer than {longest} tokens", file=sys.stderr)
        objective = translation(network.config.decoder_start_token_id, self.label_smoothing)
        return Data(records, examples, objective, args)

    def figures(self, network, tokenizer, data):
        config = GenerationConfig(num_beams=self.num_beams)
        return score_translator(network, tokenizer, data.records, config)[0]

    def logged(self, figures):
        return {name: figures[name] for name in ("bleu", "chrf")}

    def settings(self):
        return {"label_smoothing": self.label_smoothing}

    def predicting(self):
        return {"num_beams": self.num_beams}
