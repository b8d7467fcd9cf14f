"""msllm chapter: what a chapter of the book lets one run, and the exercises."""

import os
from pathlib import Path

from msllm.errors import UserError, nearest
from msllm.lessons import Chapter, all_chapters, find_chapter


def chapter(
    number: str | None = None,
    run: str | None = None,
    quick: bool = False,
    data: str | None = None,
    output: str | None = None,
    seed: int = 0,
    check: list[str] | None = None,
) -> int:
    """Lists the runs and exercises of a chapter of the book, runs one, or checks your exercises.

    Args:
        number: of the chapter; without it, the chapters are listed.
        run: the run to carry out; its figures go into the chapter's results folder.
        quick: a small setting of the run, whose figures go into the output folder.
        data: folder of the real files; without it, that of the environment variable MSLLM_DATA.
        output: folder of models, checkpoints and logs; outputs/chNN/RUN, with -quick where it is quick.
        seed: seed of weights, order and sampling.
        check: check the exercise files of these names; without a name, all of the chapter.
    """
    if number is None:
        if run is not None or check is not None:
            raise UserError(f"--{'run' if run is not None else 'check'} needs a chapter: msllm chapter NUMBER ...")
        _list_chapters()
        return 0
    chosen = find_chapter(number)
    if run is not None and check is not None:
        raise UserError("both --run and --check were given; give one of them")
    for name, given in (("quick", quick), ("data", data), ("output", output), ("seed", seed)):
        if given and run is None:
            raise UserError(f"--{name} is for a run; name it: msllm chapter {number} --run NAME")
    if check is not None:
        return _check(chosen, check)
    if run is None:
        _list_offers(chosen)
        return 0
    from msllm.lessons.chapters import start

    job = start(chosen, run, quick, data, output, seed)
    print(f"in {_relative(job.results)}")
    return 0


def _list_chapters() -> None:
    for number, one in all_chapters().items():
        print(f"{number:2}  {one.title}")
    print("\nmsllm chapter NUMBER lists the runs and exercises of a chapter.")


def _list_offers(one: Chapter) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    runs, exercises = one.runs(), one.exercises()
    width = max(map(len, [*runs, *exercises]), default=0) + 2
    console = Console(highlight=False)
    console.print(Text(f"Chapter {one.number}, {one.title}", style="bold"), soft_wrap=True)
    console.print(f"read {_relative(one.folder)}/README.md", markup=False, soft_wrap=True)

    def show(heading: str, rows: list[tuple[str, str]]) -> None:
        table = Table.grid(padding=(0, 0))
        table.add_column(width=width + 2, no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(Text(f"  {name}", style="cyan"), Text(text))
        console.print(f"\n{heading}", markup=False, soft_wrap=True)
        console.print(table)

    if runs:
        rows = [(r.name, r.description + (f" (needs {', '.join(r.needs)})" if r.needs else "")) for r in runs.values()]
        show(f"runs: msllm chapter {one.number} --run NAME [--quick] [--data FOLDER]", rows)
    if exercises:
        show(f"exercises: msllm chapter {one.number} --check [NAME]", list(exercises.items()))
    if not runs and not exercises:
        console.print("It has no runs and no exercises yet.")


def _check(one: Chapter, names: list[str]) -> int:
    """Checks exercises and prints how each function does; returns 0 when all are right, else 1."""
    from msllm.lessons.checking import check_exercise

    folder, known = one.folder / "exercises", one.exercises()
    if not known:
        raise UserError(f"chapter {one.number} has no exercises; msllm chapter lists the chapters")
    names = [Path(name).name.removesuffix(".py") for name in names]  # a path is as good as a name
    for name in names:
        if name not in known:
            raise UserError(f"unknown exercise {name!r}{nearest(name, known)}; known are {', '.join(known)}")
    results = [r for name in names or known for r in check_exercise(folder / f"{name}.py", one.tasks(name))]
    _show(results, folder)
    return 0 if all(r.state == "right" for r in results) else 1


def _show(results: list, folder: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    width = max(len(r.function) for r in results) + 4
    style = {"right": "green", "wrong": "red", "not done": "yellow"}
    exercise, lines = None, ()
    for result in results:
        if result.exercise != exercise:
            exercise, lines = result.exercise, ()
            console.print(Text(f"{exercise}.py", style="bold"))
        console.print(Text.assemble(f"  {result.function + '()':{width}}", (result.state, style[result.state])))
        for line in result.lines if result.lines != lines else ():  # a file that cannot be read is said once
            console.print(Text(f"      {line}"), soft_wrap=True)
        lines = result.lines
    right = sum(r.state == "right" for r in results)
    console.print(f"\n{right} of {len(results)} functions are right", end="")
    if right < len(results):
        next_one = next(r for r in results if r.state != "right")
        console.print(f"; go on in {_relative(folder)}/{next_one.exercise}.py", markup=False, soft_wrap=True)
    else:
        console.print(": well done.")


def _relative(path: Path) -> str:
    """Returns a path as seen from here, where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
