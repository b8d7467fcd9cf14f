"""Starting a command of msllm on several workers of this machine, through MindSpore's msrun."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from msllm.errors import UserError

_PATIENCE = 60  # seconds for a checkpoint


def run_on_workers(workers: int, arguments: Sequence[str], logs: str | Path, timeout: float | None = None) -> None:
    """Runs ``msllm ARGUMENTS`` on ``workers`` processes and waits for their end; with one worker, without msrun.

    Args:
        workers: processes on this machine.
        arguments: command and options.
        logs: folder of worker_<rank>.log and scheduler.log.
        timeout: seconds after which all are stopped; None waits as long as it takes.

    Ctrl-C reaches the workers as SIGTERM, so that they save a checkpoint.

    Raises:
        UserError: a worker failed, with its last error line; the time was over; or msrun is not installed.
    """
    logs = Path(logs).resolve()
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    # msrun starts the first python of the path, whatever the name given.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "msllm", *arguments]
    if workers > 1:
        options = {
            "worker_num": workers,
            "local_worker_num": workers,
            "master_port": free_port(),
            "join": True,
            "cluster_time_out": 120,
            "log_dir": logs,
        }
        msrun = shutil.which("msrun", path=path)
        if msrun is None:
            raise UserError("msrun, which MindSpore brings, is not on the path; activate the environment it is in")
        command = [msrun, *(f"--{k}={v}" for k, v in options.items()), "python", *command[1:]]
    with (logs / "msrun.log").open("wb") as out:
        # A session of its own: a Ctrl-C at the terminal is for this process, which passes it on.
        process = subprocess.Popen(
            command, env={**os.environ, "PATH": path}, stdout=out, stderr=out, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(process, patience=0)
            raise UserError(
                f"{workers} workers were not done after {timeout:.0f} s and were stopped; see {logs}"
            ) from None
        except KeyboardInterrupt:
            _end(process, patience=_PATIENCE)
            raise
    if code:
        raise UserError(f"one of {workers} workers failed: {_last_error(logs)}; see the logs in {logs}")


def _end(process: subprocess.Popen, patience: float) -> None:
    """Ends a job with SIGTERM, and what is left after ``patience`` seconds with SIGKILL."""
    import psutil

    # msrun puts each worker in a session of its own: killing msrun alone would leave them running.
    workers = psutil.Process(process.pid).children(recursive=True)
    for worker in workers or [process]:
        worker.send_signal(signal.SIGTERM)
    psutil.wait_procs(workers, patience)
    for left in [*workers, process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()


def free_port() -> int:
    """Returns a TCP port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _last_error(logs: Path) -> str:
    found: list[str] = []
    for path in (*sorted(logs.glob("worker_*.log")), logs / "msrun.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        found += [f"{path.stem}: {line.removeprefix('error: ')}" for line in lines if line.startswith("error: ")]
    # A worker whose partner has gone fails too, in the collective; the partner says why.
    return next((line for line in found if "all-reduce" not in line), (found or ["no worker left an error line"])[0])
