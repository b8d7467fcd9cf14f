import json
import shutil

import pytest


@pytest.fixture
def vocabulary(data_folder, tmp_path):
    """Returns a function that copies a real vocabulary to a new folder and writes the given JSON files beside it."""

    def make(name, **files):
        source = data_folder / "tokenizers" / name
        if not source.is_dir():
            pytest.skip(f"{source} is not there")
        folder = tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for file in source.iterdir():
            shutil.copyfile(file, folder / file.name)
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make
