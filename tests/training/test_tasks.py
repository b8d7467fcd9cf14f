"""The objectives of tasks: batches, counts, and losses that do not depend on what an example is batched with."""

import numpy as np
import pytest
from mindspore import Tensor

from msllm import kernels
from msllm.models import bert
from msllm.training import Trainer, TrainingArguments
from msllm.training.task_objectives import (
    QUESTION_ANSWERING,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    collate_spans,
    collate_texts,
    collate_tokens,
)

NOTHING = {"input_ids": [], "labels": []}
CASES = {
    "texts": (SEQUENCE_CLASSIFICATION, bert.BertForSequenceClassification, lambda T: T % 3),
    "tokens": (TOKEN_CLASSIFICATION, bert.BertForTokenClassification, lambda T: [-100, *[T % 3] * (T - 2), -100]),
    "spans": (QUESTION_ANSWERING, bert.BertForQuestionAnswering, lambda T: [T // 2, T - 1]),
}


def example(T, labels):
    return {"input_ids": list(range(5, 5 + T)), "token_type_ids": [0, 0, *[1] * (T - 2)], "labels": labels(T)}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(objective, model in inference mode, examples of 3 to 7 tokens)."""
    objective, cls, labels = CASES[request.param]
    values = {
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
        "initializer_range": 0.3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if cls is not bert.BertForQuestionAnswering:
        values["id2label"] = {str(i): f"L{i}" for i in range(3)}
    model = cls(bert.BertConfig.from_dict(values)).set_train(False)
    return objective, model, [example(T, labels) for T in (3, 7, 5, 4, 6)]


def loss_and_count(objective, model, rows, multiple=None):
    tensors, count = objective.to_device(objective.collate(rows, 1, multiple))
    return float(objective.loss(model, tensors).asnumpy()), count


def test_batches_of_each_task():
    rows = [example(3, lambda T: 2), example(5, lambda T: 0), NOTHING]
    batch = collate_texts(rows, 1)
    assert batch["labels"].tolist() == [2, 0, -100]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 1], [5, 6, 7, 8, 9], [1] * 5]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5, 0]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0] * 5]
    rows = [example(3, lambda T: [-100, 1, -100]), NOTHING]
    assert collate_tokens(rows, 1, 4)["labels"].tolist() == [[-100, 1, -100, -100], [-100] * 4]
    batch = collate_spans([example(3, lambda T: [1, 2]), NOTHING], 1)
    assert batch["starts"].tolist() == [1, -100] and batch["ends"].tolist() == [2, -100] and "labels" not in batch
    assert all(array.dtype == np.int32 for array in batch.values())


def test_a_batch_is_the_sum_of_its_examples(case):
    objective, model, rows = case
    total, count = loss_and_count(objective, model, rows)
    parts = [loss_and_count(objective, model, [row]) for row in rows]
    assert total == pytest.approx(sum(loss for loss, _ in parts), rel=1e-5)
    assert count == sum(n for _, n in parts)


def test_padding_and_empty_examples_change_nothing(case):
    objective, model, rows = case
    plain, count = loss_and_count(objective, model, rows)
    for more, multiple in (([NOTHING] * 2, None), ([], 16)):
        loss, same = loss_and_count(objective, model, rows + more, multiple)
        assert loss == pytest.approx(plain, rel=1e-5) and same == count
    nothing, none = loss_and_count(objective, model, [NOTHING])
    assert nothing == 0 and none == 0


def test_micro_batches_equal_one_batch(case, tmp_path):
    objective, model, rows = case
    start = {p.name: p.asnumpy().copy() for p in model.get_parameters()}
    logs = []
    for size, accumulation in ((5, 1), (2, 3)):
        for parameter in model.get_parameters():
            parameter.set_data(Tensor(start[parameter.name]))
        args = TrainingArguments(
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            adam_epsilon=1e-3,
        )
        run = Trainer(model, args, rows, tmp_path / str(size), rows, objective=objective, pad_token_id=1)
        run.train()
        logs.append([e[key] for e in run.report.entries for key in ("loss", "grad_norm", "eval_loss") if key in e])
    assert len(logs[0]) == 7 and logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_a_compiled_step_writes_the_losses_of_an_interpreted_one(case, tmp_path):
    objective, model, rows = case
    start = {p.name: p.asnumpy().copy() for p in model.get_parameters()}
    chosen, losses = kernels.active(), []
    kernels.use("stock")
    try:
        for jit in (True, False):
            for parameter in model.get_parameters():
                parameter.set_data(Tensor(start[parameter.name]))
            args = TrainingArguments(
                max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, adam_epsilon=1e-3, jit=jit
            )
            run = Trainer(model, args, rows, tmp_path / str(jit), objective=objective, pad_token_id=1)
            run.train()
            losses.append([e["loss"] for e in run.report.entries])
    finally:
        kernels.use(chosen)
    assert len(set(losses[0])) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_figures_of_an_evaluation_go_to_the_log(case, tmp_path):
    objective, model, rows = case
    args = TrainingArguments(max_steps=1, per_device_train_batch_size=5)
    run = Trainer(model, args, rows, tmp_path, rows, objective=objective, metrics=lambda: {"accuracy": 0.25})
    run.train()
    assert run.report.entries[-1]["eval_accuracy"] == 0.25
