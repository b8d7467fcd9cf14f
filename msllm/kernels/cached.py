"""Where the compiled C++ kernels lie, and how they are loaded without ever crashing the process.

A build serves one machine: its folder is named by a hash of the sources, the flags, the versions of MindSpore and
Python, and the processor. Anything else, say a home folder shared by two kinds of machine, is another folder.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import mindspore as ms

SOURCES = Path(__file__).parent / "cpu"
MODULE = "msllm_kernels"
LIBRARY = f"{MODULE}.so"
CHECKSUM = "sha256"


class NotBuilt(Exception):
    """There is no usable build; the message says why and what to do."""


class Damaged(NotBuilt):
    """There is a build, but not as the compiler wrote it."""


def kernel_flags() -> list[str]:
    """Returns the compiler flags that all kernel sources share.

    No -ffast-math: NaN must stay NaN, so that a loss that diverges is seen. The loops marked `omp simd` are
    vectorised without OpenMP's run-time, whose threads would fight with MindSpore's.
    """
    return [
        "-std=c++17",
        "-O3",
        "-fPIC",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fopenmp-simd",
    ]


def paths() -> dict[str, list[str]]:
    """Returns the sets of vector instructions that the kernels are compiled for, the fastest last: name -> flags.

    "plain" is what every processor of the family has. Only paths that this processor can run are there.
    """
    machine, features = platform.machine(), set(processor().split())
    if machine not in ("x86_64", "AMD64"):
        return {"plain": ["-mcpu=native"]}
    found = {"plain": []}
    if {"avx2", "fma"} <= features:
        found["avx2"] = ["-mavx2", "-mfma"]
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
        # And whatever else this processor has, the tile unit among it.
        found["avx512"] = ["-march=native", "-mprefer-vector-width=512"]
    return found


def processor() -> str:
    """Returns the processor's model and feature flags, as far as the system tells."""
    words = {platform.machine(), platform.processor()}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "CPU implementer", "CPU part"):
            words.add(value.strip())
    return "\n".join(sorted(words))


def key() -> str:
    """Returns the name of this machine's build: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    versions = [ms.__version__, sys.version, *kernel_flags(), str(paths()), processor()]
    digest.update("\n".join(versions).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def root() -> Path:
    """Returns the folder of all builds: $MSLLM_CACHE/kernels, or ~/.cache/msllm/kernels."""
    cache = os.environ.get("MSLLM_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "msllm")
    return Path(cache) / "kernels"


def folder() -> Path:
    """Returns the folder of this machine's build, which may not exist."""
    return root() / key()


def check(build: Path) -> Path:
    """Returns the library of a build folder; NotBuilt when it is missing, Damaged when it has changed.

    A library cut short would kill the process when it is loaded, so its checksum is compared first.
    """
    library = build / LIBRARY
    if not library.is_file():
        others = root().is_dir() and any((other / LIBRARY).is_file() for other in root().iterdir())
        reason = "the builds there are for other sources or another machine" if others else "they have not been built"
        raise NotBuilt(f"no C++ kernels in {build}: {reason}; run `make setup`")
    try:
        same = hashlib.sha256(library.read_bytes()).hexdigest() == (build / CHECKSUM).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        raise Damaged(f"the C++ kernels in {build} are damaged; run `make setup` to build them again")
    return library


def load() -> ModuleType:
    """Returns the compiled module of this machine's build; NotBuilt when there is none that works."""
    return _import(check(folder()))


@functools.cache  # a process can load it only once
def _import(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE, library)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as e:
        raise NotBuilt(f"cannot load {library}: {e}; run `make setup` to build it again") from e
    return module
