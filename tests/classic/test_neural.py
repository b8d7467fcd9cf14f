"""The feed-forward and the LSTM model against PyTorch on shared weights, and through the Trainer."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from msllm import kernels
from msllm.classic import (
    LSTMConfig,
    LSTMForCausalLM,
    NeuralNGram,
    NeuralNGramConfig,
    WindowTask,
    character_losses,
    random_windows,
    sample,
    sliding_windows,
)
from msllm.errors import UserError
from msllm.training import Trainer, TrainingArguments
from msllm.training.objective import CAUSAL_LM

torch = pytest.importorskip("torch")
V, B, T = 11, 3, 9
TOLERANCE = 1e-5


def batch(seed=0):
    ids = np.random.default_rng(seed).integers(0, V, (B, T)).astype(np.int32)
    return {"input_ids": ids, "labels": ids, "attention_mask": np.ones_like(ids)}


class TorchNGram(torch.nn.Module):
    """Equation 1 as it stands: for each position the vectors of the ids before it, oldest first."""

    def __init__(self, weights, context):
        super().__init__()
        self.context = context
        self.weights = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in weights.items()}

    def forward(self, ids):
        w, rows = self.weights, []
        padded = torch.cat([torch.full((len(ids), self.context - 1), V), ids], 1)
        for t in range(ids.shape[1]):
            x = torch.cat([w["embedding.weight"][padded[:, t + j]] for j in range(self.context)], 1)
            y = w["output.bias"] + torch.tanh(w["hidden.bias"] + x @ w["hidden.weight"].T) @ w["output.weight"].T
            rows.append(y + x @ w["direct.weight"].T if "direct.weight" in w else y)
        return torch.stack(rows, 1)


class TorchLSTM(torch.nn.Module):
    def __init__(self, weights, hidden, layers):
        super().__init__()
        table = {k: torch.tensor(v, dtype=torch.float64) for k, v in weights.items()}
        self.lstm = torch.nn.LSTM(table["embedding.weight"].shape[1], hidden, layers, batch_first=True).double()
        self.lstm.load_state_dict({k[len("lstm.") :]: v for k, v in table.items() if k.startswith("lstm.")})
        self.weights = {k: v.requires_grad_() for k, v in table.items() if not k.startswith("lstm.")}
        self.weights |= {f"lstm.{k}": v for k, v in self.lstm.named_parameters()}

    def forward(self, ids):
        h, _ = self.lstm(self.weights["embedding.weight"][ids])
        return h @ self.weights["output.weight"].T + self.weights["output.bias"]


def neural_ngram(context, direct):
    sizes = {"context_size": context, "embedding_size": 6, "hidden_size": 10, "direct_connections": direct}
    model = NeuralNGram(NeuralNGramConfig(vocab_size=V, **sizes))
    return model, TorchNGram(model.state_dict(), context)


def lstm(layers):
    model = LSTMForCausalLM(LSTMConfig(vocab_size=V, embedding_size=6, hidden_size=10, num_hidden_layers=layers))
    return model, TorchLSTM(model.state_dict(), 10, layers)


PAIRS = {
    "ngram-1": lambda: neural_ngram(1, False),
    "ngram-4": lambda: neural_ngram(4, False),
    "ngram-4-direct": lambda: neural_ngram(4, True),
    "lstm-1": lambda: lstm(1),
    "lstm-2": lambda: lstm(2),
}


def same(got, want, what):
    got, want = np.asarray(got, np.float64), want.detach().numpy()
    assert got.shape == want.shape, what
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), what


@pytest.mark.parametrize("name", PAIRS)
def test_logits_loss_and_gradients_equal_pytorch(name):
    model, theirs = PAIRS[name]()
    for parameter in model.trainable_params():  # biases too are away from zero
        parameter.set_data(parameter + Tensor(np.random.default_rng(3).normal(0, 0.1, parameter.shape), ms.float32))
    theirs = type(theirs)(model.state_dict(), *((theirs.context,) if "ngram" in name else (10, int(name[-1]))))
    made = batch()
    ids = torch.tensor(made["input_ids"], dtype=torch.long)
    logits = theirs(ids)
    same(model(Tensor(made["input_ids"])).asnumpy(), logits, "logits")
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    tensors, count = CAUSAL_LM.to_device(made)
    weights = ms.ParameterTuple(model.trainable_params())
    value, grads = ms.value_and_grad(lambda t: CAUSAL_LM.loss(model, t), None, weights)(tensors)
    assert count == B * (T - 1)
    assert float(value.asnumpy()) == pytest.approx(loss.item(), rel=TOLERANCE)
    assert {p.name for p in weights} == set(theirs.weights)
    for parameter, grad in zip(weights, grads):
        same(grad.asnumpy(), theirs.weights[parameter.name].grad, parameter.name)


@pytest.mark.parametrize("name", PAIRS)
def test_a_prediction_sees_only_what_its_model_may(name):
    model, _ = PAIRS[name]()
    ids = batch()["input_ids"]
    before = model(Tensor(ids)).asnumpy()
    changed = ids.copy()
    changed[:, 3] = (changed[:, 3] + 1) % V
    moved = np.abs(model(Tensor(changed)).asnumpy() - before).max((0, 2)) > 0
    reach = int(name[6]) if "ngram" in name else T
    assert moved.tolist() == [3 <= t < 3 + reach for t in range(T)]


@pytest.mark.parametrize("name", ["ngram-4-direct", "lstm-2"])
def test_folder_and_trainer(name, tmp_path):
    model, _ = PAIRS[name]()
    ids = np.tile(np.arange(V, dtype=np.int32), 40)
    args = TrainingArguments(
        learning_rate=3e-2, max_steps=80, per_device_train_batch_size=16, save_steps=40, logging_steps=20
    )
    windows, held_out = random_windows(ids[:400], 12, 1280), sliding_windows(ids, 400, 12, 4)
    trainer = Trainer(model, args, windows, tmp_path / "out", held_out)
    trainer.train()
    entries = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    evaluated = [e["eval_loss"] for e in entries if "eval_loss" in e]
    losses, contexts = character_losses(model, held_out, 5)
    assert len(losses) == len(ids) - 400 and contexts.min() == 4 and contexts.max() == 11
    assert losses.mean() == pytest.approx(evaluated[-1], rel=1e-5)
    assert losses.mean() < 0.2  # what comes next is certain here; log V is 2.4
    again = type(model).from_pretrained(tmp_path / "out")
    inputs = Tensor(batch()["input_ids"])
    np.testing.assert_array_equal(again(inputs).asnumpy(), model(inputs).asnumpy())
    assert (
        again.config.to_dict().items() >= (model.config.to_dict() | {"architectures": [type(model).__name__]}).items()
    )
    continued = sample(model, ids[:5], 22, window=9, seed=1)
    right = sum((a + 1) % V == b for a, b in zip([4, *continued], continued))
    assert len(continued) == 22 and right >= 15 and continued == sample(model, ids[:5], 22, window=9, seed=1)


def test_a_window_task_trains_and_measures_the_held_out_part(tmp_path):
    ids = np.tile(np.arange(V, dtype=np.int32), 60)
    task = WindowTask(ids, 500, block=10, batch=8)
    runs = []
    for folder in ("one", "two", "two"):  # the third replaces the second
        ms.set_seed(0)
        model, _ = PAIRS["lstm-1"]()
        runs.append(task.train(model, tmp_path / folder, 60, 3e-2))
    result = runs[-1]
    assert result["characters_seen"] == 60 * 8 * 10 and result["seconds"] > 0 and result["cpu_seconds"] > 0
    assert [seen for seen, _ in result["curve"]] == [3 * i * 80 for i in range(1, 21)]
    assert all(run["curve"] == result["curve"] for run in runs)
    found, before = task.held_out_bits(model)
    assert len(found) == len(ids) - 500 and before.min() == 1 and before.max() == 10
    assert found.mean() < 1 < result["curve"][0][1]
    assert found.mean() == pytest.approx(result["curve"][-1][1], rel=0.3)  # that is of a tenth
    assert task.held_out_bits(model, 5, 8)[1].tolist() == [*[5, 6, 7, 8] * 40]


def test_padding_on_the_right_changes_nothing():
    model, _ = lstm(1)
    ids = np.arange(10, dtype=np.int32)
    windows = [{"input_ids": ids[:n], "labels": ids[:n]} for n in (10, 4, 7)]
    together, _ = character_losses(model, windows, 3)
    alone = np.concatenate([character_losses(model, [w], 1)[0] for w in windows])
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("name", ["ngram-4", "lstm-1"])
def test_packed_rows_are_refused(name):
    model, _ = PAIRS[name]()
    ids = Tensor(batch()["input_ids"])
    with pytest.raises(ValueError, match="packed"):
        model(ids, None, None, ids)


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="hidden_size is 0"):
        LSTMConfig.from_dict({"vocab_size": 5, "hidden_size": 0})
    with pytest.raises(UserError, match="context_size is -1"):
        NeuralNGramConfig.from_dict({"vocab_size": 5, "context_size": -1})


@pytest.mark.parametrize("name", ["ngram-4-direct", "lstm-1"])
def test_a_compiled_step_has_the_losses_of_the_interpreted_one(name, tmp_path):
    ids = np.random.default_rng(0).integers(0, V, 60).astype(np.int32)
    chosen, losses = kernels.active(), []
    kernels.use("stock")
    try:
        model, _ = PAIRS[name]()
        model.save_pretrained(tmp_path / "start")
        for jit in (True, False):
            args = TrainingArguments(max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, jit=jit)
            again = type(model).from_pretrained(tmp_path / "start")
            Trainer(again, args, random_windows(ids, 10, 12), tmp_path / f"{jit}").train()
            lines = (tmp_path / f"{jit}" / "log.jsonl").read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in lines])
    finally:
        kernels.use(chosen)
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)
