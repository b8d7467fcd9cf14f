"""The quick setting of the chapters' short runs, as a reader starts them."""

import os
from pathlib import Path

import pytest

from msllm.cli import main
from msllm.lessons import all_chapters

SHORT = [(number, run) for number, chapter in all_chapters().items() for run in chapter.runs().values() if run.short]


@pytest.mark.parametrize("number, run", SHORT, ids=[f"{number}-{run.name}" for number, run in SHORT])
def test_a_short_run_writes_its_figures(number, run, tmp_path):
    data = os.environ.get("MSLLM_DATA")
    missing = [name for name in run.needs if not data or not (Path(data) / name).exists()]
    if missing:
        pytest.skip(f"MSLLM_DATA holds no {', '.join(missing)}")
    results = all_chapters()[number].folder / "results"
    before = {p.name: p.stat().st_mtime_ns for p in results.glob("*")}
    assert main(["chapter", str(number), "--run", run.name, "--quick", "--output", str(tmp_path / "out")]) == 0
    log = (tmp_path / "out" / f"{run.name}.log").read_text(encoding="utf-8").splitlines()
    written = log[-1].partition("; wrote ")[2].split(", ")
    assert len(log) > 1 and all((tmp_path / "out" / name).stat().st_size for name in written)
    after = {p.name: p.stat().st_mtime_ns for p in results.glob("*")}
    assert all(after.get(name) == before.get(name) for name in written)  # those are of the full runs
