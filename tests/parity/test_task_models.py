"""Fine-tuning a BERT beside transformers: the question-answering head, and five steps of each task."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm import kernels
from msllm.models import bert
from msllm.training import Trainer, TrainingArguments
from msllm.training.task_objectives import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from tests.parity.reference import BERT, TOLERANCE, V, build, difference, padded_batch, torch, transformers

OBJECTIVES = {
    "BertForSequenceClassification": SEQUENCE_CLASSIFICATION,
    "BertForTokenClassification": TOKEN_CLASSIFICATION,
    "BertForQuestionAnswering": QUESTION_ANSWERING,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """(transformers' BertForQuestionAnswering, its folder)."""
    model = build("BertConfig", "BertForQuestionAnswering", BERT)
    folder = tmp_path_factory.mktemp("reader")
    model.save_pretrained(folder)
    return model, folder


def inputs():
    ids, mask = padded_batch(side="right")
    return ids, mask, (np.arange(ids.shape[1]) > 5).astype(np.int32)[None].repeat(len(ids), 0)


def test_start_and_end_logits_equal_transformers(reader):
    theirs, folder = reader
    ids, mask, types = inputs()
    ours = msllm.from_pretrained(folder)(*map(Tensor, (ids, mask, types)))
    with torch.no_grad():
        expected = theirs(*map(torch.tensor, (ids, mask, types)), return_dict=False)
    for mine, other in zip(ours, expected, strict=True):
        assert difference(mine.asnumpy(), other, mask == 1) < TOLERANCE


def test_the_reader_compiles_under_jit_with_stock_kernels(reader):
    model = msllm.from_pretrained(reader[1])
    ids, mask, _ = inputs()
    eager = model(Tensor(ids), Tensor(mask))
    chosen = kernels.active()
    try:
        kernels.use("stock")

        @ms.jit
        def forward(ids, mask):
            return model(ids, mask)

        for mine, other in zip(forward(Tensor(ids), Tensor(mask)), eager, strict=True):
            assert difference(mine.asnumpy(), torch.tensor(other.asnumpy()), mask == 1) < TOLERANCE
    finally:
        kernels.use(chosen)


def test_saving_the_reader_writes_the_same_tensors(reader, tmp_path):
    theirs, folder = reader
    msllm.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again, info = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_new_head_starts_from_any_body(zoo, name):
    _, folder = zoo.bert("BertForPreTraining")
    labels = None if name == "BertForQuestionAnswering" else ["a", "b"]
    ours = getattr(bert, name).from_body(folder, labels).state_dict()
    before = msllm.from_pretrained(folder).state_dict()
    kept = [key for key in ours if key in before]
    assert all(np.array_equal(ours[key], before[key]) for key in kept)
    head = {"classifier" if labels else "qa_outputs"}
    assert {key.rsplit(".", 1)[0] for key in ours.keys() - before.keys()} == head
    assert 0.1 < ours[f"{head.pop()}.weight"].std() < 0.6  # initializer_range is 0.3


def examples(name, count=16):
    rng = np.random.default_rng(4)
    made = []
    for i in range(count):
        T = 6 + i % 4
        # transformers gives the embedding of id 0, padding, no gradient; it is no token of a text.
        row = {"input_ids": rng.integers(1, V, T).tolist(), "token_type_ids": [0] * 3 + [1] * (T - 3)}
        if name == "BertForSequenceClassification":
            row["labels"] = int(rng.integers(3))
        elif name == "BertForTokenClassification":
            row["labels"] = [-100, *rng.integers(0, 3, T - 2).tolist(), -100]
        else:
            row["labels"] = sorted(rng.integers(0, T, 2).tolist())
        made.append(row)
    return made


def torch_losses(model, batches, args, total):
    """AdamW as transformers' Trainer groups it, linear warm-up and fall; each loss is transformers' own."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, eps=args.adam_epsilon)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, args.warmup_steps, total)
    losses = []
    model.train()
    for batch in batches:
        arrays = {k: torch.tensor(v, dtype=torch.long) for k, v in batch.items()}
        if "starts" in arrays:
            arrays["start_positions"], arrays["end_positions"] = arrays.pop("starts"), arrays.pop("ends")
        optimizer.zero_grad()
        loss = model(**arrays).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OBJECTIVES)
def test_five_steps_equal_transformers(name, tmp_path):
    labels = {"num_labels": 2 if name == "BertForQuestionAnswering" else 3}
    theirs = build("BertConfig", name, {**BERT, **NO_DROPOUT, **labels})
    theirs.save_pretrained(tmp_path / "start")
    rows = examples(name)
    if name == "BertForQuestionAnswering":
        # transformers lets padding be an answer; of equal lengths there is none.
        rows = [{**r, "input_ids": r["input_ids"][:6], "token_type_ids": r["token_type_ids"][:6]} for r in rows]
        rows = [{**r, "labels": [min(p, 5) for p in r["labels"]]} for r in rows]
    # The gradient of a key bias is zero but for rounding; a larger epsilon keeps AdamW from blowing that noise up.
    args = TrainingArguments(
        adam_epsilon=1e-3,
        learning_rate=3e-3,
        max_steps=5,
        per_device_train_batch_size=4,
        weight_decay=0.1,
        warmup_steps=2,
        seed=3,
    )
    model, objective = msllm.from_pretrained(tmp_path / "start"), OBJECTIVES[name]
    Trainer(model, args, rows, tmp_path / "out", objective=objective).train()
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    epochs = [msllm.data.batches(rows, 4, epoch=epoch, seed=3, collate=objective.collate) for epoch in range(2)]
    order = [batch for epoch in epochs for batch in epoch][:5]
    assert [e["loss"] for e in log] == pytest.approx(torch_losses(theirs, order, args, 5), rel=1e-5)
    assert len({e["loss"] for e in log}) == 5
    ours = model.state_dict()
    for key, value in theirs.state_dict().items():
        other = value.numpy()
        assert np.abs(ours[key] - other).max() <= 1e-5 * np.abs(other).max(), key
