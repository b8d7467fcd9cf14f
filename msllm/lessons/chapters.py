"""The chapters of a checkout: finding them, reading what they offer, running one of their runs."""

import ast
import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from msllm.errors import UserError, nearest
from msllm.files import make_folder, read_text
from msllm.lessons.job import Entry, Run


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A folder chapters/chNN_name."""

    number: int
    folder: Path

    @property
    def title(self) -> str:
        """The first line of run.py's docstring without "Chapter 2, "; the folder's name until there is a run.py."""
        line = first_line(self.folder / "run.py") or self.folder.name.partition("_")[2]
        return re.sub(rf"^Chapter {self.number}[,:.]? ", "", line)

    def runs(self) -> dict[str, Entry]:
        """Returns the runs of run.py and run_*.py by name, in the order they are written."""
        paths = [*self.folder.glob("run.py"), *sorted(self.folder.glob("run_*.py"))]
        modules = [load_module(path, f"msllm_{self.folder.name}_{path.stem}") for path in paths]
        return {e.name: e for module in modules for e in vars(module).values() if isinstance(e, Entry)}

    def exercises(self) -> dict[str, str]:
        """Returns the name of each exercise and the first line of its docstring."""
        folder = self.folder / "exercises"
        return {p.stem: first_line(folder / p.name) for p in sorted((folder / "checker").glob("*.py"))}

    def tasks(self, exercise: str) -> tuple:
        """Returns TASKS of exercises/checker/<exercise>.py: how each function of an exercise is checked."""
        path = self.folder / "exercises" / "checker" / f"{exercise}.py"
        return load_module(path, f"msllm_{self.folder.name}_checker_{exercise}").TASKS


def chapters_folder() -> Path:
    """Returns the folder ``chapters``: beside the package in a checkout, else in the current folder."""
    places = (Path(__file__).resolve().parents[2] / "chapters", Path.cwd() / "chapters")
    for place in places:
        if any(place.glob("ch[0-9][0-9]_*")):
            return place
    raise UserError(
        f"no chapters in {' or '.join(str(p) for p in dict.fromkeys(places))}: they are part of a checkout of msllm, "
        f"not of the installed package; run the command inside a checkout"
    )


def all_chapters() -> dict[int, Chapter]:
    """Returns the chapters by number; UserError where there is no folder of them."""
    folders = [p for p in sorted(chapters_folder().glob("ch[0-9][0-9]_*")) if p.is_dir()]
    return {int(p.name[2:4]): Chapter(int(p.name[2:4]), p) for p in folders}


def find_chapter(number: str) -> Chapter:
    """Returns the chapter of a number as typed; UserError names those that are there."""
    known = all_chapters()
    if not number.isdecimal() or int(number) not in known:
        names = [str(n) for n in known]
        raise UserError(f"unknown chapter {number!r}{nearest(number, names)}; known are {', '.join(names)}")
    return known[int(number)]


def start(chapter: Chapter, name: str, quick: bool, data: str | None, output: str | None, seed: int) -> Run:
    """Runs the run ``name`` of a chapter to its end and returns its job; the options are those of `msllm chapter`.

    Raises:
        UserError: there is no such run, or a data folder that it needs is missing.
    """
    runs = chapter.runs()
    if name not in runs:
        known = f"known are {', '.join(runs)}" if runs else "it has none"
        raise UserError(f"unknown run {name!r} of chapter {chapter.number}{nearest(name, runs)}; {known}")
    entry = runs[name]
    place = data or os.environ.get("MSLLM_DATA")
    if data and not Path(data).is_dir():
        raise UserError(f"--data is {data!r}, which is not a folder; give the folder that holds the data's folders")
    folder = Path(output or f"outputs/ch{chapter.number:02}/{name}{'-quick' if quick else ''}")
    job = Run(
        name=name,
        quick=quick,
        output=folder,
        results=folder if quick else chapter.folder / "results",
        seed=seed,
        data=Path(place) if place else None,
        command=_command(chapter.number, name, quick, data, output, seed),
    )
    for needed in entry.needs:
        job.file(needed)
    make_folder(folder)
    entry(job)
    job.say(f"{job.seconds:.0f} s; wrote {', '.join([*job.written, f'{name}.log'])}")
    return job


def _command(number: int, name: str, quick: bool, data: str | None, output: str | None, seed: int) -> str:
    """Returns the command line for the record; where folders lie on one machine is nobody else's business."""
    words = ["msllm", "chapter", str(number), "--run", name]
    words += ["--quick"] if quick else []
    for option, value in (("--data", data), ("--output", output)):
        if value is not None:
            words += [option, "FOLDER" if Path(value).is_absolute() or ".." in Path(value).parts else value]
    return " ".join(words + (["--seed", str(seed)] if seed else []))


def first_line(path: Path) -> str:
    """Returns the first line of the docstring of a Python file, "" where there is none; the file is not run."""
    try:
        return (ast.get_docstring(ast.parse(read_text(path))) or "").partition("\n")[0] if path.exists() else ""
    except SyntaxError:
        return ""


def load_module(path: Path, name: str) -> ModuleType:
    """Imports a Python file by its path, anew at each call."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look a module up
    spec.loader.exec_module(module)
    return module
