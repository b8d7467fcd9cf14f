"""A run that is broken off and resumed writes the losses of an unbroken one, bit for bit."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import msllm
from msllm import kernels
from msllm.errors import UserError
from msllm.training import Trainer, TrainingArguments
from msllm.training import checkpoint as checkpoints
from msllm.tuning import LoraConfig, apply, load_adapter, save_adapter

STEPS = 9


def examples():
    rng = np.random.default_rng(1)
    rows = [rng.integers(4, 250, 4 + i % 5).tolist() for i in range(10)]
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(**more):
    values = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "eval_steps": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "seed": 5,
    }
    return TrainingArguments(**{**values, **more})


def trainer(folder, tiny_model, lora=False, **more):
    model = msllm.from_pretrained(tiny_model)
    for block in model.model.layers:
        block.self_attn.dropout = 0.2  # so that the random state matters
    how = {}
    if lora:
        config = LoraConfig(r=2, lora_dropout=0.3)
        kernels.set_seed(0)
        apply(model, config)
        rng = np.random.default_rng(2)
        from mindspore import Tensor

        for p in model.trainable_params():
            p.set_data(Tensor(rng.normal(0, 0.1, p.shape).astype(np.float32)))
        how = {
            "write_model": lambda f: save_adapter(model, config, f, "base"),
            "read_model": lambda f: load_adapter(model, f),
        }
    return Trainer(model, arguments(**more), examples(), folder, examples()[:4], **how)


def log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("elapsed", "tokens_per_second")} for line in lines]


class Killed(BaseException):
    pass


def run_until(trainer, step):
    """Trains until just before an optimiser step, then leaves as a kill would: without saving."""
    real, count = trainer.step_function, iter(range(STEPS))

    def step_function(*args):
        if next(count) == step:
            raise Killed
        return real(*args)

    trainer.step_function = step_function
    with pytest.raises(Killed):
        trainer.train()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_killed_at_any_step_and_resumed_writes_the_same_log(tiny_model, tmp_path, lora):
    whole = trainer(tmp_path / "whole", tiny_model, lora)
    whole.train()
    expected = log(tmp_path / "whole")
    assert len({e["loss"] for e in expected if "loss" in e}) == STEPS
    for step in range(1, STEPS):
        folder = tmp_path / f"killed-{step}"
        run_until(trainer(folder, tiny_model, lora), step)
        again = trainer(folder, tiny_model, lora)
        again.train(resume="auto")
        assert log(folder) == expected, step
        for a, b in zip(again.model.get_parameters(), whole.model.get_parameters()):
            assert np.array_equal(a.asnumpy(), b.asnumpy()), (step, a.name)


def test_auto_and_overwrite_go_on_only_with_an_unfinished_run_of_the_same_options(tiny_model, tmp_path, capsys):
    run_until(trainer(tmp_path, tiny_model), 5)
    trainer(tmp_path, tiny_model).train(resume="auto", overwrite=True)
    assert "going on from" in capsys.readouterr().err
    expected = log(tmp_path)
    trainer(tmp_path, tiny_model).train(resume="auto", overwrite=True)
    assert "holds a run that is at its end: starting from the first step" in capsys.readouterr().err
    assert log(tmp_path) == expected
    trainer(tmp_path, tiny_model, max_steps=3, save_steps=1).train(overwrite=True)
    (tmp_path / "log.jsonl").write_text("")  # as if it had been broken off
    trainer(tmp_path, tiny_model, max_steps=3, seed=6).train(resume="auto", overwrite=True)
    assert "was written with seed = 5, now it is 6: starting from the first step" in capsys.readouterr().err
    assert len({e["step"] for e in log(tmp_path)}) == 3


def test_the_newest_and_the_best_checkpoints_are_kept(tiny_model, tmp_path):
    run = trainer(tmp_path, tiny_model, save_steps=1, save_total_limit=2, eval_steps=1)
    state = run.train()
    losses = {e["step"]: e["eval_loss"] for e in log(tmp_path) if "eval_loss" in e}
    assert state.best_step == min(losses, key=losses.get)
    kept = {int(p.name.split("-")[1]) for p in checkpoints.find(tmp_path)}
    assert kept == {STEPS - 2, STEPS - 1} | ({state.best_step} - {STEPS})  # the last step is the result itself


def test_the_best_model_is_the_result_where_asked_for(tiny_model, tmp_path):
    run = trainer(tmp_path, tiny_model, eval_steps=1, learning_rate=0.1, load_best_model_at_end=True)
    rng = np.random.default_rng(9)  # random tokens: learning the other data makes them ever less likely
    run.eval_data = [{"input_ids": (row := rng.integers(4, 250, 20).tolist()), "labels": row} for _ in range(4)]
    state = run.train()
    assert state.best_step < STEPS
    assert run.evaluate()["loss"] == pytest.approx(state.best_loss, rel=1e-6)


def test_other_data_or_options_are_refused(tiny_model, tmp_path):
    run_until(trainer(tmp_path, tiny_model), 4)
    with pytest.raises(UserError, match=r"learning_rate = 0.01, now it is 0.02"):
        trainer(tmp_path, tiny_model, learning_rate=2e-2).train(resume="auto")
    other = trainer(tmp_path, tiny_model)
    other.train_data[0]["labels"][1] = 7
    other.state.fingerprint = other._fingerprint()
    with pytest.raises(UserError, match=r"data = 10 examples"):
        other.train(resume="auto")


def command(tiny_model, folder, *more):
    data = folder.parent / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {i} ", "completion": f"word {i}"}) + "\n" for i in range(40)))
    return [
        sys.executable,
        "-m",
        "msllm",
        "finetune",
        "--model",
        str(tiny_model),
        "--data",
        str(data),
        "--output",
        str(folder),
        "--per_device_train_batch_size",
        "2",
        "--num_train_epochs",
        "4",
        "--save_steps",
        "7",
        "--learning_rate",
        "1e-2",
        *more,
    ]


def wait_for_lines(folder, count):
    path = folder / "log.jsonl"
    for _ in range(6000):
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not reach {count} lines")


def test_sigkill_and_ctrl_c_lose_nothing(tiny_model, tmp_path):
    subprocess.run(command(tiny_model, tmp_path / "whole"), check=True, capture_output=True)
    folder = tmp_path / "broken"
    process = subprocess.Popen(command(tiny_model, folder), stderr=subprocess.PIPE)
    wait_for_lines(folder, 17)
    process.kill()
    process.communicate()
    process = subprocess.Popen(command(tiny_model, folder, "--resume", "auto"), stderr=subprocess.PIPE, text=True)
    wait_for_lines(folder, 33)
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    last = err.strip().splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in err
    assert last.startswith("error: stopped by Ctrl-C after step ") and "--resume auto" in last
    subprocess.run(command(tiny_model, folder, "--resume", "auto"), check=True, capture_output=True)
    assert log(folder) == log(tmp_path / "whole")
    assert len(log(folder)) == 80


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tiny_model, tmp_path):
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same way."""
    run = trainer(tmp_path, tiny_model)
    run_until(run, 3)
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint-2").iterdir()}
    again = trainer(tmp_path, tiny_model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*File too large"):
            again.train(resume="auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint-2").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.skipif(os.name == "nt", reason="permissions differ on Windows")
def test_a_folder_that_cannot_be_written_is_named(tiny_model, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    model = msllm.from_pretrained(tiny_model)
    root = os.geteuid() == 0
    if root:
        tmp_path.chmod(0o755)
        os.seteuid(65534)  # root writes anywhere
    try:
        with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
            model.save_pretrained(locked / "out")
    finally:
        if root:
            os.seteuid(0)
    assert list(locked.iterdir()) == []
