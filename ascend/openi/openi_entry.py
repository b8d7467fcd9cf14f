"""Starts msllm in a training task of the OpenI platform, or in a plain container: the file to name as start file.

    python ascend/openi/openi_entry.py --command=pretrain --config=ascend/configs/RUN.yaml \\
        --data={dataset}/tokens --output={output}/run

OpenI hands over run parameters as --name=value, so the msllm command is one too. {dataset}, {pretrain_model} and
{output} stand for the folders of the task: those of the platform's package c2net where it is installed and the task
runs there, else --dataset_path, --pretrain_model_path and --output_path. What lies in the output folder is sent back
at the end, also when training fails or is stopped. All else goes to ascend/launch_node.sh and msllm as it is.
"""

import argparse
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHER = REPOSITORY / "ascend" / "launch_node.sh"
FOLDERS = ("dataset", "pretrain_model", "output")

# What OpenI adds to the user's run parameters, for scripts that fetch their data themselves.
PLATFORM = {"data_url", "multi_data_url", "train_url", "pretrain_url", "ckpt_url", "model_url", "result_url"}
PLATFORM |= {"grampus_code_url", "grampus_code_file_name", "grampus_model_file_name"}


class Refused(Exception):
    """One line for the user."""


def main(argv: list[str]) -> int:
    """Runs the task and returns training's exit code."""
    options, arguments = read(argv)
    on_openi = runs_on_openi()
    if options.dry_run:
        folders = planned_folders(options, on_openi)
        show(options, filled(arguments, folders), folders, on_openi)
        return 0
    folders = fetch() if on_openi else plain_folders(options)
    arguments = filled(arguments, folders)
    check_inputs(argv, folders)
    folders["output"].mkdir(parents=True, exist_ok=True)
    try:
        if options.install:
            subprocess.run(install_command(), check=True)
        return run(launch_command(options, arguments, folders))
    except subprocess.CalledProcessError as e:
        raise Refused(f"pip ended with exit code {e.returncode}; see its message above") from None
    finally:
        if on_openi:
            send_back()


def read(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options of this file and the arguments of msllm, the command first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--command", help="pretrain or finetune; may also stand first, without its name")
    parser.add_argument("--cards", help="processes; default: the cards found")
    parser.add_argument("--port", help="TCP port at which they meet; default 8118")
    parser.add_argument("--install", nargs="?", const="true", help="pip install -r requirements.txt first")
    for name in FOLDERS:
        parser.add_argument(f"--{name}_path", default=name, help=f"the folder {name} off OpenI (default ./{name})")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    options, arguments = parser.parse_known_args(argv)
    if options.install not in (None, "true", "false"):
        raise Refused(f"--install is {options.install!r}, expected true or false")
    options.install = options.install == "true"
    arguments = without_platform(arguments)
    if options.command:
        arguments = [options.command, *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise Refused("no command; give --command=pretrain or --command=finetune")
    return options, arguments


def without_platform(arguments: list[str]) -> list[str]:
    """Leaves out what OpenI added."""
    kept, skip = [], False
    for i, word in enumerate(arguments):
        name, equals, _ = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in PLATFORM:
            skip = not equals and i + 1 < len(arguments) and not arguments[i + 1].startswith("--")
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


def runs_on_openi() -> bool:
    """Whether c2net is installed and the platform has started this; says which."""
    if importlib.util.find_spec("c2net") is None:
        print("c2net is not installed: plain folders", flush=True)
    elif "DATA_DOWNLOAD_METHOD" not in os.environ:  # without it c2net 0.2.0 refuses
        print("c2net is installed, but DATA_DOWNLOAD_METHOD is not set: no task of OpenI; plain folders", flush=True)
    else:
        print(f"c2net, DATA_DOWNLOAD_METHOD={os.environ['DATA_DOWNLOAD_METHOD']}: a task of OpenI", flush=True)
        return True
    return False


def plain_folders(options: argparse.Namespace) -> dict[str, Path]:
    """Returns the folders that the options name."""
    return {name: Path(getattr(options, f"{name}_path")).absolute() for name in FOLDERS}


def planned_folders(options: argparse.Namespace, on_openi: bool) -> dict[str, Path]:
    """Returns the folders without fetching anything; c2net takes them from these variables."""
    if not on_openi:
        return plain_folders(options)
    names = {name: f"LOCAL_{name.upper()}_PATH" for name in FOLDERS}
    if lacking := [variable for variable in names.values() if variable not in os.environ]:
        raise Refused(f"{' and '.join(lacking)} not set, which OpenI sets; is this a task of OpenI?")
    return {name: Path(os.environ[variable]) for name, variable in names.items()}


def fetch() -> dict[str, Path]:
    """Lets c2net put data set and model into the container; returns the folders."""
    from c2net.context import prepare

    try:
        context = prepare()
    except Exception as e:  # whatever the platform's package may raise
        raise Refused(f"c2net could not prepare the task: {type(e).__name__}: {e}") from e
    return {name: Path(getattr(context, f"{name}_path")) for name in FOLDERS}


def send_back() -> None:
    """Sends the output folder to the platform."""
    from c2net.context import upload_output

    try:
        upload_output()
    except Exception as e:  # whatever the platform's package may raise
        raise Refused(f"c2net could not send the output back: {type(e).__name__}: {e}") from e


def filled(arguments: list[str], folders: dict[str, Path]) -> list[str]:
    """Returns the arguments with folders in place of {dataset}, {pretrain_model} and {output}."""
    for word in arguments:
        for name in re.findall(r"\{(\w+)\}", word):
            if name not in FOLDERS:
                raise Refused(f"{{{name}}} in {word!r} is no folder; known are {{{'}, {'.join(FOLDERS)}}}")
    if not any("{output}" in word for word in arguments):
        print("warning: no argument names {output}, the only folder that is sent back", file=sys.stderr, flush=True)
    return [re.sub(r"\{(\w+)\}", lambda match: str(folders[match[1]]), word) for word in arguments]


def check_inputs(argv: list[str], folders: dict[str, Path]) -> None:
    """Refuses an input folder that is asked for and empty: c2net only prints that a download failed."""
    for name in ("dataset", "pretrain_model"):
        if any(f"{{{name}}}" in word for word in argv) and not (
            folders[name].is_dir() and any(folders[name].iterdir())
        ):
            raise Refused(
                f"{{{name}}} is {folders[name]}, which is empty or missing; choose one for the task, or mount it"
            )


def launch_command(options: argparse.Namespace, arguments: list[str], folders: dict[str, Path]) -> list[str]:
    """Returns the command that trains on all cards; its logs are sent back too."""
    given = [(f"--{name}", getattr(options, name)) for name in ("cards", "port") if getattr(options, name)]
    own = [word for pair in given for word in pair]
    return ["bash", str(LAUNCHER), *own, "--log-dir", str(folders["output"] / "logs"), "--", *arguments]


def install_command() -> list[str]:
    """Returns the command that installs what msllm needs."""
    return [sys.executable, "-m", "pip", "install", "-r", str(REPOSITORY / "requirements.txt")]


def run(command: list[str]) -> int:
    """Runs a command to its end; SIGTERM and Ctrl-C reach it, and are waited for, so that the output is sent back."""
    print("+", shlex.join(command), flush=True)
    process = subprocess.Popen(command, env=environment(), start_new_session=True)

    def stop(number: int, frame: object) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
        print(f"training ended with exit code {code}", flush=True)
        return code if code >= 0 else 128 - code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment() -> dict[str, str]:
    """Returns the environment in which the workers run with the interpreter of this process, or with PYTHON."""
    python = Path(sys.executable)  # perhaps python3.11, which msrun does not take
    names = (python.with_name(name) for name in (python.name, "python", "python3") if name in ("python", "python3"))
    same = next((path for path in names if path.exists() and path.samefile(python)), python)
    return {"PYTHON": str(same), **os.environ}


def show(options: argparse.Namespace, arguments: list[str], folders: dict[str, Path], on_openi: bool) -> None:
    """Prints what would run, the launcher's own commands included."""
    if on_openi:
        print("c2net.context.prepare()")
    for name, folder in folders.items():
        print(f"{name}: {folder}")
    if options.install:
        print(shlex.join(install_command()))
    command = launch_command(options, arguments, folders)
    print(shlex.join(command), flush=True)
    place = command.index("--")
    done = subprocess.run([*command[:place], "--dry-run", *command[place:]], env=environment())
    if done.returncode:
        raise Refused("the launcher refuses this; see its message above")
    if on_openi:
        print("c2net.context.upload_output()")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
