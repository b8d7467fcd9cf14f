"""The choice of a table: names, signatures, and what happens without a usable build."""

import inspect
import os
import subprocess
import sys
import warnings

import pytest

from msllm import kernels
from msllm.errors import UserError
from msllm.kernels import ascend, build, cached, stock


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache of builds and no memory of an earlier one; the table in use comes back afterwards."""
    before = kernels.active()
    with monkeypatch.context() as patch:
        patch.setenv("MSLLM_CACHE", str(tmp_path))
        for module in ("cpu", "cpu_attention", "compiled"):
            patch.delitem(sys.modules, f"msllm.kernels.{module}", raising=False)
        yield tmp_path / "kernels"
    kernels.use(before)


def test_signatures_are_the_same_in_all_tables(cpp):
    for name in kernels.table():
        want = inspect.signature(getattr(stock, name))
        for module in (cpp, ascend):
            assert inspect.signature(getattr(module, name)) == want, f"{module.__name__}.{name}"
        assert getattr(stock, name).__doc__


def test_use_rebinds_every_function(cpp):
    before = kernels.active()
    try:
        for name, module in (("stock", stock), ("cpu", cpp)):
            kernels.use(name)
            assert kernels.active() == name
            assert all(getattr(kernels, function) is getattr(module, function) for function in kernels.table())
    finally:
        kernels.use(before)


def test_unknown_kernels_name_the_nearest():
    with pytest.raises(UserError, match=r"unknown kernels 'stcok' \(did you mean 'stock'\?\)"):
        kernels.use("stcok")


def test_unknown_path_names_the_valid_ones(cpp):
    before = cpp.path_in_use()
    with pytest.raises(UserError, match=r"unknown path 'avx513'.*this machine has plain.*set MSLLM_PATH"):
        cpp.use_path("avx513")
    assert cpp.path_in_use() == before


def test_the_environment_chooses_kernels_and_path(cpp):
    command = [
        sys.executable,
        "-c",
        "from msllm import kernels; from msllm.kernels import cpu; print(cpu.path_in_use())",
    ]
    done = subprocess.run(
        command, env={**os.environ, "MSLLM_PATH": "plain"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["plain"]


def test_a_misspelt_path_is_an_error_and_costs_no_build(cpp, monkeypatch):
    monkeypatch.setenv("MSLLM_PATH", "avx513")
    done = subprocess.run([sys.executable, "-c", "import msllm.kernels"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "unknown path 'avx513'" in done.stderr
    assert build._try() == 0 and cached.folder().is_dir()


def test_ascend_kernels_need_an_ascend_device(monkeypatch):
    monkeypatch.setattr(kernels, "DEVICE", "CPU")
    with pytest.raises(UserError, match="needs an Ascend device, found CPU"):
        kernels.use("ascend")


def one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernels.use("auto")
    assert kernels.active() == "stock"
    (warning,) = caught
    return str(warning.message)


def test_without_a_build_stock_kernels_work_with_one_warning(fresh):
    message = one_warning()
    assert "they have not been built; run `make setup`" in message and message.count("make setup") == 1


def test_a_build_for_another_machine_is_left_alone(fresh, monkeypatch):
    (fresh / "0123456789abcdef").mkdir(parents=True)
    (fresh / "0123456789abcdef" / cached.LIBRARY).write_bytes(b"x")
    assert "for other sources or another machine" in one_warning()


_REBUILD = """
import shutil, sys
from msllm import kernels
from msllm.kernels import build
build._compile = lambda cxx, objects, library: shutil.copyfile(sys.argv[1], library)  # what the compiler would write
kernels.use("cpu")
print(kernels.active())
"""


@pytest.mark.parametrize("damage", ["cut", "changed", "no checksum"])
def test_a_damaged_build_is_built_again(cpp, monkeypatch, tmp_path, damage):
    good = cached.folder()
    monkeypatch.setenv("MSLLM_CACHE", str(tmp_path))
    bad = cached.folder()
    bad.mkdir(parents=True)
    library = (good / cached.LIBRARY).read_bytes()
    if damage != "no checksum":
        (bad / cached.CHECKSUM).write_bytes((good / cached.CHECKSUM).read_bytes())
    changed = {"cut": library[:100_000], "changed": library[:-1] + b"?", "no checksum": library}[damage]
    (bad / cached.LIBRARY).write_bytes(changed)
    with pytest.raises(cached.Damaged):
        cached.check(bad)
    command = [sys.executable, "-c", _REBUILD, str(good / cached.LIBRARY)]
    environment = {**os.environ, "MSLLM_KERNELS": "stock"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["cpu"], done.stderr
    assert f"the C++ kernels in {bad} are damaged; building them again" in done.stderr
    assert cached.check(bad).read_bytes() == library


def test_a_damaged_build_that_cannot_be_built_again_leaves_stock_kernels(fresh, monkeypatch, capsys):
    cached.folder().mkdir(parents=True)
    (cached.folder() / cached.LIBRARY).write_bytes(b"x")
    monkeypatch.setenv("CXX", "/bin/false")
    assert "failed with code 1" in one_warning()
    assert "are damaged; building them again" in capsys.readouterr().err
