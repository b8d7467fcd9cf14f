"""The exercises: untouched files are not done, right solutions are right, and each mistake is named."""

import ast
import re
import signal
import threading

import pytest

from msllm.cli import main
from msllm.errors import UserError
from msllm.lessons import all_chapters, chapters, checking, find_chapter
from msllm.lessons.checking import NOT_DONE, RIGHT, WRONG, check_exercise
from tests.lessons import (
    solutions_ch01,
    solutions_ch02,
    solutions_ch03,
    solutions_ch04,
    solutions_ch05,
    solutions_ch06,
)

SOLUTIONS = {
    "1": solutions_ch01,
    "2": solutions_ch02,
    "3": solutions_ch03,
    "4": solutions_ch04,
    "5": solutions_ch05,
    "6": solutions_ch06,
}
EXERCISES = [(number, name) for number, solutions in SOLUTIONS.items() for name in solutions.RIGHT]
MISTAKES = [(number, *mistake) for number, solutions in SOLUTIONS.items() for mistake in solutions.WRONG]


def check(number, exercise, source, folder):
    path = folder / f"{exercise}.py"
    path.write_text(source, encoding="utf-8")
    return {r.function: r for r in check_exercise(path, find_chapter(number).tasks(exercise))}


def changed(source, function, old, new):
    """Returns the source with ``old`` replaced in one function; where it does not stand there, in the whole file."""
    start = source.index(f"def {function}(")
    end = source.find("\ndef ", start) if "\ndef " in source[start:] else len(source)
    body = source[start:end]
    if old in body:
        return source[:start] + body.replace(old, new) + source[end:]
    assert old in source
    return source.replace(old, new)


def test_every_exercise_of_every_chapter_is_tested():
    offered = [(str(n), name) for n, chapter in all_chapters().items() for name in chapter.exercises()]
    assert sorted(offered) == sorted(EXERCISES)


# A model whose functions are given, with expressions to fill in.
MASKED = ("5", "masked_gpt2")
FUNCTIONS = [(number, name) for number, name in EXERCISES if (number, name) != MASKED]


@pytest.mark.parametrize("number, exercise", FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_an_untouched_file_is_not_done_and_has_a_task_for_each_function(number, exercise):
    chapter = find_chapter(number)
    path = chapter.folder / "exercises" / f"{exercise}.py"
    results = check_exercise(path, chapter.tasks(exercise))
    written = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
    functions = [n.name for n in written if checking._is_untouched(n)]  # the others are given
    assert [(r.function, r.state, r.lines) for r in results] == [(name, NOT_DONE, ()) for name in functions]


@pytest.mark.parametrize("number, exercise", EXERCISES, ids=[name for _, name in EXERCISES])
def test_a_right_solution_is_right(number, exercise, tmp_path):
    results = check(number, exercise, SOLUTIONS[number].RIGHT[exercise], tmp_path)
    assert [(r.state, r.lines) for r in results.values()] == [(RIGHT, ())] * len(results)


def test_an_untouched_model_names_the_mask_that_is_met_first(tmp_path):
    answers = ["MASK"] * len(solutions_ch05.ANSWERS)
    found = check(*MASKED, solutions_ch05.filled(answers), tmp_path)["run"]
    assert found.state == NOT_DONE
    assert re.fullmatch(r"masked_gpt2.py, line \d+: MASK is not filled in yet: \(9\) the position .*", found.lines[0])
    assert found.lines[1].startswith("11 more: lines ")


def test_what_comes_before_an_open_mask_is_checked(tmp_path):
    answers = list(solutions_ch05.ANSWERS)
    answers[4] = "MASK"
    lines = check(*MASKED, solutions_ch05.filled(answers), tmp_path)["run"].lines
    assert "MASK is not filled in yet: (5)" in lines[0]
    assert lines[1] == "right so far: 7 tensors, the last is h.0.attn.weights"
    answers[1] = "1.0"
    found = check(*MASKED, solutions_ch05.filled(answers), tmp_path)["run"]
    assert found.state == WRONG and "h.0.attn.weights is off" in found.lines[0]
    assert "not scaled" in found.lines[1] and "MASK is not filled in yet: (5)" in found.lines[2]


@pytest.mark.parametrize(
    "number, exercise, function, old, new, message", MISTAKES, ids=[f"{m[2]}: {m[5]}" for m in MISTAKES]
)
def test_a_mistake_is_named(number, exercise, function, old, new, message, tmp_path):
    solutions = SOLUTIONS[number]
    source = changed(solutions.RIGHT[exercise], function, old, new) + solutions.HELPERS
    result = check(number, exercise, source, tmp_path)[function]
    assert result.state == WRONG and 1 <= len(result.lines) <= 3
    assert message in " ".join(result.lines)


def test_a_wrong_value_comes_with_its_position_and_the_input(tmp_path):
    source = changed(solutions_ch02.RIGHT["positional_encoding"], "positional_encoding", "10000", "1000")
    lines = check("2", "positional_encoding", source, tmp_path)["positional_encoding"].lines
    assert "the first at [1, 2]: it is 0.176892, right is 0.0998334" in lines[0]  # sin(1 / 1000^(1/4)), of 10000
    assert lines[1] == "called with length = 12, width = 8"


BROKEN = [
    ("def positional_encoding(length, width:\n    ...\n", "positional_encoding.py, line 1: SyntaxError: "),
    ("import nothing_of_this_name\n", "positional_encoding.py, line 1: ModuleNotFoundError: "),
    ("x = 1\n", "positional_encoding.py has no function positional_encoding(); keep its name"),
    ("def positional_encoding(length, width):\n    x = 1\n    return x / 0\n", "line 3: ZeroDivisionError: division"),
    ("def positional_encoding(length, width):\n    exit()\n", "line 2: SystemExit"),
    (
        "def positional_encoding(length, width):\n    return positional_encoding(length, width)\n",
        "line 2: RecursionError",
    ),
    (
        "def positional_encoding(length):\n    return 1\n",
        "TypeError: positional_encoding() takes 1 positional argument",
    ),
    ("def positional_encoding(length, width):\n    'no return'\n    x = 1\n", "returned nothing (None)"),
    ("def positional_encoding(length, width):\n    return ...\n", "type ellipsis, expected a numpy array of shape"),
    ("x = '\0'\n", "positional_encoding.py"),
]


@pytest.mark.parametrize("source, message", BROKEN, ids=[m for _, m in BROKEN])
def test_broken_code_is_one_line_that_says_where(source, message, tmp_path):
    result = check("2", "positional_encoding", source, tmp_path)["positional_encoding"]
    assert result.state == WRONG and message in result.lines[0] and "\n" not in result.lines[0]


ENDLESS = [
    "def positional_encoding(length, width):\n    while True:\n        pass\n",
    (
        "def positional_encoding(length, width):\n    while True:\n        try:\n            int('x')\n"
        "        except Exception:\n            pass\n"
    ),
    "while True:\n    pass\n\ndef positional_encoding(length, width):\n    return 1\n",
]


@pytest.mark.parametrize("source", ENDLESS, ids=["in a function", "that catches", "outside of functions"])
def test_an_endless_loop_ends_with_the_time_limit(source, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "TIME_LIMIT", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    result = check("2", "positional_encoding", source, tmp_path)["positional_encoding"]
    assert result.state == WRONG
    assert re.fullmatch(
        r"positional_encoding\.py, line \d+: still running after 0.2 s; does a loop end\?", result.lines[0]
    )
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) == before


def test_checks_run_in_other_threads_too_without_a_limit(tmp_path):
    found = []
    source = solutions_ch02.RIGHT["positional_encoding"]
    thread = threading.Thread(target=lambda: found.extend(check("2", "positional_encoding", source, tmp_path).values()))
    thread.start()
    thread.join()
    assert [(r.state, r.lines) for r in found] == [(RIGHT, ())]


def test_a_missing_and_a_wrongly_encoded_file_are_one_line(tmp_path):
    tasks = find_chapter("2").tasks("positional_encoding")
    assert "cannot read" in check_exercise(tmp_path / "positional_encoding.py", tasks)[0].lines[0]
    (tmp_path / "positional_encoding.py").write_bytes("# 位置".encode("gb18030"))
    assert "is not UTF-8" in check_exercise(tmp_path / "positional_encoding.py", tasks)[0].lines[0]


def test_what_the_reader_does_to_the_arguments_does_not_change_the_check(tmp_path):
    source = solutions_ch02.RIGHT["masked_attention"].replace(
        "    scores = q @", "    q = q.copy(); k += 0; scores = q @"
    )
    source = source.replace(
        "    return weights @ v", "    out = weights @ v\n    v[:] = 0; visible[:] = True\n    return out"
    )
    assert {r.state for r in check("2", "masked_attention", source, tmp_path).values()} == {RIGHT}


@pytest.fixture
def own_copy(tmp_path, monkeypatch):
    """The chapters with exercises, in a folder that a test may change."""
    import shutil

    for chapter in all_chapters().values():
        if chapter.exercises():
            shutil.copytree(chapter.folder / "exercises", tmp_path / chapter.folder.name / "exercises")
    monkeypatch.setattr(chapters, "chapters_folder", lambda: tmp_path)
    return tmp_path


def test_the_command_prints_a_line_a_function_and_ends_with_0_only_when_all_are_right(own_copy, capsys):
    folder = own_copy / "ch02_transformer" / "exercises"
    assert main(["chapter", "2", "--check"]) == 1
    out = capsys.readouterr().out
    assert "  attention()            not done" in out and "0 of 8 functions are right" in out
    for name, source in solutions_ch02.RIGHT.items():
        (folder / f"{name}.py").write_text(source)
    assert main(["chapter", "2", "--check"]) == 0
    assert "8 of 8 functions are right: well done." in capsys.readouterr().out
    (folder / "bpe_merge.py").write_text("def count_pairs(words):\n    return words[0]\n")
    assert main(["chapter", "2", "--check", str(folder / "bpe_merge.py")]) == 1
    out = capsys.readouterr().out
    assert "bpe_merge.py, line 2: KeyError: 0" in out and "no function merge()" in out and "attention" not in out
    assert main(["chapter", "2", "--check", "masked_attention", "label_smoothed_loss"]) == 0
    assert "4 of 4" in capsys.readouterr().out


def test_an_unknown_exercise_names_the_nearest(capsys):
    assert main(["chapter", "2", "--check", "bpe_merg"]) == 2
    line = capsys.readouterr().err
    assert "unknown exercise 'bpe_merg' (did you mean 'bpe_merge'?); known are bpe_merge, label_smoothed_loss" in line
    with pytest.raises(UserError, match="unknown chapter '0'"):
        find_chapter("0")
