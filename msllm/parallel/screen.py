"""What the user of a parallel job sees: the first worker's lines as they come and, on a terminal, a bar."""

import json
import os
import re
import sys
from pathlib import Path

_NOISE = re.compile(r"\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\] [A-Z_]+\(\d+[:,]")
_STEP = re.compile(r"step \d+/(\d+)  loss ")


def is_noise(line: str) -> bool:
    """Whether MindSpore's logger wrote a line; there are hundreds while workers look for each other."""
    return _NOISE.match(line) is not None


class Screen:
    """Shows a job on stderr; leaving the block ends the bar.

    Args:
        log: what the first worker prints.
        run_log: the run's log.jsonl; None goes without a bar.
    """

    def __init__(self, log: Path, run_log: str | Path | None = None):
        self._lines = _Tail(log)
        self._entries = _Tail(Path(run_log)) if run_log is not None and sys.stderr.isatty() else None
        self._total: int | None = None
        self._bar = None

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """Shows what is new."""
        from tqdm import tqdm

        for line in self._lines.new():
            step = _STEP.match(line)
            if step:
                self._total = int(step[1])
            # Whoever waits for the job reports its errors; where there is a bar, it says what the lines of steps say.
            if not (line.startswith("error: ") or is_noise(line) or (step and self._bar is not None)):
                tqdm.write(line, file=sys.stderr)
                sys.stderr.flush()
        if self._entries is not None:
            self._move_bar([e for e in map(json.loads, self._entries.new()) if "loss" in e])

    def _move_bar(self, entries: list[dict]) -> None:
        if not entries:
            return
        from tqdm import tqdm

        step, last = entries[-1]["step"], entries[-1]
        if self._bar is None:
            self._bar = tqdm(initial=step, unit="step", dynamic_ncols=True)
        self._bar.total = self._total  # known from the first line of a step on
        self._bar.set_postfix_str(f"loss {last['loss']:.4f}, {last['tokens_per_second']:,.0f} tokens/s", refresh=False)
        self._bar.update(step - self._bar.n)


class _Tail:
    """Reads a file that others write; what it holds at first is of an earlier run."""

    def __init__(self, path: Path):
        self._path, self._offset, self._rest = path, 0, b""
        self._inode = None
        if path.exists():
            stat = path.stat()
            self._inode, self._offset = stat.st_ino, stat.st_size

    def new(self) -> list[str]:
        """Returns the lines that were finished since the last call; all of them where the file was replaced."""
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._offset:
                    self._inode, self._offset, self._rest = stat.st_ino, 0, b""
                file.seek(self._offset)
                raw = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(raw)
        *lines, self._rest = (self._rest + raw).split(b"\n")
        return [line.decode("utf-8", errors="replace").rstrip() for line in lines]
