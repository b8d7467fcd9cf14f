"""Fixtures that every folder of tests shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real files, from MSLLM_DATA; tests that ask for it skip by name without it."""
    folder = os.environ.get("MSLLM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MSLLM_DATA names no folder of real files")
    return Path(folder)
