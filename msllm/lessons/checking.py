"""Checks of a reader's exercises: runs what was filled in beside a reference and says in a line or two what is off.

An exercise is a file chapters/chNN_name/exercises/NAME.py; exercises/checker/NAME.py holds TASKS, a Task for each of
its functions. A task's check is mostly ``against(reference, cases, mistakes)``: the reference calls the library, and
each mistake is a deliberately wrong variant of it, so that a result that equals the variant's tells the mistake.
"""

import ast
import contextlib
import copy
import dataclasses
import inspect
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from msllm.errors import UserError
from msllm.files import read_text
from msllm.lessons.compare import agree, describe, difference

RIGHT, WRONG, NOT_DONE = "right", "wrong", "not done"
TIME_LIMIT = 20.0  # seconds of one call of the reader's code


class Wrong(Exception):
    """What is off in the reader's code; each argument is a line."""


class NotDone(Wrong):
    """What is not filled in yet; each argument is a line."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One function that the reader fills in.

    Args:
        function: its name in the exercise file.
        check: called with the reader's function; raises Wrong.
    """

    function: str
    check: Callable[[Callable], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one task: ``state`` is RIGHT, WRONG or NOT_DONE, ``lines`` say what is off."""

    exercise: str
    function: str
    state: str
    lines: tuple[str, ...] = ()


def against(
    reference: Callable,
    cases: Callable[[], Sequence[tuple]],
    mistakes: Iterable[tuple[str, Callable]] = (),
    tolerance: float = 1e-4,
) -> Callable[[Callable], None]:
    """Returns a check that compares the reader's function with ``reference`` on every case.

    Args:
        reference: takes the arguments of the reader's function, calls the library.
        cases: gives the arguments, a tuple for each call.
        mistakes: what to tell the reader, and the wrong variant of the reference that shows it. A mistake is named
            when its variant gives what the reader's function gives where that is first wrong; among several, the one
            that does so on most cases.
        tolerance: of float results, relative to the largest.
    """

    def check(function: Callable) -> None:
        inputs = list(cases())
        got = [function(*copy.deepcopy(args)) for args in inputs]
        for i, (args, result) in enumerate(zip(inputs, got, strict=True)):
            expected = reference(*args)
            lines = difference(result, expected, tolerance)
            if lines:
                names = inspect.signature(reference).parameters
                lines.append(f"called with {', '.join(f'{n} = {describe(a)}' for n, a in zip(names, args))}")
                if not agree(result, expected, tolerance):
                    lines += _likely(i, inputs, got, mistakes, tolerance)
                raise Wrong(*lines)

    return check


def _likely(first: int, inputs: list, got: list, mistakes: Iterable, tolerance: float) -> list[str]:
    """Returns a line with the mistake whose variant agrees with what was got, on input ``first`` and on most others."""
    best, likely = 0, []
    for text, variant in mistakes:
        with _quiet():
            theirs = [variant(*copy.deepcopy(args)) for args in inputs]
        same = [agree(g, t, tolerance) for g, t in zip(got, theirs, strict=True)]
        if same[first] and sum(same) > best:
            best, likely = sum(same), [f"likely mistake: {text}"]
    return likely


def check_exercise(path: Path, tasks: Sequence[Task]) -> list[Result]:
    """Checks the functions of one exercise file; nothing that the reader's code does raises, save Ctrl-C."""
    name = path.stem
    try:
        source = read_text(path)
        tree = ast.parse(source)
        namespace = _execute(source, path)
    except UserError as e:
        return [Result(name, t.function, WRONG, (str(e),)) for t in tasks]
    except (SyntaxError, ValueError) as e:
        line = f", line {e.lineno}" if getattr(e, "lineno", None) else ""
        text = f"{path.name}{line}: {type(e).__name__}: {getattr(e, 'msg', e)}"
        return [Result(name, t.function, WRONG, (text,)) for t in tasks]
    except Wrong as e:
        return [Result(name, t.function, WRONG, e.args) for t in tasks]
    return [_check_task(name, path, tree, namespace, task) for task in tasks]


def _check_task(name: str, path: Path, tree: ast.Module, namespace: dict, task: Task) -> Result:
    written = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    if task.function not in written:
        return Result(name, task.function, WRONG, (f"{path.name} has no function {task.function}(); keep its name",))
    if _is_untouched(written[task.function]):
        return Result(name, task.function, NOT_DONE)

    def called(*args):
        with _located(path):
            return namespace[task.function](*args)

    try:
        task.check(called)
    except NotDone as e:
        return Result(name, task.function, NOT_DONE, e.args)
    except Wrong as e:
        return Result(name, task.function, WRONG, e.args)
    return Result(name, task.function, RIGHT)


def _execute(source: str, path: Path) -> dict:
    """Runs an exercise file and returns its names; not an import, which may take an older compiled file."""
    namespace = {"__name__": path.stem, "__file__": str(path)}
    code = compile(source, str(path), "exec")
    with _located(path):
        exec(code, namespace)
    return namespace


@contextlib.contextmanager
def _quiet():
    """Silences numpy's warnings, such as of an overflow: what they are about shows in the result."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _TimeIsUp(BaseException):
    """Not an Exception, which the reader's own ``except Exception`` would swallow."""


@contextlib.contextmanager
def _limited():
    """Ends a call after TIME_LIMIT; only the main thread of a system with such a timer can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise _TimeIsUp(f"still running after {TIME_LIMIT:g} s; does a loop end?")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: an exception that is raised in a destructor goes no further.
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, TIME_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _located(path: Path):
    """Turns an exception of the reader's code, and a call that does not end, into Wrong with its line."""
    try:
        with _quiet(), _limited():
            yield
    except (Exception, SystemExit, _TimeIsUp) as e:
        line, place = None, e.__traceback__
        while place is not None:
            if place.tb_frame.f_code.co_filename == str(path):
                line = place.tb_lineno
            place = place.tb_next
        kind = "" if isinstance(e, _TimeIsUp) else f"{type(e).__name__}: "
        text = " ".join(f"{kind}{e}".split())[:300]
        if line is None:  # the call itself failed
            raise Wrong(f"{text}; keep the arguments that the exercise gives") from e
        raise Wrong(f"{path.name}, line {line}: {text}") from e


def _is_untouched(function: ast.FunctionDef) -> bool:
    """Whether a body is its docstring and ``...``."""
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return not body
