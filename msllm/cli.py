"""The msllm command: a table from names to typed functions, and the one place where errors become exit codes."""

import dataclasses
import inspect
import logging
import os
import re
import sys
import typing
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable

from msllm.errors import UserError, nearest
from msllm.parallel.launch import COMMAND_LINE

# command -> module:function; a module is imported only when its command (or the whole help) is asked for.
COMMANDS = {
    "finetune": "finetune:finetune",
    "chat": "chat:chat",
    "generate": "generate:generate",
    "train-tokenizer": "prepare:train_tokenizer",
    "data": "data:data",
    "pretraining-data": "prepare:pretraining_data",
    "pretrain": "pretrain:pretrain",
    "parallel verify": "parallel:verify",
    "parallel compile": "compile:compile_layout",
    "parallel plan": "plan:plan",
    "ranktable generate": "ranktable:generate",
    "ranktable merge": "ranktable:merge",
    "ranktable check": "ranktable:check",
    "ranktable show": "ranktable:show",
    "train-translator": "translate:train_translator",
    "translate": "translate:translate",
    "finetune-task": "tasks:finetune_task",
    "predict": "predict:predict",
    "summarize": "summarize:summarize",
    "surprise": "surprise:surprise",
    "analogy": "analogy:analogy",
    "merge": "convert:merge",
    "convert": "convert:convert",
    "convert-yaml": "convert_yaml:convert_yaml",
    "demo": "demo:demo",
    "chapter": "chapter:chapter",
    "info": "info:info",
}

# command -> the parameter that may stand without its name, its help and how many values it takes: msllm chapter 2
POSITIONAL = {
    "chapter": ("number", "The number of a chapter; without it, the chapters are listed.", "?"),
    "data": ("action", "What to do: tokenize.", "?"),
    "ranktable merge": ("tables", "Rank tables, in the order of their ranks.", "*"),
    "ranktable check": ("table", "A rank table.", "?"),
    "ranktable show": ("table", "A rank table.", "?"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code: the command's (0 for most), or 2 after one line of error."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    warnings.showwarning = _show_warning
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as e:
        if not _is_interrupt(e):
            raise
        print("error: interrupted by Ctrl-C; nothing was left half-written; run the command again", file=sys.stderr)
        if argv is None:  # a process of its own; where MindSpore's import was cut short, its end would abort
            sys.stdout.flush()
            os._exit(2)
        return 2


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: an import of MindSpore that it falls into ends in an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _show_warning(message, category, *place, **more) -> None:
    """A warning is one line too; where libraries were deprecated is not the user's business."""
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        print(f"warning: {message}", file=sys.stderr)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from msllm import __version__

        print(f"msllm {__version__}")
        return 0
    command, words = _command(argv)
    if command is None:
        print(_overview(argv[0]))
        return 0
    function = _function(command)
    parser, groups = _parser(command, function)
    options = {s: a for a in parser._actions for s in a.option_strings}
    words = [_spelt(word, options) for word in words]
    _check_options(words, options, command)
    try:
        values = parser.parse_args(_with_flag_values(words, function, groups))
        arguments = parser.instantiate_classes(values).as_dict()
    except ArgumentError as e:
        raise UserError(_readable(str(e), command, options)) from None
    for name, cls in _flat(groups).items():
        chosen = {f.name: arguments.pop(f.name) for f in dataclasses.fields(cls)}
        if name == "generation":
            from msllm.commands.generate import with_saved_options

            chosen = with_saved_options(arguments["model"], chosen, {a.split("=")[0].lstrip("-") for a in argv})
        arguments[name] = cls(**chosen)
    arguments.pop("config", None)
    before = COMMAND_LINE.set(argv)  # a command may start itself on several workers
    try:
        code = function(**arguments)
    finally:
        COMMAND_LINE.reset(before)
    return code if isinstance(code, int) else 0  # some return what they made, for callers in Python


def _command(argv: list[str]) -> tuple[str | None, list[str]]:
    """Returns the command, of one word or two, and the words after it; None where only help for a group is wanted."""
    if argv[0] in COMMANDS:
        return argv[0], argv[1:]
    actions = [name.split()[1] for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if not actions:
        known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], known)}; known are {', '.join(known)}")
    if len(argv) == 1 or argv[1] in ("-h", "--help"):
        return None, []
    if argv[1] not in actions:
        raise UserError(
            f"unknown command {' '.join(argv[:2])!r}{nearest(argv[1], actions)}; after {argv[0]} comes "
            f"{', '.join(actions)}"
        )
    return " ".join(argv[:2]), argv[2:]


def _flat(groups: dict[str, type]) -> dict[str, type]:
    """The dataclass parameter whose fields are options of their own: the first one, but for a layout of workers."""
    return {name: cls for name, cls in list(groups.items())[:1] if name != "parallel"}


def _function(command: str) -> Callable:
    module, name = COMMANDS[command].split(":")
    return getattr(__import__(f"msllm.commands.{module}", fromlist=[name]), name)


def _parser(command: str, function: Callable):
    """Returns the parser of a command and its dataclass parameters.

    The fields of the first one are options of their own (--learning_rate), those of others, and those of a layout of
    workers, carry its name (--lora.r).
    """
    from jsonargparse import ArgumentParser

    groups = {p: t for p, t in typing.get_type_hints(function).items() if dataclasses.is_dataclass(t)}
    parser = ArgumentParser(prog=f"msllm {command}", description=_summary(function), exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with options; options given here override it.")
    name, text, nargs = POSITIONAL.get(command, (None, None, None))
    if name is not None:
        parser.add_argument(name, nargs=nargs, help=text)
    parser.add_function_arguments(function, skip={*groups, name} - {None}, fail_untyped=True)
    for name, cls in groups.items():
        parser.add_class_arguments(cls, nested_key=None if name in _flat(groups) else name)
    return parser, groups


def _spelt(word: str, options: dict) -> str:
    """Lets --card-memory mean --card_memory."""
    name, equals, value = word.partition("=")
    other = f"--{name[2:].replace('-', '_')}"
    return f"{other}{equals}{value}" if name.startswith("--") and name not in options and other in options else word


def _check_options(argv: list[str], options: dict, command: str) -> None:
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in options:
            raise UserError(f"unknown option {name}{nearest(name, options)}; see msllm {command} --help")


def _with_flag_values(argv: list[str], function: Callable, groups: dict) -> list[str]:
    """Lets a bare --flag mean --flag=true for the options that are true or false."""
    hints = dict(typing.get_type_hints(function))
    for name, cls in groups.items():
        prefix = "" if name in _flat(groups) else f"{name}."
        hints |= {f"{prefix}{k}": v for k, v in typing.get_type_hints(cls).items()}
    flags = {f"--{name}" for name, kind in hints.items() if kind is bool}
    out = []
    for i, word in enumerate(argv):
        bare = word in flags and not (i + 1 < len(argv) and argv[i + 1].lower() in ("true", "false", "yes", "no"))
        out.append(f"{word}=true" if bare else word)
    return _with_lists(out, {f"--{name}" for name, kind in hints.items() if _is_list(kind)})


def _with_lists(argv: list[str], lists: set[str]) -> list[str]:
    """Lets --data a b mean a list of two, and --data a a list of one."""
    out: list[str] = []
    i = 0
    while i < len(argv):
        name, equals, value = argv[i].partition("=")
        if name not in lists:
            out.append(argv[i])
            i += 1
            continue
        values = [value] if equals else []
        i += 1
        while i < len(argv) and not argv[i].startswith("--"):
            values.append(argv[i])
            i += 1
        if len(values) == 1 and values[0].startswith("["):
            out.append(f"{name}={values[0]}")
        else:
            import json

            out.append(f"{name}={json.dumps(values, ensure_ascii=False)}")
    return out


def _is_list(kind) -> bool:
    options = typing.get_args(kind) if typing.get_origin(kind) not in (list, None) else (kind,)
    return any(typing.get_origin(k) is list for k in options)


def _readable(message: str, command: str, options: Iterable[str]) -> str:
    """jsonargparse's message as one line with a next step."""
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    one = re.fullmatch(r'Parser key "(.+?)": .*Expected an? (.+?)\. Got value: (.*)', text)
    several = re.fullmatch(r'Parser key "(.+?)": .*Subtypes: \[(.+?)\] Errors: .*Given value: (.*)', text)
    if wrong := one or several:
        option, kind, value = wrong.groups()
        names = re.findall(r"[^\s',\[\]]+", kind.partition("Literal")[2].partition("]")[0])
        kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
        known = re.search(rf"\b({'|'.join(kinds)})\b", kind)
        expected = f"one of {', '.join(names)}" if names else kinds[known[1]] if known else kind
        text = f"--{option} is {value!r}{nearest(value, names)}, expected {expected}"
    elif lacking := re.fullmatch(r"the following arguments are required: (.+)", text):
        text = f"missing: {', '.join(f'--{name.strip()}' for name in lacking[1].split(','))}"
    elif strange := re.fullmatch(r"(?:Option|Group '(.+)' does not accept option) '(.+?)'(?: is not accepted)?", text):
        name = ".".join(filter(None, strange.groups()))  # those of the command line were checked before
        text = f"the file of --config has an unknown key {name}{nearest(name, [o.lstrip('-') for o in options])}"
    return f"{text[:400]}; see msllm {command} --help"


def _summary(function: Callable) -> str:
    return inspect.getdoc(function).split("\n\n")[0]


def _overview(group: str = "") -> str:
    """Lists all commands, or those of two words that begin with ``group``."""
    names = [name for name in COMMANDS if not group or name.startswith(f"{group} ")]
    width = max(map(len, names)) + 2
    lines = [f"  {name:{width}}{_summary(_function(name))}" for name in names]
    return "\n".join(
        [
            f"usage: msllm {f'{group} ...' if group else 'COMMAND'} [--config FILE.yaml] [OPTIONS]",
            "",
            "commands:",
            *lines,
            "",
            "msllm COMMAND --help lists the options of a command with their defaults.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
