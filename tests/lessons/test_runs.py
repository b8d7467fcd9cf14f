"""`msllm chapter`: lists, runs, and what a run leaves behind; on a chapter that the tests write."""

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from msllm.cli import main
from msllm.lessons import chapters

RUN_PY = '''"""Chapter 7, a chapter of the tests.

More text.
"""

import numpy as np

from msllm.lessons import Run, run


@run("adds two numbers, 1 second", short=True)
def add_numbers(job: Run) -> None:
    job.say(f"quick {job.quick}, seed {job.seed}")
    job.write_json("sum.json", {"sum": np.float32(1.5), "list": np.arange(3), "text": "数"})
    job.write_text("table.md", "| a |\\n")


@run("reads a file", needs=("tinyshakespeare",))
def read(job: Run) -> None:
    job.say(job.file("tinyshakespeare/input.txt").read_text())
    job.say(str(job.has("tinyshakespeare/other.txt")))


@run("draws")
def draw(job: Run) -> None:
    from matplotlib.figure import Figure

    job.savefig("figure.png", Figure(figsize=(1, 1)))
    job.savefig("figure.svg", Figure(figsize=(1, 1)))


@run("fails half-way")
def fail(job: Run) -> None:
    job.say("before")
    job.write_json("sum.json", {"sum": object()})


def not_a_run(job):
    raise AssertionError
'''


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A chapters folder with one chapter; the current folder is tmp_path."""
    folder = tmp_path / "chapters" / "ch07_tests"
    folder.mkdir(parents=True)
    (folder / "run.py").write_text(RUN_PY, encoding="utf-8")
    monkeypatch.setattr(chapters, "chapters_folder", lambda: tmp_path / "chapters")
    monkeypatch.delenv("MSLLM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def error(capsys, *argv):
    assert main(["chapter", *argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_lists(book, capsys):
    assert main(["chapter"]) == 0
    assert " 7  a chapter of the tests." in capsys.readouterr().out
    assert main(["chapter", "7"]) == 0
    out = capsys.readouterr().out
    assert "Chapter 7, a chapter of the tests." in out
    assert re.search(r"add-numbers +adds two numbers, 1 second *\n +read +reads a file \(needs tinyshakespeare\)", out)
    assert "not_a_run" not in out


def test_a_full_run_writes_into_the_chapter_and_a_quick_one_into_the_output(book, tmp_path, capsys):
    assert main(["chapter", "7", "--run", "add-numbers"]) == 0
    assert sorted(p.name for p in (book / "results").iterdir()) == ["add-numbers.log", "sum.json", "table.md"]
    assert main(["chapter", "7", "--run", "add-numbers", "--quick", "--seed", "3"]) == 0
    quick = tmp_path / "outputs" / "ch07" / "add-numbers-quick"
    assert sorted(p.name for p in quick.iterdir()) == ["add-numbers.log", "sum.json", "table.md"]
    assert "in outputs/ch07/add-numbers-quick" in capsys.readouterr().out
    full, small = (json.loads((f / "sum.json").read_text()) for f in (book / "results", quick))
    assert (full["sum"], full["list"], full["text"]) == (1.5, [0, 1, 2], "数")
    assert full["run"]["command"] == "msllm chapter 7 --run add-numbers" and full["run"]["quick"] is False
    assert small["run"]["command"] == "msllm chapter 7 --run add-numbers --quick --seed 3" and small["run"]["quick"]
    assert full["run"]["date"] == datetime.date.today().isoformat() and 0 <= full["run"]["seconds"] < 60
    assert full["run"]["mindspore"] == "2.9.0" and full["run"]["cores"] >= 1 and full["run"]["cpu"]
    log = (book / "results" / "add-numbers.log").read_text().splitlines()
    assert log[:2] == ["$ msllm chapter 7 --run add-numbers", "quick False, seed 0"]
    assert log[2].endswith("wrote sum.json, table.md, add-numbers.log")


def test_the_record_holds_no_folder_of_this_machine(book, tmp_path):
    (tmp_path / "data" / "tinyshakespeare").mkdir(parents=True)
    (tmp_path / "data" / "tinyshakespeare" / "input.txt").write_text("words")
    argv = ["chapter", "7", "--run", "read", "--data", str(tmp_path / "data"), "--output", "mine"]
    assert main(argv) == 0
    log = (book / "results" / "read.log").read_text()
    assert log.startswith("$ msllm chapter 7 --run read --data FOLDER --output mine\nwords\nFalse\n")
    assert str(tmp_path) not in log


def test_figures(book):
    assert main(["chapter", "7", "--run", "draw"]) == 0
    assert (book / "results" / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (book / "results" / "figure.svg").read_text()


def test_a_run_that_fails_leaves_the_old_figures_whole(book):
    assert main(["chapter", "7", "--run", "add-numbers"]) == 0
    before = (book / "results" / "sum.json").read_bytes()
    with pytest.raises(AttributeError, match="tolist"):
        main(["chapter", "7", "--run", "fail"])
    assert (book / "results" / "sum.json").read_bytes() == before
    assert (book / "results" / "fail.log").read_text() == "$ msllm chapter 7 --run fail\nbefore\n"
    assert not [p for p in (book / "results").iterdir() if p.name.startswith(".")]


def test_missing_data_says_what_where_and_from_where(book, tmp_path, capsys, monkeypatch):
    line = error(capsys, "7", "--run", "read")
    for part in ("needs tinyshakespeare", "--data FOLDER", "MSLLM_DATA", "karpathy/char-rnn on GitHub"):
        assert part in line
    monkeypatch.setenv("MSLLM_DATA", str(tmp_path / "nowhere"))
    assert f"tinyshakespeare, which is not in {tmp_path / 'nowhere'}" in error(capsys, "7", "--run", "read")
    (tmp_path / "data" / "tinyshakespeare").mkdir(parents=True)
    line = error(capsys, "7", "--run", "read", "--data", str(tmp_path / "data"))
    assert f"needs tinyshakespeare/input.txt, which is not in {tmp_path / 'data'}" in line
    assert "--data is 'none', which is not a folder" in error(capsys, "7", "--run", "read", "--data", "none")


def test_mistyped_commands(book, capsys):
    assert "unknown chapter '8'; known are 7" in error(capsys, "8")
    line = error(capsys, "7", "--run", "add-number")
    assert "unknown run 'add-number' of chapter 7 (did you mean 'add-numbers'?); known are add-numbers, read" in line
    assert "--quick is for a run" in error(capsys, "7", "--quick")
    assert "--check needs a chapter" in error(capsys, "--check")
    assert "has no exercises" in error(capsys, "7", "--check")
    assert "give one of them" in error(capsys, "7", "--run", "read", "--check")
    assert "unrecognized arguments: 9" in error(capsys, "7", "9")


def test_without_a_checkout_the_error_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chapters, "__file__", str(tmp_path / "site-packages" / "msllm" / "lessons" / "chapters.py"))
    assert "part of a checkout of msllm" in error(capsys, "2")
    (tmp_path / "chapters" / "ch02_mine").mkdir(parents=True)
    assert main(["chapter"]) == 0
    assert " 2  mine" in capsys.readouterr().out


def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from msllm.cli import main; main(['chapter', '2']);"
        "sys.exit(' '.join({'mindspore', 'matplotlib', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "masked_attention" in done.stdout


def test_all_quick_runs_stop_at_the_first_that_fails(book, capsys, monkeypatch):
    from msllm.lessons import __main__ as every

    called = []

    class Done:
        def __init__(self, words):
            assert words[:2] == [sys.executable, "-m"]
            called.append(words[2:])
            self.returncode = 3 if "read" in words else 0

    monkeypatch.setattr(every.subprocess, "run", lambda words: Done(words))
    assert every.main() == 3
    assert called == [["msllm", "chapter", "7", "--run", name, "--quick"] for name in ("add-numbers", "read")]
    assert "--run read --quick failed with exit code 3" in capsys.readouterr().err


def test_a_run_knows_its_output_folder(book):
    (book / "run.py").write_text(RUN_PY + '\n\n@run("x")\ndef where(job):\n    job.say(str(job.output))\n')
    assert main(["chapter", "7", "--run", "where"]) == 0
    assert str(Path("outputs/ch07/where")) in (book / "results" / "where.log").read_text()
