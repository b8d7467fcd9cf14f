"""Builds the C++ kernels for this machine: ``python -m msllm.kernels.build``."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mindspore import ops

from msllm.files import atomic_folder
from msllm.kernels import cached

_BINDINGS = ("bindings.cpp", "bindings_attention.cpp")  # these include MindSpore's headers
_TILES = "matmul_amx.cpp"
_ONCE = ("huge_pages.cpp", "matmul_onednn.cpp", _TILES, "parallel.cpp", "paths.cpp")  # the same for all paths
# A vector kernel, and a product that is large enough for the tile unit.
_TRIAL = """
import mindspore as ms
from msllm import kernels
kernels.gelu(ms.Tensor([1.0])).asnumpy()
kernels.linear(ms.ops.ones((256, 256)), ms.ops.ones((256, 256))).asnumpy()
"""


class BuildError(Exception):
    """The kernels cannot be compiled; the message holds the compiler's words."""


def compiler() -> str | None:
    """Returns the path of the C++ compiler ($CXX, g++ or c++), or None."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        path = name and shutil.which(name)
        if path:
            return path
    return None


def binding_flags() -> list[str]:
    """Returns the flags of the sources that include MindSpore's headers, as MindSpore's own builder has them."""
    mindspore = ops.CustomOpBuilder(cached.MODULE, list(_BINDINGS), backend="CPU")
    includes = [*mindspore.get_include_paths(), sysconfig.get_path("include")]
    # -isystem keeps the headers' own warnings out of sight
    return [*mindspore.get_cflags(), *(word for path in includes for word in ("-isystem", path))]


def compile_commands(cxx: str, out: Path) -> list[list[str]]:
    """Returns the compiler commands, each writing an object file to ``out``; the longest come first.

    The sources that hold the kernels are compiled once a path, each time in a namespace of the path's name.
    """
    shared, paths = cached.kernel_flags(), cached.paths()
    commands = []
    for name in _BINDINGS:
        commands.append([cxx, *binding_flags(), *_to_object(name, out, name)])
    for name in _ONCE:
        native = paths.get("avx512", []) if name == _TILES else []
        listed = [f"-DMSLLM_PATHS={' '.join(f'PATH({path})' for path in paths)}"]
        commands.append([cxx, *shared, *native, *listed, *_to_object(name, out, name)])
    others = sorted(path.name for path in cached.SOURCES.glob("*.cpp") if path.name not in (*_BINDINGS, *_ONCE))
    for path, flags in paths.items():
        for name in others:
            commands.append([cxx, *shared, *flags, f"-DMSLLM_PATH={path}", *_to_object(name, out, f"{path}-{name}")])
    return commands


def _to_object(source: str, out: Path, name: str) -> list[str]:
    return ["-c", str(cached.SOURCES / source), "-o", str(out / f"{name}.o")]


def build() -> Path:
    """Builds this machine's kernels unless they are there, and returns their folder.

    Two processes may call it at once: one builds, the other waits and finds the result.

    Raises:
        BuildError: no Linux, no compiler, or a compiler's error.
    """
    if sys.platform != "linux":
        raise BuildError(f"the C++ kernels are for Linux, this is {sys.platform}")
    cxx = compiler()
    if cxx is None:
        raise BuildError("no C++ compiler found: install g++ (for example `apt-get install g++`) or set CXX")
    target = cached.folder()
    with _lock(target.with_suffix(".lock")):
        with contextlib.suppress(cached.NotBuilt):
            cached.check(target)
            return target
        with atomic_folder(target) as new, tempfile.TemporaryDirectory() as objects:
            _compile(cxx, Path(objects), new / cached.LIBRARY)
            digest = hashlib.sha256((new / cached.LIBRARY).read_bytes()).hexdigest()
            (new / cached.CHECKSUM).write_text(digest + "\n", "ascii")
    return target


def _compile(cxx: str, objects: Path, library: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, compile_commands(cxx, objects)))
    link_flags = ops.CustomOpBuilder(cached.MODULE, list(_BINDINGS), backend="CPU").get_ldflags()
    _run([cxx, *map(str, sorted(objects.glob("*.o"))), *link_flags, "-pthread", "-o", str(library)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed with code {done.returncode}:\n{done.stderr[-2000:].strip()}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where nothing is built

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process ends
        yield


def status() -> dict[str, object]:
    """Returns {"usable", "folder", "reason", "compiler", "threads", "paths"} of this build; builds nothing."""
    found = {"usable": True, "folder": str(cached.folder()), "reason": "", "compiler": compiler()}
    found |= {"threads": None, "paths": None}
    try:
        module = cached.load()
        found.update(threads=module.thread_count(), paths=", ".join(module.path_names()))
    except cached.NotBuilt as e:
        found.update(usable=False, reason=str(e))
    return found


def main() -> int:
    """Builds and tries the kernels; returns 0 also where there is no compiler, as stock kernels do the work then."""
    try:
        cached.check(cached.folder())
        print(f"C++ kernels are already built: {cached.folder()}")
    except cached.NotBuilt:
        if sys.platform != "linux" or compiler() is None:
            print(
                "C++ kernels are not built: they need Linux and a C++ compiler (for example `apt-get install g++`). "
                "Everything works without them, with slower stock kernels."
            )
            return 0
        print("building C++ kernels (about a minute)...", flush=True)
        start = time.monotonic()
        try:
            folder = build()
        except BuildError as e:
            print(f"C++ kernels are not built: {e}", file=sys.stderr)
            return 1
        print(f"built in {time.monotonic() - start:.0f} s: {folder}")
    return _try()


def _try() -> int:
    """Runs one kernel in another process: a library that the processor cannot run must not stay."""
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL],
        env={**os.environ, "MSLLM_KERNELS": "cpu", "MSLLM_PATH": ""},  # whatever the user has set
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return 0
    shutil.rmtree(cached.folder(), ignore_errors=True)
    print(
        f"the C++ kernels do not run here (code {done.returncode}) and were removed: {done.stderr[-500:].strip()}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
