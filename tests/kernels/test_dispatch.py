"""The choice of a table: names, signatures, and what happens without a usable build."""

import inspect
import sys
import warnings

import pytest

from msllm import kernels
from msllm.errors import UserError
from msllm.kernels import ascend, cached, stock


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache of builds and no memory of an earlier one; the table in use comes back afterwards."""
    before = kernels.active()
    with monkeypatch.context() as patch:
        patch.setenv("MSLLM_CACHE", str(tmp_path))
        patch.delitem(sys.modules, "msllm.kernels.cpu", raising=False)
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


@pytest.mark.parametrize("damage", ["cut", "changed", "no checksum"])
def test_a_damaged_build_is_not_loaded(cpp, fresh, monkeypatch, damage):
    with monkeypatch.context() as patch:
        patch.delenv("MSLLM_CACHE")
        good = cached.folder()
    bad = cached.folder()
    bad.mkdir(parents=True)
    library = (good / cached.LIBRARY).read_bytes()
    if damage != "no checksum":
        (bad / cached.CHECKSUM).write_bytes((good / cached.CHECKSUM).read_bytes())
    changed = {"cut": library[:100_000], "changed": library[:-1] + b"?", "no checksum": library}[damage]
    (bad / cached.LIBRARY).write_bytes(changed)
    assert "are damaged" in one_warning()
    with pytest.raises(UserError, match="are damaged"):
        kernels.use("cpu")
