"""The entry for OpenI, with a made-up c2net and msrun, and in a plain container."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY = REPOSITORY / "ascend" / "openi" / "openi_entry.py"
LAUNCHER = REPOSITORY / "ascend" / "launch_node.sh"

with socket.create_server(("127.0.0.1", 0)) as server:
    PORT = str(server.getsockname()[1])

# What c2net 0.2.0 offers, and how it finds its folders.
C2NET = """
import os, sys
class Context:
    dataset_path = os.environ["LOCAL_DATASET_PATH"]
    pretrain_model_path = os.environ["LOCAL_PRETRAIN_MODEL_PATH"]
    output_path = os.environ["LOCAL_OUTPUT_PATH"]
    code_path = "code"
def prepare():
    if os.environ["DATA_DOWNLOAD_METHOD"] != "MOUNT":
        raise ValueError("Unknown data download method")
    print("prepared", flush=True)
    return Context()
def upload_output():
    if os.environ.get("UPLOAD") == "fails":
        raise OSError("no route")
    print("uploaded", sorted(os.listdir(os.environ["LOCAL_OUTPUT_PATH"])), flush=True)
"""


PROGRAMS = {
    "msrun": 'printf "%s\\n" "$@" >"$ARGS"; eval "${FAKE_MSRUN:-}"',
    "python": f'exec {sys.executable} -S "$@"',  # for the launcher's question whether a port is free
}


class Task:
    def __init__(self, folder):
        self.folder = folder
        for name in ("bin", "site/c2net", "in/data", "in/model"):
            (folder / name).mkdir(parents=True)
        (folder / "in/data/tokens").write_text("x")
        (folder / "in/model/config.json").write_text("{}")
        (folder / "site/c2net/__init__.py").touch()
        (folder / "site/c2net/context.py").write_text(C2NET)
        for name, body in PROGRAMS.items():
            (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / "bin" / name).chmod(0o755)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("ASCEND_", "MS_", "MSLLM_"))}
        self.env |= {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(folder / "bin/python"),
            "PYTHONPATH": str(folder / "site"),
            "ARGS": str(folder / "args"),
            "DATA_DOWNLOAD_METHOD": "MOUNT",
            "LOCAL_DATASET_PATH": str(folder / "in/data"),
            "LOCAL_PRETRAIN_MODEL_PATH": str(folder / "in/model"),
            "LOCAL_OUTPUT_PATH": str(folder / "out"),
        }

    def start(self, *arguments, **more):
        return subprocess.Popen(
            [sys.executable, "-S", str(ENTRY), *arguments],
            env=self.env | more,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **more):
        process = self.start(*arguments, **more)
        out, error = process.communicate(timeout=30)
        return process.returncode, out.splitlines(), error

    def msrun(self):
        return (self.folder / "args").read_text().splitlines()


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path)


# The platform's own parameters come among the user's.
PARAMETERS = (
    "--multi_data_url=[{}]",
    "--command=finetune",
    "--model={pretrain_model}/llama",
    "--grampus_code_file_name",
    "code.zip",
    "--data={dataset}/tokens",
    "--output={output}/run",
    "--cards=2",
    f"--port={PORT}",
    "--train_url=/cache",
)


def test_a_task_fetches_trains_and_sends_back(task):
    code, out, error = task.run(*PARAMETERS)
    assert (code, error) == (0, "")
    inputs, output = task.folder / "in", task.folder / "out"
    trained = f"-- finetune --model={inputs}/model/llama --data={inputs}/data/tokens --output={output}/run"
    assert out == [
        "c2net, DATA_DOWNLOAD_METHOD=MOUNT: a task of OpenI",
        "prepared",
        f"+ bash {LAUNCHER} --cards 2 --port {PORT} --log-dir {output}/logs {trained}",
        "training ended with exit code 0",
        "uploaded ['logs']",
    ]
    arguments = task.msrun()
    assert arguments[:2] == ["--worker_num=2", "--local_worker_num=2"]
    assert arguments[arguments.index("-m") :] == ["-m", "msllm", *shlex.split(trained)[1:]]


def test_a_failed_training_sends_back_too(task):
    code, out, error = task.run(*PARAMETERS, FAKE_MSRUN='echo half >"$LOCAL_OUTPUT_PATH/half"; exit 1')
    assert code == 1 and "error: msrun failed: exit code 1" in error
    assert out[-2:] == ["training ended with exit code 1", "uploaded ['half', 'logs']"]


def test_a_stopped_task_sends_back_too(task):
    waits = (
        'trap "echo saved >\\"$LOCAL_OUTPUT_PATH/saved\\"; exit 2" TERM; touch "$ARGS.up"; while :; do sleep 0.1; done'
    )
    process = task.start(*PARAMETERS, FAKE_MSRUN=waits)
    end = time.monotonic() + 10
    while not (task.folder / "args.up").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 143
    assert out.splitlines()[-2:] == ["training ended with exit code 143", "uploaded ['logs', 'saved']"]


def test_an_upload_that_fails_is_an_error(task):
    code, out, error = task.run(*PARAMETERS, UPLOAD="fails")
    assert code == 2 and out[-1] == "training ended with exit code 0"
    assert error == "error: c2net could not send the output back: OSError: no route\n"


def test_the_dry_run_shows_all_and_does_nothing(task):
    code, out, error = task.run(*PARAMETERS, "--install=true", "--dry-run")
    assert (code, error) == (0, "")
    inputs, output = task.folder / "in", task.folder / "out"
    assert out == [
        "c2net, DATA_DOWNLOAD_METHOD=MOUNT: a task of OpenI",
        "c2net.context.prepare()",
        f"dataset: {inputs}/data",
        f"pretrain_model: {inputs}/model",
        f"output: {output}",
        f"{sys.executable} -m pip install -r {REPOSITORY}/requirements.txt",
        f"bash {LAUNCHER} --cards 2 --port {PORT} --log-dir {output}/logs -- finetune "
        f"--model={inputs}/model/llama --data={inputs}/data/tokens --output={output}/run",
        f'export PATH={task.folder}/bin:"$PATH"',
        f"export PYTHONPATH={REPOSITORY}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"msrun --worker_num=2 --local_worker_num=2 --master_port={PORT} --cluster_time_out=600 "
        f"--log_dir={output}/logs --join=True --tail_worker_log=0 python -m msllm finetune "
        f"--model={inputs}/model/llama --data={inputs}/data/tokens --output={output}/run",
        "c2net.context.upload_output()",
    ]
    assert not output.exists() and not (task.folder / "args").exists()


def test_a_plain_container_uses_plain_folders(task):
    (task.folder / "mine").mkdir()
    (task.folder / "mine/tokens").touch()
    line = (
        "pretrain",
        "--cards",
        "1",
        "--port",
        PORT,
        "--dataset_path=mine",
        "--data={dataset}/tokens",
        "--output={output}/run",
    )
    for changed, message in (
        ({"PYTHONPATH": ""}, "c2net is not installed: plain folders"),
        ({"DATA_DOWNLOAD_METHOD": None}, "c2net is installed, but DATA_DOWNLOAD_METHOD is not set"),
    ):
        env = task.env.copy()
        for name, value in changed.items():
            task.env.pop(name)
            task.env |= {name: value} if value is not None else {}
        code, out, error = task.run(*line)
        assert (code, error) == (0, "") and out[0].startswith(message) and "uploaded" not in out[-1]
        folder = task.folder
        assert task.msrun()[-3:] == ["pretrain", f"--data={folder}/mine/tokens", f"--output={folder}/output/run"]
        task.env = env


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (("--data=x",), {}, "no command; give --command=pretrain"),
        (("pretrain", "--data={datset}/x", "--output={output}"), {}, "{datset} in '--data={datset}/x' is no folder"),
        (("pretrain", "--output={output}", "--install=yes"), {}, "--install is 'yes', expected true or false"),
        (PARAMETERS, {"LOCAL_DATASET_PATH": "nothing"}, "which is empty or missing"),
        (PARAMETERS, {"DATA_DOWNLOAD_METHOD": "X"}, "c2net could not prepare the task: ValueError: Unknown data"),
    ],
)
def test_refusals_are_one_line(task, arguments, env, message):
    code, _, error = task.run(*arguments, **env)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (task.folder / "args").exists()


def test_an_output_that_would_be_lost_is_warned_about(task):
    code, _, error = task.run("pretrain", "--cards=1", f"--port={PORT}", "--output=elsewhere")
    assert code == 0 and error == "warning: no argument names {output}, the only folder that is sent back\n"
