"""Building the C++ kernels: the key, the messages, and that the sources compile for aarch64 as well."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from msllm.kernels import build, cached

CROSS = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def test_key_depends_on_sources_processor_and_versions(monkeypatch, tmp_path):
    keys = [cached.key()]
    assert cached.key() == keys[0]
    for name, value in (("processor", lambda: "another processor"), ("kernel_flags", lambda: ["-O0"])):
        with monkeypatch.context() as patch:
            patch.setattr(cached, name, value)
            keys.append(cached.key())
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "3.99")
        keys.append(cached.key())
    shutil.copytree(cached.SOURCES, tmp_path / "cpu")
    (tmp_path / "cpu" / "norm.cpp").write_text("// changed\n")
    monkeypatch.setattr(cached, "SOURCES", tmp_path / "cpu")
    keys.append(cached.key())
    assert len(set(keys)) == 5


def test_flags_keep_nan_and_stay_away_from_openmp_threads():
    flags = [*cached.kernel_flags(), *(flag for flags in cached.paths().values() for flag in flags)]
    assert "-ffast-math" not in flags and "-ffinite-math-only" not in flags and "-fopenmp" not in flags


@pytest.mark.parametrize(
    "machine, features, want",
    [
        ("x86_64", "sse2", ["plain"]),
        ("x86_64", "sse2 avx2 fma", ["plain", "avx2"]),
        ("x86_64", "sse2 avx2 fma avx512f avx512bw avx512dq avx512vl", ["plain", "avx2", "avx512"]),
        ("aarch64", "asimd", ["plain"]),
    ],
)
def test_only_paths_that_the_processor_has_are_built(monkeypatch, tmp_path, machine, features, want):
    monkeypatch.setattr(cached, "processor", lambda: f"Some model\n{features}")
    monkeypatch.setattr(cached.platform, "machine", lambda: machine)
    assert list(cached.paths()) == want
    built = [command[-1] for command in build.compile_commands("g++", tmp_path) if command[-1].endswith("-norm.cpp.o")]
    assert [name.rsplit("/", 1)[1] for name in built] == [f"{path}-norm.cpp.o" for path in want]


def test_without_a_compiler_main_says_so_and_succeeds(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MSLLM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.main() == 0
    assert "need Linux and a C++ compiler" in capsys.readouterr().out
    status = build.status()
    assert status["usable"] is False and status["compiler"] is None and "run `make setup`" in status["reason"]
    with pytest.raises(build.BuildError, match="install g\\+\\+"):
        build.build()


def test_a_failing_compiler_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("MSLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler))
    assert build.main() == 1
    assert "error: no such thing" in capsys.readouterr().err
    assert not cached.folder().exists()


def test_status_of_a_usable_build(cpp):
    status = build.status()
    assert status["usable"] is True and status["folder"] == str(cached.folder()) and status["threads"] >= 1
    assert status["paths"].split(", ")[0] == "plain"


@pytest.mark.skipif(CROSS is None, reason="needs g++-aarch64-linux-gnu")
def test_sources_compile_for_aarch64():
    flags = ["-std=c++17", "-O1", "-fPIC", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror", "-DMSLLM_PATHS=PATH(plain)"]
    sources = sorted(path.name for path in cached.SOURCES.glob("*.cpp") if path.name not in build._BINDINGS)
    units = [(flags, [name]) for name in sources]
    if platform.machine() == "x86_64":  # elsewhere the Python headers here are not those of a cross build
        # As one unit: MindSpore's headers, which both include, take half a minute.
        units.insert(0, ([*build.binding_flags(), "-O0"], list(build._BINDINGS)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (_, names), done in zip(units, pool.map(_compiled_for_aarch64, units)):
            assert done.returncode == 0, f"{names}: {done.stderr[-2000:]}"


def _compiled_for_aarch64(unit):
    flags, names = unit
    text = "".join(f'#include "{cached.SOURCES / name}"\n' for name in names)
    command = [CROSS, *flags, "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.mark.skipif(CROSS is None or QEMU is None, reason="needs g++-aarch64-linux-gnu and qemu-user")
def test_kernels_compute_the_same_on_aarch64(tmp_path):
    check = Path(__file__).with_name("plain_check.cpp")
    sources = [str(path) for path in cached.SOURCES.glob("*.cpp") if path.name not in build._BINDINGS]
    program = tmp_path / "check"
    subprocess.run(
        [
            CROSS,
            "-std=c++17",
            "-O2",
            "-fopenmp-simd",
            "-ffp-contract=fast",
            "-DMSLLM_PATHS=PATH(plain)",
            "-static",
            "-pthread",
            "-I",
            str(cached.SOURCES),
            str(check),
            *sources,
            "-o",
            str(program),
        ],
        check=True,
    )
    done = subprocess.run([QEMU, str(program)], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0 and done.stdout.endswith("all right\n"), done.stdout + done.stderr
