"""GPT and GPT-2 with a class, a pair or choices: logits, the losses of steps and saved files, beside transformers."""

import json

import numpy as np
import pytest
from mindspore import Tensor

import msllm
from msllm.data import IGNORED
from msllm.models.gpt2 import GPT2ForSequenceClassification
from msllm.models.openai_gpt import OpenAIGPTForSequenceClassification
from msllm.training.alone import Alone
from msllm.training.optimizer import AdamW
from msllm.training.sequence_objectives import collate_sequences, record_logits, sequence_objective
from msllm.training.step import build_step
from tests.parity.reference import GPT2, TOLERANCE, V, build, difference, padded_batch, torch, transformers

PAD, LM_WEIGHT = 0, 0.5
FAMILIES = {"gpt": ("OpenAIGPT", OpenAIGPTForSequenceClassification), "gpt2": ("GPT2", GPT2ForSequenceClassification)}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0}


@pytest.fixture(scope="module", params=FAMILIES)
def classifier(request, tmp_path_factory):
    """transformers' model, its folder, our class."""
    name, ours = FAMILIES[request.param]
    values = {**GPT2, **STILL, "num_labels": 3, "pad_token_id": PAD}
    theirs = build(f"{name}Config", f"{name}ForSequenceClassification", values)
    folder = tmp_path_factory.mktemp("classifier") / "model"
    theirs.save_pretrained(folder)
    return theirs, folder, ours


def examples(count: int, sequences: int, labels: int, seed: int = 0) -> list[dict]:
    """Records of random ids that do not hold the padding's."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        lengths = rng.integers(3, 12, sequences).tolist()
        ids = rng.integers(1, V, sum(lengths)).tolist()
        made.append({"input_ids": ids, "lengths": lengths, "labels": int(rng.integers(0, labels))})
    return made


def test_logits_equal_transformers(classifier):
    theirs, folder, ours = classifier
    ids, mask = padded_batch(side="right")
    ids = np.where(mask == 1, np.maximum(ids, 1), PAD).astype(np.int32)
    model = msllm.from_pretrained(folder)
    assert type(model) is ours
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    assert difference(model(Tensor(ids), Tensor(mask))[0].asnumpy(), expected) < TOLERANCE
    ends = (np.arange(len(ids)) * ids.shape[1] + mask.sum(1) - 1).astype(np.int32)
    assert difference(model(Tensor(ids), Tensor(mask), Tensor(ends))[0].asnumpy(), expected) < TOLERANCE


def test_saving_writes_the_same_tensors(classifier, tmp_path):
    theirs, folder, _ = classifier
    msllm.from_pretrained(folder).save_pretrained(tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again")
    for key, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def hidden(theirs, batch):
    ids, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
    body = theirs.transformer(ids.long(), attention_mask=mask)[0]
    return body, body.reshape(-1, body.shape[-1])[torch.tensor(batch["ends"]).long()]


def torch_loss(theirs, batch, kind):
    """The loss of Radford et al. 2018, equation 5, written with torch."""
    body, ends = hidden(theirs, batch)
    B, C = batch["missing"].shape
    if kind == "similarity":
        logits = theirs.score(ends.reshape(B, C, -1).sum(1))  # the hidden states are added, as in the paper
    elif kind == "multiple-choice":
        scores = theirs.score(ends)[:, 0].reshape(B, C)
        logits = scores.masked_fill(torch.tensor(batch["missing"]) == 1, -torch.inf)
    else:
        logits = theirs.score(ends)
    task = torch.nn.functional.cross_entropy(logits, torch.tensor(batch["labels"]).long())
    embedding = theirs.transformer.get_input_embeddings().weight
    words = torch.nn.functional.cross_entropy(
        (body @ embedding.T).flatten(0, 1), torch.tensor(batch["words"]).long().flatten(), ignore_index=IGNORED
    )
    return logits, task + LM_WEIGHT * words


@pytest.mark.parametrize(("kind", "sequences"), [("classification", 1), ("similarity", 2), ("multiple-choice", 3)])
def test_three_steps_equal_torch(classifier, kind, sequences, tmp_path):
    _, folder, ours_class = classifier
    if kind == "multiple-choice":  # a number for each sequence
        ours_class.from_body(folder, ["choice"]).save_pretrained(tmp_path / "choice")
        folder = tmp_path / "choice"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)  # a copy to train
    model = msllm.from_pretrained(folder)
    records = examples(12, sequences, 3)
    if kind == "multiple-choice":
        records = examples(4, 3, 2) + examples(8, 2, 2, seed=1)  # some have two choices, some three
    objective = sequence_objective(kind, LM_WEIGHT)
    # A large epsilon keeps Adam's first steps, which divide by the gradient itself, from magnifying rounding.
    alone = Alone()
    step = build_step(alone, objective, AdamW(alone.prepare(model, objective, False), (0.9, 0.999), 1e-3, 0.0), 0.0)
    optimizer = torch.optim.AdamW(theirs.parameters(), 1e-3, (0.9, 0.999), 1e-3, weight_decay=0.0)
    for start in range(0, 12, 4):
        batch = collate_sequences(records[start : start + 4], PAD)
        tensors, counts = objective.to_device(batch)
        if start == 0:
            ours = record_logits(model, tensors, kind)[0].asnumpy()
            logits = torch_loss(theirs, batch, kind)[0]
            assert difference(ours[np.isfinite(logits.detach().numpy())], logits[logits.isfinite()]) < TOLERANCE
        loss = objective.total(step([(tensors, counts)], 1e-3)[0])
        expected = torch_loss(theirs, batch, kind)[1]
        assert loss == pytest.approx(expected.item(), rel=TOLERANCE)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()


def test_the_task_loss_alone_leaves_the_words_out(classifier):
    _, folder, _ = classifier
    model = msllm.from_pretrained(folder)
    batch = collate_sequences(examples(5, 1, 3), PAD)
    both, alone = sequence_objective("classification", LM_WEIGHT), sequence_objective("classification")
    task = alone.loss(model, alone.to_device(batch)[0]).asnumpy()
    assert task == pytest.approx(both.loss(model, both.to_device(batch)[0]).asnumpy()[0], rel=TOLERANCE)
    assert alone.to_device(batch)[1] == 5
    assert both.to_device(batch)[1] == [5, int(batch["attention_mask"].sum()) - 5]


def test_a_new_head_and_new_tokens_start_from_a_language_model(zoo, tmp_path):
    _, folder = zoo.causal("gpt")
    model = OpenAIGPTForSequenceClassification.from_body(folder, ["no", "yes"], vocab_size=V + 3)
    known = msllm.from_pretrained(folder).state_dict()["transformer.tokens_embed.weight"]
    new = model.state_dict()["transformer.tokens_embed.weight"]
    assert new.shape == (V + 3, known.shape[1])
    assert (new[:V] == known).all()
    assert new[V:].std() > 0
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["vocab_size"] == V + 3
