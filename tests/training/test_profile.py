"""A profiled run computes what an unprofiled one does; its parts add up; advice follows from what was measured."""

import csv
import json
import time

import numpy as np
import pytest

import msllm
from msllm import kernels
from msllm.cli import main
from msllm.errors import UserError
from msllm.files import read_json, read_json_lines
from msllm.parallel import run_on_workers
from msllm.training import Trainer, TrainingArguments
from msllm.training.profile_advice import advise
from msllm.training.profile_operators import read_operators
from msllm.training.profile_recording import Message, Operator, Recording, Step
from msllm.training.profile_report import FILES, tell
from msllm.training.profile_split import PARTS, divide, split_steps, summarize, waits

MS = 1_000_000
SETTINGS = {
    "kernels": "cpu",
    "device": "CPU",
    "per_device_train_batch_size": 4,
    "train_batch_tokens": 0,
    "gradient_accumulation_steps": 1,
    "group_by_length": False,
    "jit": False,
    "eval_steps": 0,
    "save_steps": 500,
}


def recording(rank=0, spans=(), operators=(), messages=(), wall=100, places=128, settings=None, **more):
    """One step of ``wall`` ms; spans (name, start, end), operators (name, start, end), messages (operation, channel,
    start, end), in ms."""
    return Recording(
        rank=rank,
        data_rank=rank,
        settings={**SETTINGS, **(settings or {})},
        steps=[Step(4, 0, wall * MS, 128, places)],
        spans=[(name, start * MS, end * MS) for name, start, end in spans],
        operators=[Operator(name, "C++ kernel", start * MS, end * MS) for name, start, end in operators],
        messages=[Message(what, "tensor", channel, start * MS, end * MS) for what, channel, start, end in messages],
        **more,
    )


def parts_of(*recordings):
    return [worker["parts"] for worker in summarize(recordings)["workers"]]


def test_every_moment_belongs_to_the_first_part_that_covers_it():
    assert divide(0, 100, [(1, -10, 30), (0, 20, 25), (1, 22, 40), (0, 90, 200)], 3) == [15, 35, 50]
    rng = np.random.default_rng(0)
    intervals = [(int(p), int(a), int(a + d)) for p, a, d in zip(*rng.integers(0, [[4], [900], [300]], (3, 50)))]
    owner = np.full(1000, 4)
    for part, start, end in sorted(intervals, reverse=True):  # the lowest part writes last
        owner[start:end] = part
    assert divide(0, 1000, intervals, 5) == np.bincount(owner, minlength=5).tolist()


def test_parts_of_a_step():
    one = recording(
        spans=[("data", 0, 10), ("forward_backward", 10, 60), ("optimizer", 60, 80), ("other", 80, 95)],
        operators=[("linear", 12, 42), ("linear", 45, 50), ("AllReduce", 50, 60), ("linear", 82, 90)],
        messages=[("all-reduce", "(0, 1)", 50, 60)],
    )
    two = recording(1, messages=[("all-reduce", "(0, 1)", 56, 60)])
    mine, theirs = parts_of(one, two)
    expected = {"data": 10, "compute": 35, "communication": 4, "waiting": 6, "between_operators": 30, "other": 15}
    assert mine == {"wall": 100, **expected}
    assert theirs["waiting"] == 0 and theirs["communication"] == 4
    summary = summarize([one, two])
    assert summary["phases"] == {"data": 10, "forward_backward": 50, "optimizer": 20, "other": 15, "loop": 5}
    rows = [(row["name"], row["calls"], row["ms"], row["waiting_ms"]) for row in summary["operators"]]
    # The operator inside the message is in its time, that of the evaluation is left out.
    assert rows == [("linear", 2, 35, 0), ("all-reduce", 1, 10, 6)]


def test_who_waits_for_whom():
    everyone, way = "(0, 1, 2)", "0>1"
    messages = {
        0: [("all-reduce", everyone, 10, 20), ("send", way, 50, 51), ("delivery", way, 52, 80)],
        1: [("all-reduce", everyone, 16, 20), ("receive", way, 70, 80)],
        2: [("all-reduce", everyone, 4, 20)],
    }
    found = waits([recording(rank, messages=mine) for rank, mine in messages.items()])
    # The send itself is over before the receiver comes; what is left of it waits.
    assert found[0] == [(6 * MS, 1), (1 * MS, 1), (18 * MS, 1)]
    assert found[1] == [(0, 0), (0, 0)]
    assert found[2] == [(12 * MS, 1)]
    ahead = recording(1, messages=[("all-reduce", everyone, 1016, 1020)], host="b", met=1000 * MS)
    assert waits([recording(0, messages=messages[0][:1], host="a"), ahead]) == [[(6 * MS, 1)], [(0, 0)]]


def test_on_a_device_messages_are_what_compute_leaves():
    kernels = [Operator("MatMul", "MindSpore", 0, 40 * MS), Operator("hcom", "MindSpore", 30 * MS, 60 * MS, True)]
    one = recording(messages=[("all-reduce", "(0, 1)", 10, 11)], on_device=True)
    one.operators = kernels
    (step,) = split_steps(one, [(0, 0)])
    assert (step["compute"], step["communication"], step["between_operators"]) == (40, 20, 40)
    assert [row["name"] for row in summarize([one])["operators"]] == ["MatMul", "hcom"]


def test_files_of_mindspore_become_operators(tmp_path):
    with pytest.raises(UserError, match=r"left neither cpu_op_execute_timestamp_\*.txt nor kernel_details.csv in"):
        read_operators(tmp_path)
    text = "Default/ReduceSum-op12;HostCpuOps;1700000000000000123,0.5,0 1700000000001000123,0.25,0 \n"
    text += "Mul;HostCpuOps;5,1,0 \n"
    (tmp_path / "cpu_op_execute_timestamp_1.txt").write_text(text)
    start = 1700000000000000123
    assert [(o.name, o.start - start, o.end - o.start) for o in read_operators(tmp_path)][:2] == [
        ("ReduceSum", 0, 500_000),
        ("ReduceSum", MS, 250_000),
    ]
    device = tmp_path / "ASCEND_PROFILER_OUTPUT"
    device.mkdir()
    (device / "kernel_details.csv").write_text(
        "Step ID,Name,Type,Accelerator Core,Start Time(us),Duration(us),Wait Time(us)\n"
        "0,Default/MatMul-op1,MatMulV2,AI_CORE,1700000000000000.125\t,12.5,0\n"
        "0,hcom_allReduce__1,hcom_allReduce_,HCCL,1700000000000020,3,0\n"
    )
    assert read_operators(tmp_path) == [
        Operator("MatMulV2", "MindSpore", 1700000000000000125, 1700000000000012625),
        Operator("hcom_allReduce_", "MindSpore", 1700000000000020000, 1700000000000023000, True),
    ]


def rules(*recordings):
    return {finding["rule"]: finding["text"] for finding in advise(summarize(recordings))}


BUSY = [("linear", 20, 100)]  # of 100 ms


@pytest.mark.parametrize(
    ("rule", "speaks", "silent", "words"),
    [
        (
            "data-bound",
            {"spans": [("data", 0, 16)]},
            {"spans": [("data", 0, 14)]},
            "take 16.0 of 100.0 ms a step (16%)",
        ),
        ("small batch", {"operators": [("linear", 36, 100)]}, {}, "raise --per_device_train_batch_size (now 4)"),
        (
            "small batch",
            {"operators": [("linear", 36, 100)], "settings": {"train_batch_tokens": 500}},
            {},
            "36.0 of 100.0 ms a step (36%) lie between operators (1 calls for 128 tokens), which cost as much for few "
            "tokens as for many; raise --train_batch_tokens (now 500)",
        ),
        ("compiling", {"operators": [("MatMul", 36, 100)], "settings": {"jit": True}}, {}, "leave out --jit"),
        (
            "stock kernels",
            {"settings": {"kernels": "stock"}},
            {"settings": {"kernels": "stock", "jit": True}},
            "100% of",
        ),
        (
            "optimizer-bound",
            {"spans": [("optimizer", 60, 91)]},
            {"spans": [("optimizer", 60, 89)]},
            "takes 31.0 of 100.0 ms a step (31%)",
        ),
        ("padding", {"places": 200}, {"places": 150}, "36% of the places in batches hold no token"),
        (
            "padding",
            {"places": 200, "settings": {"group_by_length": True}},
            {},
            "same; --packing of msllm finetune leaves",
        ),
        (
            "evaluation and checkpoints",
            {"spans": [("other", 0, 21)]},
            {"spans": [("other", 0, 19)]},
            "raise --eval_steps (now 0) or --save_steps (now 500)",
        ),
        ("compute-bound", {}, {"places": 200}, "operators run 80% of a step, linear most of all (80.0 of 100.0 ms)"),
    ],
)
def test_a_rule_speaks_above_its_share_and_names_what_was_measured(rule, speaks, silent, words):
    assert words in rules(recording(**{"operators": BUSY, **speaks}))[rule]
    if silent or rule != "compute-bound":
        assert rule not in rules(recording(**{"operators": BUSY, **silent}))


def both(mine, theirs, **more):
    return [recording(i, messages=m, operators=[("linear", 0, 60)], **more) for i, m in enumerate((mine, theirs))]


def test_rules_of_several_workers():
    meet = "(0, 1)"
    found = rules(*both([("all-reduce", meet, 60, 81)], [("all-reduce", meet, 60, 81)]))
    assert (
        "21.0 of 100.0 ms a step (21%) on worker 0, most of them in all-reduce of group tensor"
        in found["collective-bound"]
    )
    assert "(--parallel.tensor)" in found["collective-bound"] and "waiting" not in found
    slow = both([("all-reduce", meet, 60, 90)], [("all-reduce", meet, 86, 90)])
    found = rules(*slow)
    assert "26.0 of 100.0 ms a step (26%) on worker 0, most for worker 1, which is busy for 96.0 ms" in found["waiting"]
    assert "--group_by_length" in found["waiting"] and "collective-bound" not in found
    turns = rules(*both([("a", meet, 60, 80), ("a", meet, 82, 84)], [("a", meet, 78, 80), ("a", meet, 64, 84)]))
    assert "late by turns" in turns["waiting"]
    for one in slow:
        one.messages = [Message("all-reduce", "pipeline", *m) for m in ((meet, 60 * MS, 90 * MS),)]
    slow[1].messages = [Message("all-reduce", "pipeline", meet, 86 * MS, 90 * MS)]
    assert "--parallel.micro_batches" in rules(*slow)["waiting"]


def examples(slow=0.0):
    rng = np.random.default_rng(1)
    rows = [rng.integers(4, 250, n).tolist() for n in (4, 40, 5, 6, 4, 40, 5, 6)]

    class Examples(list):
        def __getitem__(self, i):
            time.sleep(slow)
            return super().__getitem__(i)

    return Examples({"input_ids": row, "labels": row} for row in rows)


def train(tiny_model, folder, data=None, resume=None, **more):
    values = {
        "max_steps": 7,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "profile_steps": 3,
        "save_steps": 3,
    }
    model = msllm.from_pretrained(tiny_model)
    for block in model.model.layers:
        block.self_attn.dropout = 0.2  # so that the random state matters
    Trainer(model, TrainingArguments(**{**values, **more}), data or examples(), folder, examples()[:2]).train(resume)
    return [entry["loss"] for entry in read_json_lines(folder / "log.jsonl") if "loss" in entry]


def test_a_profiled_run_has_the_losses_of_another_and_leaves_its_files(tiny_model, tmp_path, capsys):
    losses = train(tiny_model, tmp_path / "plain")
    out = tmp_path / "输出 a+b"  # MindSpore's profiler takes no such path
    assert train(tiny_model, out, profile=True, eval_steps=1, save_total_limit=9) == losses
    folder = out / "profile"
    assert {*FILES, "mindspore"} == {path.name for path in folder.iterdir()}
    summary = read_json(folder / "summary.json")
    assert summary["steps"] == [4, 5, 6]
    (worker,) = summary["workers"]
    for step in worker["steps"]:
        assert sum(step[part] for part in PARTS) == pytest.approx(step["wall"], rel=1e-9)
        assert step["compute"] > 0 and step["data"] > 0 and step["between_operators"] > 0
        assert step["other"] > 0.1 * step["wall"]  # an evaluation, and a checkpoint where it is the best
    assert sum(summary["phases"].values()) == pytest.approx(worker["parts"]["wall"])
    # Nothing runs beside something else: the table's times are those of the part.
    assert sum(row["ms"] for row in summary["operators"]) == pytest.approx(worker["parts"]["compute"], rel=0.02)
    names = {row["name"]: row["calls"] for row in summary["operators"]}
    if kernels.active() == "cpu":
        assert names["adamw"] == names["sum_squares"] == 1 and names["attention"] == names["attention_grad"] == 2
    assert names["Mul"] >= 1  # which MindSpore has noted
    with (folder / "operators.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in summary["operators"]]
    _check_trace(json.loads((folder / "trace_view.json").read_text())["traceEvents"])
    assert (folder / "step.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().err
    assert "profile of steps 4 to 6: " in printed and all(f"- {one['text']}" in printed for one in summary["advice"])
    assert "evaluation and checkpoints" in {one["rule"] for one in summary["advice"]}
    again = tmp_path / "again"  # after a kill at step 4 it goes on from 3, and finds its three warm-up steps again
    with pytest.raises(UserError, match=r"the run has 4 steps left; give at most --profile_steps 1$"):
        train(tiny_model, out, resume=str(out / "checkpoint-3"), profile=True)
    more = {"resume": str(out / "checkpoint-3"), "profile": True, "profile_steps": 1}
    assert train(tiny_model, again, **more) == losses[3:]
    assert read_json(again / "profile" / "summary.json")["steps"] == [7]


def _check_trace(events):
    complete = [event for event in events if event["ph"] == "X"]
    steps = [(e["ts"], e["ts"] + e["dur"]) for e in complete if e["tid"] == 0]
    assert len(steps) == 3 and steps[0][0] == 0
    assert {e["name"] for e in complete if e["tid"] == 1} == {"data", "forward_backward", "optimizer", "other"}
    for event in complete:  # one clock: what MindSpore has noted lies within the steps too
        assert any(start - 1 <= event["ts"] and event["ts"] + event["dur"] <= end + 1 for start, end in steps), event


def test_advice_of_real_runs(tiny_model, tmp_path):
    def found(name, **more):
        train(tiny_model, tmp_path / name, profile=True, **more)
        return {one["rule"]: one["text"] for one in read_json(tmp_path / name / "profile" / "summary.json")["advice"]}

    advice = found("slow-data", data=examples(0.05), save_steps=0)
    assert next(iter(advice)) == "data-bound" and "padding" in advice
    advice = found("grouped", group_by_length=True, save_steps=0, optim="lamb")
    assert {"small batch", "optimizer-bound"} <= set(advice) and "padding" not in advice
    before = kernels.active()
    kernels.use("stock")
    try:
        assert "stock kernels" in found("stock", max_steps=4, profile_steps=1)
    finally:
        kernels.use(before)


def test_a_run_that_breaks_off_leaves_no_profile_and_nothing_timed(tiny_model, tmp_path):
    class Broken(Exception):
        pass

    calls = []
    model = msllm.from_pretrained(tiny_model)
    args = TrainingArguments(max_steps=9, profile=True, profile_steps=3, per_device_train_batch_size=2)
    trainer = Trainer(model, args, examples(), tmp_path / "out")
    step = trainer.step_function

    def breaking(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise Broken
        return step(*arguments)

    trainer.step_function = breaking
    with pytest.raises(Broken):
        trainer.train()
    assert not (tmp_path / "out" / "profile" / "summary.json").exists()
    if kernels.active() == "cpu":
        from msllm.kernels import compiled, cpu

        assert cpu.cpp is compiled.cpp
    train(tiny_model, tmp_path / "next", profile=True)  # MindSpore's profiler starts again


def test_mistakes(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"^profile_steps is 0, expected 1 or more; change it$"):
        TrainingArguments(profile_steps=0)
    (tmp_path / "log.jsonl").write_text("")
    expected = r"^profile_steps is 5 and comes after 3 steps of warm-up, and the run has 7 steps left; give at most"
    with pytest.raises(UserError, match=expected):
        train(tiny_model, tmp_path / "new", profile=True, profile_steps=5)
    with pytest.raises(UserError, match=r"the run has 3 steps left; train longer, or leave out profile$"):
        train(tiny_model, tmp_path / "new", profile=True, max_steps=3)
    assert not (tmp_path / "new").exists()


def test_two_workers_compare_their_steps(tiny_model, tmp_path, capfd):
    records = [{"prompt": "say one", "completion": "two three four " * n} for n in (1, 2, 3, 4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    command = ["finetune", "--model", str(tiny_model), "--data", str(tmp_path / "data.jsonl"), "--max_steps", "6"]
    command += ["--per_device_train_batch_size", "2", "--profile", "--profile_steps", "3", "--save_steps", "0"]
    out = tmp_path / "two"
    run_on_workers(2, [*command, "--parallel.tensor", "2", "--output", str(out)], tmp_path / "logs", timeout=120)
    summary = read_json(out / "profile" / "summary.json")
    for rank, worker in enumerate(summary["workers"]):
        assert worker["parts"]["communication"] > 0 and worker["waits_for"][rank] == 0
        assert worker["parts"]["waiting"] == pytest.approx(sum(worker["waits_for"]), rel=1e-6)
        for step in worker["steps"]:
            assert sum(step[part] for part in PARTS) == pytest.approx(step["wall"], rel=1e-9)
    assert {row["source"] for row in summary["operators"]} >= {"group tensor", "group world"}
    assert "collective-bound" in {one["rule"] for one in summary["advice"]}
    events = json.loads((out / "profile" / "trace_view.json").read_text())["traceEvents"]
    assert {e["pid"] for e in events} == {0, 1} and "all-reduce" in {e["name"] for e in events if e["tid"] == 2}
    printed = capfd.readouterr().err
    assert printed.count("profile of steps 4 to 6") == 1
    assert main([*command, "--output", str(tmp_path / "one")]) == 0
    losses = [[e["loss"] for e in read_json_lines(p / "log.jsonl") if "loss" in e] for p in (out, tmp_path / "one")]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_table_is_plain_text_where_there_is_no_terminal(tmp_path, capsys):
    import sys

    summary = summarize([recording(operators=BUSY)])
    tell(tmp_path, {**summary, "advice": advise(summary)}, sys.stderr)
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and "80.0 (80%)" in printed and "linear" in printed
    assert "waits" not in printed
