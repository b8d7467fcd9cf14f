"""Pipelines that read texts: classes, tags, answers, masked words, embeddings."""

import dataclasses
import sys
from typing import Any, ClassVar

import numpy as np
import tokenizers
from mindspore import nn

from msllm.data.questions import Question, encode_questions
from msllm.data.task_inputs import Choices
from msllm.data.tasks import LabelledText
from msllm.errors import UserError, nearest
from msllm.evaluation.inference import classify, input_limit, masked_words, word_places
from msllm.evaluation.predictions import predict_batches
from msllm.evaluation.task_models import check_tokenizer
from msllm.generation.sampling import softmax
from msllm.interfaces.auto import AutoModel
from msllm.interfaces.base import Pipeline
from msllm.interfaces.spans import best_spans
from msllm.models.causal_lm import CausalLM, SequenceClassifier
from msllm.models.pretrained import check_vocabulary, from_pretrained
from msllm.training.task_objectives import QUESTION_ANSWERING, TOKEN_CLASSIFICATION


class Reader(Pipeline):
    """What all of them share.

    Class attributes:
        ends: what the names of the classes that are for the task end with.
    """

    ends: tuple[str, ...] = ()

    def open(self, folder):
        return from_pretrained(folder), None

    def check(self):
        kind = type(self.model).__name__
        if not kind.endswith(self.ends):
            raise UserError(
                f"{self.name} holds a {kind}, {self.task} wants a model whose class ends with "
                f"{' or '.join(self.ends)}; make one with msllm finetune-task or pretrain, or choose another task"
            )
        check_tokenizer(self.tokenizer, self.model, self.name)
        self.limit = input_limit(self.model, self.tokenizer)

    def encoded(self, texts: list[str]) -> list[tokenizers.Encoding]:
        """Returns the texts as tokens, cut to what the model takes; says how many were cut."""
        backend, found, cut = self.tokenizer.backend, [], 0
        room = self.limit - backend.num_special_tokens_to_add(False)
        for text in texts:
            encoding = backend.encode(text, add_special_tokens=False)
            cut += len(encoding) > room
            encoding.truncate(room)
            found.append(backend.post_process(encoding, None, True))
        if cut:
            print(f"{cut} inputs are longer than {self.limit} tokens and were cut", file=sys.stderr)
        return found

    def outputs(self, encodings: list[tokenizers.Encoding], objective, options: dict) -> list[tuple[np.ndarray, ...]]:
        """Returns the model's outputs for each text."""
        examples = [{"input_ids": e.ids, "token_type_ids": e.type_ids, "labels": []} for e in encodings]
        pad = self.tokenizer.pad_token_id
        return predict_batches(self.model, examples, objective, pad, options["batch_size"])


class TextClassification(Reader):
    """Classes of texts. Options:

    top_k: classes of each text, the likeliest first, in a list; None: all; without it, one, not in a list.
    """

    ends = ("ForSequenceClassification",)
    options: ClassVar[dict[str, Any]] = {**Pipeline.options, "top_k": ""}
    wraps = True

    def check(self):
        super().check()
        if not isinstance(self.model, SequenceClassifier) and self.model.config.num_labels < 2:
            raise UserError(f"{self.name} has one class, and what it means is not known here; use a model of several")

    def run(self, inputs, options):
        top_k = options["top_k"]
        if not (top_k in ("", None) or (isinstance(top_k, int) and top_k > 0)):
            raise UserError(f"top_k is {top_k!r}, expected 1 or more, or None for all; change it")
        records = [self._record(value, f"input {number}") for number, value in enumerate(inputs, 1)]
        lines = classify(self.model, self.tokenizer, records, self.limit, options["batch_size"])
        results = []
        for line in lines:
            scores = line["scores"]
            pairs = scores.items() if isinstance(scores, dict) else zip(line["choices"], scores)
            found = [{"label": label, "score": score} for label, score in sorted(pairs, key=lambda pair: -pair[1])]
            results.append(found[0] if top_k == "" else found[:top_k])
        return results

    def _record(self, value, source: str):
        if isinstance(value, dict) and {*value} == {"context", "choices"}:
            return Choices(value["context"], tuple(value["choices"]), None, source)
        if isinstance(value, dict) and {"text"} <= {*value} <= {"text", "text_pair"}:
            return LabelledText(value["text"], value.get("text_pair"), None, source)
        if isinstance(value, dict):
            raise UserError(
                f"{source} has {', '.join(value)}, expected text and maybe text_pair, or context and choices"
            )
        return LabelledText(*self.texts([value]), source=source)


class TokenClassification(Reader):
    """Tags of tokens. Options:

    aggregation_strategy: "none": a dict a token; "simple": neighbours of one tag together, {"entity_group", ...}.
    ignore_labels: tags that are left out.
    """

    ends = ("ForTokenClassification",)
    options: ClassVar[dict[str, Any]] = {**Pipeline.options, "aggregation_strategy": "none", "ignore_labels": ("O",)}

    def run(self, inputs, options):
        strategy = options["aggregation_strategy"]
        if strategy not in ("none", "simple"):
            raise UserError(
                f"aggregation_strategy is {strategy!r}{nearest(str(strategy), ('none', 'simple'))}, expected none or "
                f"simple; change it"
            )
        texts, ignored = self.texts(inputs), set(options["ignore_labels"])
        encodings = self.encoded(texts)
        results = []
        for text, encoding, (logits_TL,) in zip(
            texts, encodings, self.outputs(encodings, TOKEN_CLASSIFICATION, options)
        ):
            tokens = self._tokens(text, encoding, logits_TL)
            name = "entity" if strategy == "none" else "entity_group"
            found = tokens if strategy == "none" else self._groups(tokens)
            results.append([entity for entity in found if entity[name] not in ignored])
        return results

    def _tokens(self, text: str, encoding: tokenizers.Encoding, logits_TL: np.ndarray) -> list[dict]:
        scores, labels = softmax(logits_TL), self.model.config.labels
        found = []
        for i, (token, special) in enumerate(zip(encoding.tokens, encoding.special_tokens_mask)):
            if special:
                continue
            best, (start, end) = int(scores[i].argmax()), encoding.offsets[i]
            word = text[start:end] if encoding.ids[i] == self.tokenizer.unk_token_id else token
            entity = {"entity": labels[best], "score": float(scores[i, best]), "index": i, "word": word}
            found.append({**entity, "start": start, "end": end})
        return found

    def _groups(self, tokens: list[dict]) -> list[dict]:
        groups: list[list[dict]] = []
        for token in tokens:
            begins, tag = _tag(token["entity"])
            if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
                groups[-1].append(token)
            else:
                groups.append([token])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([token["score"] for token in group])),
                "word": self._joined([token["word"] for token in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _joined(self, words: list[str]) -> str:
        decoder = self.tokenizer.backend.decoder
        return " ".join(words) if decoder is None else decoder.decode(words)


def _tag(entity: str) -> tuple[bool, str]:
    """Whether a tag begins an entity, and of which kind; what is neither B- nor I- goes on."""
    return entity.startswith("B-"), entity[2:] if entity.startswith(("B-", "I-")) else entity


class QuestionAnswering(Reader):
    """Answers that are a part of a context. Options:

    top_k: answers to a question, likeliest first; 1 gives the answer itself, more a list.
    max_answer_len: most tokens of an answer.
    max_seq_len: most tokens of question and window together.
    doc_stride: tokens that two windows of a long context share; None: 128, or half of max_seq_len.
    align_to_words: an answer begins and ends with a word.
    """

    ends = ("ForQuestionAnswering",)
    options: ClassVar[dict[str, Any]] = {
        **Pipeline.options,
        "top_k": 1,
        "max_answer_len": 15,
        "max_seq_len": 384,
        "doc_stride": None,
        "align_to_words": True,
    }

    def __call__(self, inputs=None, *, question=None, context=None, **options):
        """Answers {"question", "context"}, a list of them, or question= and context=, which may be lists."""
        if (inputs is None) == (question is None) or (question is None) != (context is None):
            raise UserError("question-answering takes question and context, or a dict of both; give one of them")
        if inputs is None and isinstance(question, str):
            inputs = {"question": question, "context": context}
        elif inputs is None:
            contexts = [context] * len(question) if isinstance(context, str) else context
            if len(question) != len(contexts):
                raise UserError(f"there are {len(question)} questions and {len(contexts)} contexts; give as many")
            inputs = [{"question": q, "context": c} for q, c in zip(question, contexts)]
        return super().__call__(inputs, **options)

    def run(self, inputs, options):
        for name in ("top_k", "max_answer_len", "max_seq_len"):
            if options[name] < 1:
                raise UserError(f"{name} is {options[name]}, expected 1 or more; change it")
        questions = [self._question(value, number) for number, value in enumerate(inputs, 1)]
        length = min(self.limit, options["max_seq_len"])
        shared = min(length // 2, 128) if options["doc_stride"] is None else options["doc_stride"]
        examples, _ = encode_questions(questions, self.tokenizer, length, max_query_length=length, overlap=shared)
        pad = self.tokenizer.pad_token_id
        outputs = predict_batches(self.model, examples, QUESTION_ANSWERING, pad, options["batch_size"])
        results = []
        for index, question in enumerate(questions):
            windows = [(e, logits) for e, logits in zip(examples, outputs) if e["question"] == index]
            words = word_places(self.tokenizer, question.context) if options["align_to_words"] else None
            found = best_spans(
                question.context,
                windows,
                self.tokenizer.cls_token_id,
                words,
                options["top_k"],
                options["max_answer_len"],
            )
            results.append(found[0] if len(found) == 1 else found)
        return results

    def _question(self, value, number: int) -> Question:
        if not isinstance(value, dict) or {*value} != {"question", "context"}:
            raise UserError(f"input {number} is {str(value)[:40]!r}, expected a dict of question and context")
        for name, text in value.items():
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"input {number}: {name} is {text!r}, expected a text")
        return Question(f"{number}", value["question"], value["context"])


class FillMask(Reader):
    """Words in the place of [MASK]; several masks give a list each. Options:

    top_k: words for each mask.
    """

    ends = ("ForMaskedLM", "ForPreTraining")
    options: ClassVar[dict[str, Any]] = {**Pipeline.options, "top_k": 5}

    def run(self, inputs, options):
        if options["top_k"] < 1:
            raise UserError(f"top_k is {options['top_k']}, expected 1 or more; change it")
        texts = [LabelledText(text, source=f"input {n}") for n, text in enumerate(self.texts(inputs), 1)]
        found = masked_words(self.model, self.tokenizer, texts, self.limit, options["batch_size"], options["top_k"])
        results = []
        for ids, masks in found:
            rows = [[self._filled(ids, place, *word, len(masks) == 1) for word in words] for place, words in masks]
            results.append(rows[0] if len(rows) == 1 else rows)
        return results

    def _filled(self, ids: list[int], place: int, token: int, score: float, alone: bool) -> dict:
        # Where there are more masks, special tokens stay, so that they can be seen.
        sequence = self.tokenizer.decode([*ids[:place], token, *ids[place + 1 :]], skip_special_tokens=alone)
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
            "sequence": sequence,
        }


class FeatureExtraction(Reader):
    """Hidden states of the last layer, float32 (1, T, D) of each text. Options:

    pooling: None; "mean" of the tokens or "cls", the first one: (D,).
    normalize: with pooling, divide by the length.
    """

    options: ClassVar[dict[str, Any]] = {**Pipeline.options, "pooling": None, "normalize": False}

    def open(self, folder):
        return AutoModel.from_pretrained(folder), None

    def check(self):
        if hasattr(self.model, "encode"):
            raise UserError(f"{self.name} holds a {type(self.model).__name__}, which translates; use a BERT or a GPT")
        whole = self.model
        if isinstance(whole, CausalLM):
            self.model = whole.body
            self.model.config = whole.config
        elif prefix := getattr(whole, "base_model_prefix", ""):
            self.model = getattr(whole, prefix)
            self.model.config = whole.config
        check_vocabulary(self.tokenizer, self.model, self.name)
        self.limit = input_limit(self.model, self.tokenizer)
        self.objective = dataclasses.replace(TOKEN_CLASSIFICATION, outputs=_hidden_states)

    def run(self, inputs, options):
        pooling = options["pooling"]
        if pooling not in (None, "mean", "cls"):
            raise UserError(f"pooling is {pooling!r}, expected None, mean or cls; change it")
        encodings = self.encoded(self.texts(inputs))
        results = []
        for encoding, (x_TD,) in zip(encodings, self.outputs(encodings, self.objective, options)):
            x_TD = x_TD[: len(encoding)]
            if pooling is None:
                results.append(x_TD[None])
                continue
            x_D = x_TD.mean(0) if pooling == "mean" else x_TD[0]
            results.append(x_D / max(np.linalg.norm(x_D), 1e-12) if options["normalize"] else x_D)
        return results


class Embeddings(FeatureExtraction):
    """A vector for each text: the mean of its tokens' hidden states. Options as FeatureExtraction's."""

    options: ClassVar[dict[str, Any]] = {**FeatureExtraction.options, "pooling": "mean"}


def _hidden_states(model: nn.Cell, tensors):
    if "Bert" in type(model).__name__:
        return model(tensors["input_ids"], tensors.get("attention_mask"), tensors["token_type_ids"])[:1]
    return (model(tensors["input_ids"], tensors.get("attention_mask")),)
