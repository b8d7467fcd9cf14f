"""Starting a command on several workers of this machine, and watching them: one that fails ends them all.

The processes and their environment are those of MindSpore's msrun: a scheduler, at which the workers meet, and the
workers. They are children of this process rather than of an msrun in between, which would hide who ended first and
how, and give the others no time to say what they know.
"""

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path

from msllm.errors import UserError
from msllm.parallel.config import ParallelConfig
from msllm.parallel.screen import Screen, is_noise

COMMAND_LINE: ContextVar[list[str] | None] = ContextVar("COMMAND_LINE", default=None)  # of msllm, while it runs one
ALONE = ParallelConfig()
LOGS = "logs"  # in the output folder of a command that started itself

_SCHEDULER = -1  # beside the ranks
_PATIENCE = 60  # seconds for a checkpoint
_GRACE = 10  # seconds in which the others may say what they know, once a worker has failed
_POLL = 0.2
_LAST_BYTES = 2**16  # of a log, in which its last words are looked for


def started_workers() -> int | None:
    """Returns how many processes msrun, or a start by rank table, made of this command; None where it is alone."""
    if "MS_ROLE" in os.environ:
        return int(os.environ["MS_WORKER_NUM"])
    if "RANK_TABLE_FILE" in os.environ and "RANK_ID" in os.environ:
        return int(os.environ["RANK_SIZE"])
    return None


def start_command(
    command: str,
    output: str,
    resume: str | None,
    overwrite: bool,
    workers: int,
    time_limit: float | None,
    parallel: ParallelConfig,
    fits: Callable[[ParallelConfig], None],
) -> bool:
    """Checks where a run goes and how it is spread; runs it on ``workers`` where the user asks for several.

    These run the command line of this process, and come here too: in them, and under a user's own msrun, this only
    checks.

    Args:
        command: name of the calling command.
        output, resume, overwrite: see Trainer.train; the logs go to output/logs.
        workers, time_limit: options of the command.
        parallel: how the run is spread over the workers.
        fits: raises UserError where the model cannot be spread so.

    Returns:
        Whether the workers have done the command; else it is this process' turn.

    Raises:
        UserError: numbers that do not fit; an output that is in use; a call from Python; what run_on_workers raises.
    """
    from msllm.training import checkpoint

    if workers < 1:
        raise UserError(f"workers is {workers}, expected 1 or more; leave it out for 1")
    if time_limit is not None and time_limit <= 0:
        raise UserError(f"time_limit is {time_limit:g}, expected seconds above 0; leave it out for no limit")
    started = started_workers()
    if started is not None and workers not in (1, started):
        raise UserError(f"workers is {workers}, and {started} were started; give the same number, or leave it out")
    if workers > 1 and started is None and parallel.mode == "auto":
        raise UserError(
            f"workers is {workers} and parallel.mode auto: these are CPU processes, and MindSpore's auto-parallel runs "
            f"on Ascend cards; start it there with msrun, or use --parallel.mode explicit"
        )
    spread = parallel.for_workers(started or workers)
    fits(spread)
    if started is not None or workers == 1:
        if started is None and time_limit is not None:
            raise UserError(f"time_limit is {time_limit:g} and workers 1; it ends several workers: leave it out")
        checkpoint.source(output, resume, overwrite)
        return False
    arguments = COMMAND_LINE.get()
    if not arguments or arguments[0] != command:
        raise UserError(
            f"workers is {workers} in a call from Python, and workers are started with a command line; use "
            f"msllm.cli.main(['{command}', ...]) or msllm.parallel.run_on_workers({workers}, ['{command}', ...], LOGS)"
        )
    folder = Path(output)
    failed_start = folder.is_dir() and [p.name for p in folder.iterdir()] == [LOGS]
    checkpoint.source(output, resume, overwrite or failed_start)
    print(f"starting {workers} workers ({spread}); their logs: {folder / LOGS}", file=sys.stderr)
    # To the workers, the folder with their logs is one in use; that it may be used was checked here.
    arguments = [*arguments, *(["--overwrite"] if resume is None else [])]
    run_on_workers(workers, arguments, folder / LOGS, time_limit, run_log=folder / "log.jsonl")
    return True


def run_on_workers(
    workers: int,
    arguments: Sequence[str],
    logs: str | Path,
    timeout: float | None = None,
    port: int | None = None,
    join_timeout: float = 120,
    run_log: str | Path | None = None,
) -> None:
    """Runs ``msllm ARGUMENTS`` on ``workers`` processes and waits for their end; see run_job."""
    run_job([sys.executable, "-m", "msllm", *arguments], workers, logs, timeout, port, join_timeout, run_log)


def run_job(
    command: Sequence[str],
    workers: int,
    logs: str | Path,
    timeout: float | None = None,
    port: int | None = None,
    join_timeout: float = 120,
    run_log: str | Path | None = None,
) -> None:
    """Runs a command on ``workers`` processes of this machine and waits for their end; one goes without a scheduler.

    What the first worker prints appears here too. Ctrl-C and SIGTERM reach the workers as SIGTERM, so that they save a
    checkpoint; a second one ends them at once. When this returns or raises, none of them is left.

    Args:
        command: program and arguments.
        workers: their number.
        logs: folder of worker_<rank>.log and scheduler.log; those of an earlier job are removed.
        timeout: seconds after which all are stopped as by Ctrl-C; None waits as long as it takes.
        port: TCP port at which the workers meet; None takes a free one.
        join_timeout: seconds in which all workers must have met, msrun's cluster_time_out.
        run_log: log.jsonl of the run, from which a terminal shows a bar.

    Raises:
        UserError: no workers; the port is in use; a worker failed, or did not join; the time was over; the workers were
            interrupted, and said where they stopped.
        KeyboardInterrupt: they were interrupted before there was anything to save.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}, expected 1 or more")
    port = _open_port(port or 0)
    job = _Job(command, workers, _empty(Path(logs).resolve()))
    with _Interrupts() as interrupts, Screen(job.log(0), run_log) as screen, job:
        job.start(port, join_timeout)
        _watch(job, interrupts, screen, timeout, join_timeout)


class _Job:
    """The processes of one command; all are ended when the block is left.

    Attributes:
        ended: exit codes of those that have ended, by rank, the first one first.
    """

    def __init__(self, command: Sequence[str], workers: int, logs: Path):
        self.command, self.workers, self.logs = list(command), workers, logs
        self.ended: dict[int, int] = {}
        self._processes: dict[int, subprocess.Popen] = {}

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *error) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):  # with what a worker has started itself
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
        for process in self._processes.values():
            process.wait()

    def start(self, port: int, join_timeout: float) -> None:
        """Starts the scheduler, where there are several workers, and the workers."""
        if self.workers == 1:
            self._start(0, {})
            return
        shared = {
            "MS_WORKER_NUM": self.workers,
            "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": port,
            "MS_TOPO_TIMEOUT": math.ceil(join_timeout) + 30,  # MindSpore's own error would not name who is late
            "RANK_SIZE": self.workers,
        }
        self._start(_SCHEDULER, {**shared, "MS_ROLE": "MS_SCHED", "RANK_ID": 0})
        for rank in range(self.workers):
            own = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank, "RANK_ID": rank, "DEVICE_ID": rank}
            self._start(rank, {**shared, **own})

    def _threads(self) -> dict[str, str]:
        """The cores of this machine shared among the workers, whose kernels would else wait for each other."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {"MSLLM_THREADS": str(max(1, cores // self.workers))}

    def _start(self, rank: int, environment: dict) -> None:
        with self.log(rank).open("wb") as out:
            # A session of its own: a Ctrl-C at the terminal is for this process, which passes it on.
            self._processes[rank] = subprocess.Popen(
                self.command,
                env={
                    **self._threads(),
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **{k: str(v) for k, v in environment.items()},
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def poll(self) -> bool:
        """Notes who has ended; returns whether a worker is still running."""
        for rank, process in self._processes.items():
            if rank not in self.ended and process.poll() is not None:
                self.ended[rank] = process.returncode
        return any(rank not in self.ended for rank in range(self.workers))

    def failed(self) -> list[int]:
        """Returns the ranks that ended abnormally, the first one first."""
        return [rank for rank, code in self.ended.items() if code]

    def terminate(self) -> None:
        """Asks the workers to end; the scheduler stays as long as they need it."""
        for rank in range(self.workers):
            self._processes[rank].terminate()

    def log(self, rank: int) -> Path:
        """Returns the file that a process writes to."""
        return self.logs / f"{_name(rank)}.log"

    def late(self) -> list[int]:
        """Returns the ranks that keep the others from joining; where all are there and wait, those that wait."""
        missing = [
            rank
            for rank in range(self.workers)
            if not re.search(rf"^worker {rank} of {self.workers} joined$", _text(self.log(rank)), re.MULTILINE)
        ]
        # All join at once, when the last one is there: the scheduler knows who was there before.
        known = re.findall(r"node: (\d+)\(role: MS_WORKER\).* is registered successfully", _text(self.log(_SCHEDULER)))
        return [rank for rank in missing if str(rank) not in known] or missing


class _Interrupts:
    """Counts Ctrl-C and SIGTERM, which would else break off anywhere; only the main thread can."""

    def __init__(self):
        self.count = 0
        self._before: dict = {}

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & leave them
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.count += 1


def _watch(job: _Job, interrupts: _Interrupts, screen: Screen, timeout: float | None, join_timeout: float) -> None:
    start, joining = time.monotonic(), job.workers > 1
    while True:
        running = job.poll()
        screen.update()
        elapsed = time.monotonic() - start
        if interrupts.count:
            _stop(job, interrupts, screen, None)
            return
        if job.failed():
            _settle(job, interrupts, screen, _GRACE)
            raise UserError(_failure(job))
        if not running:
            return
        if timeout is not None and elapsed > timeout:
            _stop(job, interrupts, screen, timeout)
            return
        if joining and elapsed > join_timeout:
            joining = False
            if late := job.late():
                raise UserError(
                    f"{' and '.join(map(_name, late))} of {job.workers} did not join within {join_timeout:g} s"
                    f"{_ending(job, late[0])}; see the logs in {job.logs}; start again with --resume auto, with fewer "
                    f"workers where the machine is busy"
                )
        time.sleep(_POLL)


def _settle(job: _Job, interrupts: _Interrupts, screen: Screen, seconds: float) -> None:
    """Lets the workers end by themselves for some time; a Ctrl-C cuts it short."""
    end, before = time.monotonic() + seconds, interrupts.count
    while job.poll() and time.monotonic() < end and interrupts.count == before:
        screen.update()
        time.sleep(_POLL)
    screen.update()


def _stop(job: _Job, interrupts: _Interrupts, screen: Screen, timeout: float | None) -> None:
    """Ends the workers and raises what they said of it; returns where all had come to their end nevertheless."""
    job.terminate()
    # Before they have met they save nothing, and MindSpore does not let go of them either.
    _settle(job, interrupts, screen, _PATIENCE if job.workers == 1 or not job.late() else 2)
    if not job.poll() and not job.failed():
        return
    said = [words for rank in job.failed() for error, words in [_last_words(job.log(rank))] if error]
    words = next((w for w in said if not _of_collective(w)), "")
    if timeout is not None:
        raise UserError(
            f"{job.workers} workers were not done after {timeout:g} s and were stopped{words and ': '}{words}; see "
            f"the logs in {job.logs}{'' if words else '; go on with --resume auto, or a larger limit'}"
        )
    if not words:
        raise KeyboardInterrupt
    raise UserError(f"interrupted: {words}")


def _failure(job: _Job) -> str:
    """Returns the line that says which worker brought the job down, and how."""
    # The scheduler fails after a worker, and a worker whose partner has gone fails too, in the collective.
    failed = [rank for rank in job.failed() if rank != _SCHEDULER] or [_SCHEDULER]
    words = {rank: _last_words(job.log(rank)) for rank in failed}
    first = next((r for r in failed if not (words[r][0] and _of_collective(words[r][1]))), failed[0])
    error, text = words[first]
    if error:  # a mistake that several have made is the first one's, whoever came first
        first = min(rank for rank in failed if words[rank] == words[first])
    who = "the scheduler" if first == _SCHEDULER else f"one of {job.workers} workers"
    detail = f", {text}" if error else _ending(job, first)
    # An error of msllm brings its own next step.
    advice = "" if (error and not _of_collective(text)) or "--resume" in text else "; start again with --resume auto"
    return f"{who} failed: {_name(first)}: {_how(job.ended[first])}{detail}; see the logs in {job.logs}{advice}"


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (by hand, or by the system for want of memory)" if name == "SIGKILL" else "")


def _ending(job: _Job, rank: int) -> str:
    _, text = _last_words(job.log(rank))
    return f", the last line of its log: {text}" if text else ", its log is empty"


def _last_words(path: Path) -> tuple[bool, str]:
    """Returns whether a log ends in an error of msllm, and that or else the exception or the last line in it."""
    lines = [line.strip() for line in _text(path, _LAST_BYTES).splitlines() if line.strip() and not is_noise(line)]
    if errors := [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]:
        return True, errors[-1]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return False, (exceptions or lines or [""])[-1].rstrip(".")


def _of_collective(error: str) -> bool:
    return "collective" in error or "all-reduce" in error


def _name(rank: int) -> str:
    return "scheduler" if rank == _SCHEDULER else f"worker_{rank}"


def _text(path: Path, last: int | None = None) -> str:
    raw = path.read_bytes() if path.exists() else b""
    return raw[-last if last else None :].decode("utf-8", errors="replace")


def _empty(logs: Path) -> Path:
    """Returns the folder, made where it is missing, without the logs of an earlier job."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()
    except OSError as e:
        raise UserError(f"{logs} cannot take logs: {e.strerror}; choose another folder") from None
    return logs


def _open_port(port: int) -> int:
    """Returns the port, or a free one for 0; UserError where somebody listens there."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an earlier job has left in TIME_WAIT is free
        try:
            s.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as e:
            reason = getattr(e, "strerror", None) or "expected 1024 to 65535"
            raise UserError(f"port {port} cannot be used: {reason}; give another, or none to take a free one") from None
        return s.getsockname()[1]
