"""States on the host and in files: the same numbers, resumable, and refused where they cannot be."""

import errno

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from msllm.errors import UserError
from msllm.files import read_json_lines
from msllm.models.llama import LlamaConfig, LlamaForCausalLM
from msllm.models.weights import read_weights
from msllm.parallel import ParallelConfig, comm, host, mapped
from msllm.parallel.offload import IN_MEMORY, OffloadConfig, offloaded
from msllm.training import Trainer, TrainingArguments
from msllm.training.blocks import BLOCKS
from msllm.training.optimizer import AdamW

VOCABULARY, LENGTH = 37, 10
OPTIONS = ((0.9, 0.999), 1e-8, 0.1)
DISK = OffloadConfig(optimizer="disk", blocks="disk")


def parameters() -> list[Parameter]:
    rng = np.random.default_rng(0)
    shapes = {"matrix": (31, 17), "bias": (17,), "table": (50, 8)}
    return [Parameter(Tensor(rng.normal(size=s).astype(np.float32)), name=n) for n, s in shapes.items()]


def gradients(step: int) -> list[np.ndarray]:
    """Of sizes from 1e-9, where epsilon counts, to 10."""
    rng = np.random.default_rng(step)
    return [(rng.normal(size=p.shape) * 10.0 ** rng.integers(-9, 2, p.shape)).astype(np.float32) for p in parameters()]


def run(optimizer, steps=range(1, 6)) -> list[np.ndarray]:
    for step in steps:
        optimizer.step([Tensor(g) for g in gradients(step)], 1e-2, 0.5)
    return [p.asnumpy() for p in optimizer.parameters]


def test_adamw_on_the_host_is_that_of_torch():
    torch = pytest.importorskip("torch")
    ours = run(host.HostAdamW(parameters(), *OPTIONS))
    theirs = [torch.nn.Parameter(torch.tensor(p.asnumpy().copy())) for p in parameters()]
    decays = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in theirs]
    optimizer = torch.optim.AdamW(decays, lr=1e-2, betas=OPTIONS[0], eps=OPTIONS[1])
    for step in range(1, 6):
        for p, g in zip(theirs, gradients(step)):
            p.grad = torch.tensor(0.5 * g)
        optimizer.step()
    for mine, p in zip(ours, theirs):
        assert np.abs(mine - p.detach().numpy()).max() <= 1e-6 * np.abs(mine).max()


def test_mindspores_own_is_adam_with_decay_in_the_gradient():
    """Why HostAdamW does not use nn.AdamOffload itself."""
    torch = pytest.importorskip("torch")
    model = nn.Dense(5, 3)
    model.weight.set_data(Tensor(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)))
    weight = torch.nn.Parameter(torch.tensor(model.weight.asnumpy().copy()))
    grads = [Tensor(np.random.default_rng(1).normal(size=p.shape).astype(np.float32)) for p in model.trainable_params()]
    theirs = nn.AdamOffload(model.trainable_params(), 1e-2, weight_decay=0.1)
    before = torch.tensor(weight.detach().numpy().copy())
    found = {}
    for name, cls in (("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)):
        weight.data = before.clone()
        optimizer = cls([weight], lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            weight.grad = torch.tensor(grads[0].asnumpy())
            optimizer.step()
        found[name] = weight.detach().numpy().copy()
    for _ in range(3):
        theirs(tuple(grads))
    assert np.abs(model.weight.asnumpy() - found["Adam"]).max() < 1e-5
    assert np.abs(model.weight.asnumpy() - found["AdamW"]).max() > 1e-4


def test_adamw_with_moments_in_files_is_adamw(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "BUCKET_BYTES", 700)  # three buckets
    mine, plain = mapped.MappedAdamW(tmp_path, parameters(), *OPTIONS), AdamW(parameters(), *OPTIONS)
    assert len(mine._buckets) == 3
    for ours, theirs in zip(run(mine), run(plain)):
        assert np.array_equal(ours, theirs)
    state = mine.state_dict()
    assert state.keys() == plain.state_dict().keys()
    again = mapped.MappedAdamW(tmp_path, parameters(), *OPTIONS)
    for p, values in zip(again.parameters, plain.parameters):
        p.set_data(values.value().copy())
    again.load_state_dict(state)
    for ours, theirs in zip(run(again, [6]), run(plain, [6])):
        assert np.array_equal(ours, theirs)
    assert list(tmp_path.iterdir()) == []  # the files have no names, and none is left behind


def llama(tied: bool) -> LlamaForCausalLM:
    ms.set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "tie_word_embeddings": tied}
    return LlamaForCausalLM(LlamaConfig.from_dict(sizes))


def train(folder, offload: OffloadConfig = IN_MEMORY, resume=None, tied=True) -> LlamaForCausalLM:
    """Five steps of two micro-batches; a checkpoint after every second one."""
    model, rng = llama(tied), np.random.default_rng(0)
    offload.apply(model)
    rows = [{"input_ids": rng.integers(0, VOCABULARY, LENGTH + 1)} for _ in range(20)]
    args = TrainingArguments(
        learning_rate=1e-2,
        adam_epsilon=1e-5,  # with 1e-8, what is rounding alone would make steps
        max_steps=5,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
        save_steps=2,
    )
    workers = offloaded(None, offload, folder)
    Trainer(model, args, rows, folder, rows[:6], objective=BLOCKS, workers=workers).train(resume)
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with all in memory."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(folder)
    return folder


def entries(folder) -> list[dict]:
    names = ("step", "loss", "grad_norm", "eval_loss")
    return [{n: e[n] for n in names if n in e} for e in read_json_lines(folder / "log.jsonl")]


def same(folder, expected, bound=0.0) -> None:
    ours, theirs = read_weights(folder), read_weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.abs(ours[name] - value).max() <= bound * np.abs(value).max(), name


def test_blocks_in_files_train_to_the_same_bits_and_go_on(plain, tmp_path):
    model = train(tmp_path / "disk", DISK)
    same(tmp_path / "disk", plain)
    for ours, theirs in zip(entries(tmp_path / "disk"), entries(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-7)
    homes = [p for p in model.get_parameters() if hasattr(p, "home")]
    assert len(homes) == 3 * 9
    for p in homes:  # of what is in files, nothing is in memory
        assert np.shares_memory(p.asnumpy(), p.home.values)
    # Either way, from the other's checkpoint.
    train(tmp_path / "on", DISK, resume=str(plain / "checkpoint-2"))
    same(tmp_path / "on", plain)
    train(tmp_path / "back", resume=str(tmp_path / "disk" / "checkpoint-4"))
    same(tmp_path / "back", plain)


def test_a_table_on_the_host_gives_the_same_rows_and_gradients(tmp_path):
    model, ids = llama(False), Tensor(np.array([[3, 5, 3], [0, VOCABULARY - 1, 5]], np.int32))
    weights = Tensor(np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32))

    def total(embedding):
        table = embedding.weight
        run = ms.value_and_grad(lambda ids: ops.reduce_sum(embedding(ids) * weights), None, table)
        return embedding(ids).asnumpy(), run(ids)[1].asnumpy()

    name = model.embedding.weight.name
    expected = total(model.embedding)
    host.apply(model)
    assert type(model.embedding) is host.HostEmbedding and model.embedding.weight.name == name
    for ours, theirs in zip(total(model.embedding), expected):
        assert np.abs(ours - theirs).max() <= 1e-6 and ours.shape == theirs.shape
    train(tmp_path / "device", tied=False)
    train(tmp_path / "host", OffloadConfig(optimizer="host", embedding="host"), tied=False)
    same(tmp_path / "host", tmp_path / "device", 1e-5)


def test_a_table_that_is_the_head_too_stays():
    with pytest.raises(UserError, match="the head of this model multiplies by the table"):
        OffloadConfig(optimizer="host", embedding="host").apply(llama(True))


def test_a_disk_that_is_too_small_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mapped.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"GiB free, and a file of states takes \d+\.\d; use --offload.folder"):
        mapped.MappedArrays(tmp_path, [(2**20, 256)])


@pytest.mark.parametrize(
    ("options", "rest", "message"),
    [
        ({"optimizer": "host"}, {"optim": "lamb"}, "optim lamb needs whole matrices on the device"),
        ({"optimizer": "disk"}, {"parallel": ParallelConfig(servers=1, data=1)}, "parallel servers have the states"),
        ({"embedding": "host"}, {}, "the table would go to the device for its update"),
        ({"embedding": "host", "optimizer": "host"}, {"parallel": ParallelConfig(data=1, tensor=2)}, "to be shared"),
        ({"blocks": "disk"}, {}, "add --offload.optimizer disk"),
        ({"blocks": "disk", "optimizer": "disk"}, {"parallel": ParallelConfig(data=2)}, "one process does alone"),
        ({"blocks": "disk", "optimizer": "disk"}, {"tuning": "lora"}, "tuning lora"),
        ({"optimizer": "disk", "folder": "/nowhere"}, {}, "offload.folder is /nowhere, and there is no such folder"),
    ],
)
def test_options_that_contradict_are_refused(options, rest, message):
    with pytest.raises(UserError) as error:
        OffloadConfig(**options).check(**{"parallel": ParallelConfig(data=1), "optim": "adamw", **rest})
    assert message in str(error.value)
