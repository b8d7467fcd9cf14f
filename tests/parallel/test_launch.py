"""Starting and watching workers: scripts that sleep and exit stand for most of them, a real run for the rest."""

import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import psutil
import pytest

from msllm.cli import main
from msllm.commands import finetune, pretrain
from msllm.data.token_file import write_tokens
from msllm.errors import UserError
from msllm.files import read_json_lines
from msllm.parallel import ParallelConfig, launch, run_job
from msllm.tokenization import train_tokenizer
from msllm.training import TrainingArguments

HEAD = """
import os, signal, subprocess, sys, time
rank = int(os.environ.get("RANK_ID", 0))
def say(text):
    print(text, file=sys.stderr, flush=True)
def join():
    say(f"worker {rank} of {os.environ.get('MS_WORKER_NUM', 1)} joined")
def save_when_stopped():
    def end(*_):
        say("error: stopped by SIGTERM after step 3 of 9; saved out/checkpoint-3; go on with --resume auto")
        os._exit(2)
    signal.signal(signal.SIGTERM, end)
if os.environ.get("MS_ROLE") == "MS_SCHED":
    for known in KNOWN:
        say(f"[WARNING] DISTRIBUTED(1,7f,python): The new node: {known}(role: MS_WORKER), rank id: {known}, ip: "
            "127.0.0.1 is registered successfully. Currently registered node number: 1")
    SCHEDULER
    time.sleep(600)
"""


def processes(word):
    """Those of this machine whose command line holds a word."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(word in part for part in process.cmdline()):
                found.append(process)
    return found


@pytest.fixture
def script(tmp_path):
    """Writes a worker; none of its processes may be left after the test."""
    path = tmp_path / "worker.py"

    def write(body, known=(), scheduler=""):
        path.write_text(HEAD.replace("KNOWN", repr(tuple(known))).replace("SCHEDULER", scheduler) + body)
        return [sys.executable, "-S", str(path)]

    yield write
    left = processes(str(path))
    for process in left:
        process.kill()
    assert not left


def failure(command, workers, logs, **options):
    """Returns the error of a job and the seconds it took."""
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        run_job(command, workers, logs, **options)
    return str(error.value), time.monotonic() - start


KILLED = """
join()
if rank == 1:
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)", __file__])
    say("step 3/10  loss 1.5")
    say("[WARNING] DISTRIBUTED(1,7f,python): noise")
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def test_a_killed_worker_ends_the_job_with_its_rank_and_last_line(script, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE", 1)
    text, seconds = failure(script(KILLED), 3, tmp_path / "logs")
    assert text == (
        "one of 3 workers failed: worker_1: killed by SIGKILL (by hand, or by the system for want of memory), the last "
        f"line of its log: step 3/10 loss 1.5; see the logs in {tmp_path / 'logs'}; start again with --resume auto"
    )
    assert seconds < 30
    names = ["scheduler.log", "worker_0.log", "worker_1.log", "worker_2.log"]
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == names


PARTNER_FIRST = """
join()
if rank == 0:
    say("error: collective all-gather of (4,) failed on worker 0; start again with --resume auto")
    sys.exit(2)
time.sleep(1)
say("error: loss nan at step 7: lower learning_rate")
sys.exit(2)
"""

EXCEPTION = """
join()
if rank == 1:
    raise MemoryError("no room for 3 GB")
time.sleep(0.5)
say("error: worker 0 of 2: all-reduce of (3,) failed: broken; then start again with --resume auto")
sys.exit(2)
"""

ALL_COLLECTIVE = 'time.sleep(rank); say(f"error: collective send of (4,) failed on worker {rank}"); sys.exit(2)'
SAME_MISTAKE = 'time.sleep(1 - rank); say("error: out is not empty; choose another"); sys.exit(2)'


@pytest.mark.parametrize(
    ("body", "expected", "resume"),
    [
        (PARTNER_FIRST, "worker_1: exit code 2, loss nan at step 7: lower learning_rate; see", False),
        (EXCEPTION, "worker_1: exit code 1, the last line of its log: MemoryError: no room for 3 GB; see", True),
        (ALL_COLLECTIVE, "worker_0: exit code 2, collective send of (4,) failed on worker 0; see", True),
        (SAME_MISTAKE, "worker_0: exit code 2, out is not empty; choose another; see", False),
    ],
)
def test_the_cause_is_the_worker_that_failed_by_itself(script, tmp_path, body, expected, resume):
    text, _ = failure(script(body), 2, tmp_path / "logs")
    assert text.startswith(f"one of 2 workers failed: {expected}")
    assert text.endswith("; start again with --resume auto") == resume


def test_one_worker_and_the_scheduler_fail_by_name(script, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE", 1)
    text, _ = failure(script("say('error: wrong'); sys.exit(2)"), 1, tmp_path / "logs")
    assert text == f"one of 1 workers failed: worker_0: exit code 2, wrong; see the logs in {tmp_path / 'logs'}"
    text, _ = failure(script("time.sleep(600)", scheduler="assert not os"), 2, tmp_path / "logs")
    assert text.startswith("the scheduler failed: scheduler: exit code 1, the last line of its log: AssertionError;")


def test_a_worker_that_does_not_join_is_named(script, tmp_path):
    # All but one have reached the scheduler; nobody has joined, since joining waits for all.
    text, seconds = failure(script("say('reading'); time.sleep(600)", [0, 2]), 3, tmp_path / "logs", join_timeout=2)
    assert text.startswith("worker_1 of 3 did not join within 2 s, the last line of its log: reading; see the logs in")
    assert text.endswith("start again with --resume auto, with fewer workers where the machine is busy")
    assert 2 < seconds < 20
    text, _ = failure(script("rank and join()\ntime.sleep(600)", [0, 1]), 2, tmp_path / "logs", join_timeout=2)
    assert text.startswith("worker_0 of 2 did not join within 2 s, its log is empty; see")


def test_workers_that_have_joined_outlive_the_join_limit(script, tmp_path):
    run_job(script("join(); time.sleep(2)"), 2, tmp_path / "logs", join_timeout=1.5)
    assert (tmp_path / "logs" / "worker_1.log").read_text() == "worker 1 of 2 joined\n"


def test_the_time_limit_lets_workers_save_and_ends_those_that_do_not(script, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_PATIENCE", 2)
    body = "save_when_stopped() if rank else signal.signal(signal.SIGTERM, signal.SIG_IGN)\njoin()\ntime.sleep(600)"
    text, seconds = failure(script(body), 2, tmp_path / "logs", timeout=1.5)
    assert text == (
        "2 workers were not done after 1.5 s and were stopped: stopped by SIGTERM after step 3 of 9; saved "
        f"out/checkpoint-3; go on with --resume auto; see the logs in {tmp_path / 'logs'}"
    )
    assert 3.5 < seconds < 20


LIVE = """
join()
save_when_stopped()
say("[WARNING] ME(77:140,MainProcess): noise")
for step in range(1, 3):
    say(f"step {step}/10  loss {1 / step:.4f}  5 tokens/s  1 s left")
    time.sleep(0.1)
time.sleep(600)
"""


def launcher(command, tmp_path, stderr, run_log=None):
    """Runs a job in a process of its own, which ends as the command line does."""
    code = (
        "import sys\nfrom msllm import cli\nfrom msllm.parallel import run_job\n"
        f"cli._run = lambda argv: run_job({command!r}, 2, {str(tmp_path / 'logs')!r}, run_log={run_log!r})\n"
        "sys.exit(cli.main([]))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=stderr, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_lines_of_the_first_worker_come_live_and_a_signal_lets_it_save(script, tmp_path, number):
    process = launcher(script(LIVE), tmp_path, subprocess.PIPE)
    seen = []
    while not seen or not seen[-1].startswith("step 2/10"):
        seen.append(process.stderr.readline())
        assert seen[-1], "".join(seen)
    assert seen == [
        "worker 0 of 2 joined\n",
        "step 1/10  loss 1.0000  5 tokens/s  1 s left\n",
        "step 2/10  loss 0.5000  5 tokens/s  1 s left\n",
    ]
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    said = "stopped by SIGTERM after step 3 of 9; saved out/checkpoint-3; go on with --resume auto"
    assert (process.returncode, rest) == (2, f"error: interrupted: {said}\n")


def test_a_signal_before_anything_can_be_saved_ends_the_job_at_once(script, tmp_path):
    body = "say('reading')\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
    process = launcher(script(body), tmp_path, subprocess.PIPE)
    assert process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert process.communicate(timeout=60)[1].startswith("error: interrupted by Ctrl-C;")
    assert process.returncode == 2 and time.monotonic() - start < 15


BAR = """
join()
if rank == 0:
    import json
    path = os.environ["RUN_LOG"]
    os.replace(path, path + ".old")  # that of an earlier run, which is not to be shown
    for step in range(1, 6):
        with open(path, "a") as file:
            file.write(json.dumps({"step": step, "loss": 7.0 - step, "tokens_per_second": 1234.5}) + "\\n")
        if step == 2:
            say("step 2/5  loss 5.0000  1234 tokens/s  1 s left")
        time.sleep(0.5)
    say("saved out")
"""


def test_a_terminal_shows_a_bar(script, tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 4, "loss": 99.0, "tokens_per_second": 1.0}\n')
    monkeypatch.setenv("RUN_LOG", str(log))
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))
    process = launcher(script(BAR), tmp_path, end, str(log))
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's way to say that its last user has gone
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.wait(30) == 0
    text = shown.decode()
    assert "5/5 [" in text and "loss 2.0000, 1,234 tokens/s" in text and "saved out" in text
    assert "loss 99" not in text and "step 2/5" not in text


def test_a_port_in_use_is_refused_before_anything_starts(script, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        text, _ = failure(script("join()"), 2, tmp_path / "logs", port=port)
    assert text == f"port {port} cannot be used: Address already in use; give another, or none to take a free one"
    assert not (tmp_path / "logs").exists()
    with pytest.raises(UserError, match="port 70000 cannot be used: expected 1024 to 65535"):
        run_job(script("join()"), 2, tmp_path / "logs", port=70000)
    with pytest.raises(UserError, match="workers is 0, expected 1 or more"):
        run_job(script("join()"), 0, tmp_path / "logs")
    run_job(script(f"join(); assert os.environ['MS_SCHED_PORT'] == '{port}'"), 2, tmp_path / "logs", port=port)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder with train.bin of 2,000 ids and a tokenizer of 260."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = train_tokenizer(["one two three"], 260)
    tokenizer.save_pretrained(folder)
    ids = (np.cumsum(np.random.default_rng(0).integers(1, 3, 2000)) * 7) % len(tokenizer)
    write_tokens(folder / "train.bin", [ids], tokenizer, "words")
    return folder


STEPS = 60


def options(tokens, output, *more):
    sizes = ["--hidden_size", "16", "--layers", "2", "--heads", "2", "--max_positions", "16", "--dropout", "0"]
    run = ["--max_steps", str(STEPS), "--save_steps", "5", "--learning_rate", "1e-2", "--data", str(tokens)]
    return ["pretrain", "--output", str(output), *sizes, *run, *more]


@pytest.fixture
def started(monkeypatch):
    """The arguments of run_on_workers, which starts nothing."""
    calls = []
    monkeypatch.setattr(launch, "run_on_workers", lambda *given, **more: calls.append((given, more)))
    monkeypatch.delenv("MS_ROLE", raising=False)
    return calls


def test_a_command_starts_itself_with_its_own_line(tokens, tmp_path, started, capsys):
    out = tmp_path / "out"
    line = options(tokens, out, "--workers", "4", "--parallel.tensor", "2", "--time_limit", "90")
    assert main(line) == 0
    # The workers find their logs in the output, where nothing may be.
    assert started == [((4, [*line, "--overwrite"], out / "logs", 90.0), {"run_log": out / "log.jsonl"})]
    assert capsys.readouterr().err == f"starting 4 workers (dp2 tp2); their logs: {out / 'logs'}\n"
    (out / "logs").mkdir(parents=True)  # of a start that failed
    assert main(line) == 0 and len(started) == 2
    (out / "config.json").write_text("{}")
    assert main(line) == 2 and "out is not empty (it holds config.json, logs)" in capsys.readouterr().err
    (out / "config.json").unlink()
    assert main([*line, "--resume", "auto"]) == 0
    assert started[2][0][1] == [*line, "--resume", "auto"]
    assert launch.COMMAND_LINE.get() is None


def test_finetune_starts_itself_too(tmp_path, started):
    line = ["finetune", "--model", "m", "--data", "d", "--output", str(tmp_path / "out"), "--workers", "2"]
    assert main(line) == 0
    assert started[0][0] == (2, [*line, "--overwrite"], tmp_path / "out" / "logs", None)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--workers", "0"], "workers is 0, expected 1 or more"),
        (["--workers", "4", "--parallel.tensor", "3"], "4 workers cannot be divided by tensor x pipeline x sequence"),
        (
            ["--parallel.tensor", "2"],
            "tensor x pipeline x sequence = 2 x 1 x 1 = 2, and there is one worker; add --workers 2",
        ),
        (["--time_limit", "5"], "time_limit is 5 and workers 1; it ends several workers: leave it out"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_the_start(tokens, tmp_path, started, capsys, more, error):
    assert main(options(tokens, tmp_path / "out", *more)) == 2
    assert capsys.readouterr().err.startswith(f"error: {error}")
    assert not started and not (tmp_path / "out").exists()


def test_a_call_from_python_says_how_to_start_workers(tokens, tmp_path, started):
    with pytest.raises(UserError, match=r"workers is 2 in a call from Python.*main\(\['pretrain', ...\]\)"):
        pretrain.pretrain(str(tokens), TrainingArguments(), str(tmp_path / "out"), workers=2)
    before = launch.COMMAND_LINE.set(["chapter", "5"])  # a command that calls another one
    try:
        with pytest.raises(UserError, match="workers is 2 in a call from Python"):
            finetune.finetune("m", "d", TrainingArguments(), finetune.LoraConfig(), str(tmp_path / "out"), workers=2)
    finally:
        launch.COMMAND_LINE.reset(before)


@pytest.mark.parametrize(
    "environment",
    [
        {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "4"},
        {"RANK_TABLE_FILE": "hccl_1s_4p.json", "RANK_ID": "3", "RANK_SIZE": "4", "DEVICE_ID": "3"},
    ],
)
def test_under_msrun_or_a_rank_table_the_number_of_workers_is_only_checked(tmp_path, started, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = ("pretrain", str(tmp_path / "out"), None, False)
    for workers in (1, 4):
        assert launch.start_command(*run, workers, 60.0, ParallelConfig(tensor=2), print) is False
    with pytest.raises(UserError, match="workers is 2, and 4 were started; give the same number"):
        launch.start_command(*run, 2, None, ParallelConfig(), print)
    with pytest.raises(UserError, match="4 workers cannot be divided by"):
        launch.start_command(*run, 1, None, ParallelConfig(tensor=3), print)
    assert not started


def test_auto_parallel_starts_no_workers_of_this_machine(tmp_path, started):
    from msllm.parallel import join

    run = ("pretrain", str(tmp_path / "out"), None, False)
    with pytest.raises(UserError, match=r"workers is 2 and parallel.mode auto: these are CPU processes"):
        launch.start_command(*run, 2, None, ParallelConfig(mode="auto"), print)
    with pytest.raises(UserError, match=r"runs on Ascend cards, found CPU; use --parallel.mode explicit"):
        join(ParallelConfig(mode="auto"), tmp_path / "out", None)
    assert not started


def losses(output):
    return {e["step"]: e["loss"] for e in read_json_lines(output / "log.jsonl") if "loss" in e}


def test_a_run_whose_worker_is_killed_ends_soon_and_resumes_to_the_same_losses(tokens, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(options(tokens, whole, "--per_device_train_batch_size", "4")) == 0
    line = options(tokens, out, "--per_device_train_batch_size", "2", "--workers", "2", "--time_limit", "240")
    process = subprocess.Popen([sys.executable, "-m", "msllm", *line], stderr=subprocess.PIPE, text=True)
    try:
        while not (out / "checkpoint-5").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        victim = next(p for p in psutil.Process(process.pid).children() if p.environ().get("MS_NODE_ID") == "1")
        victim.kill()
        start = time.monotonic()
        shown = process.communicate(timeout=120)[1]
        assert time.monotonic() - start < 60 and process.returncode == 2
    finally:
        process.terminate()
    last = shown.splitlines()[-1]
    assert last.startswith("error: one of 2 workers failed: worker_1: killed by SIGKILL") and "--resume auto" in last
    assert "worker 0 of 2 joined" in shown and f"starting 2 workers (dp2); their logs: {out / 'logs'}" in shown
    assert not processes(str(out))
    assert 5 <= len(losses(out)) < STEPS
    assert main([*line, "--resume", "auto"]) == 0
    expected = losses(whole)
    assert sorted(losses(out)) == sorted(expected) == list(range(1, STEPS + 1))
    for step, loss in losses(out).items():
        assert loss == pytest.approx(expected[step], rel=1e-5), step
    assert "going on from" in (out / "logs" / "worker_0.log").read_text()
    assert not processes(str(out))
