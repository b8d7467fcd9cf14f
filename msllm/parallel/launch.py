"""Starting a command of msllm on several workers of this machine, through MindSpore's msrun."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from msllm.errors import UserError


def run_on_workers(workers: int, arguments: Sequence[str], logs: str | Path, timeout: float | None = None) -> None:
    """Runs ``msllm ARGUMENTS`` on ``workers`` processes and waits for their end; with one worker, without msrun.

    Args:
        workers: processes on this machine.
        arguments: command and options.
        logs: folder of worker_<rank>.log and scheduler.log.
        timeout: seconds after which all are stopped; None waits as long as it takes.

    Raises:
        UserError: a worker failed, with its last error line; or the time was over.
    """
    logs = Path(logs).resolve()
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    python = Path(sys.executable).parent
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
        # msrun starts the first python of the path, whatever the name given.
        command = [str(python / "msrun"), *(f"--{k}={v}" for k, v in options.items()), "python", *command[1:]]
    environment = {**os.environ, "PATH": f"{python}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        with (logs / "msrun.log").open("wb") as out:
            code = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=timeout).returncode
    except subprocess.TimeoutExpired:
        raise UserError(f"{workers} workers were not done after {timeout:.0f} s and were stopped; see {logs}") from None
    if code:
        raise UserError(f"one of {workers} workers failed: {_last_error(logs)}; see the logs in {logs}")


def free_port() -> int:
    """Returns a TCP port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _last_error(logs: Path) -> str:
    for path in (*sorted(logs.glob("worker_*.log")), logs / "msrun.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        found = [line for line in lines if line.startswith("error: ")]
        if found:
            return f"{path.stem}: {found[-1].removeprefix('error: ')}"
    return "no worker left an error line"
