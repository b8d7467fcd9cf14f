"""Files: reading with errors that a user can act on, writing so that a crash leaves the old file whole."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msllm.errors import UserError


def read_text(path: str | Path) -> str:
    """Returns the text of a UTF-8 file (a byte-order mark is dropped); UserError when missing or not UTF-8."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}; check the path") from None
    return decode_text(content, path)


def decode_text(content: bytes, path: str | Path) -> str:
    """Returns the text of a file's content, as read_text does; ``path`` is named in the error."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8 text: byte {e.start} is 0x{e.object[e.start]:02x}; convert it, "
            f"for example with iconv -f gb18030 -t utf-8"
        ) from None


def read_json(path: str | Path):
    """Returns the parsed JSON of a UTF-8 file; UserError names the line and column of a syntax error."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as e:
        raise UserError(
            f"{path} is not JSON: {json_fault(e)} at line {e.lineno}, column {e.colno}; mend that line"
        ) from None


def json_fault(error: json.JSONDecodeError) -> str:
    """Returns what is wrong, without the "at" that some of Python's messages end in: the place follows."""
    return error.msg.removesuffix(" at")


def read_json_lines(path: str | Path) -> list[dict]:
    """Returns the whole lines of a log that grows by a JSON object a line; a kill may have cut the last one."""
    entries, path = [], Path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return entries


def write_json(path: str | Path, value) -> None:
    """Writes ``value`` as indented JSON, replacing the file in one step."""
    with atomic_file(path) as tmp:
        tmp.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is synced and renamed to ``path``.

    On any error the temporary file is removed and ``path`` is untouched. A full disk or a read-only
    folder raises UserError.
    """
    path = Path(path)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(fd)
        tmp = Path(name)
        try:
            yield tmp
            tmp.chmod(0o666 & ~_umask())
            _sync(tmp)
            tmp.replace(path)
            _sync(path.parent)
        finally:
            tmp.unlink(missing_ok=True)


def make_folder(path: str | Path) -> Path:
    """Returns a folder, made where it is missing; UserError where a file is in its place or the disk refuses."""
    path = Path(path)
    with _disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; on success its files are synced and it is renamed to ``path``.

    An older folder at ``path`` is replaced; on any error it stays whole. A full disk or a read-only
    folder raises UserError.
    """
    path = Path(path)
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield tmp
            _settle(tmp)
            old = None
            if path.exists():  # a folder cannot be renamed over a full one: move the old one aside first
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent)) / "old"
                path.rename(old)
            tmp.rename(path)
            _sync(path.parent)
            if old is not None:
                shutil.rmtree(old.parent)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


@contextlib.contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder inside ``folder``; on success its files are synced and renamed into ``folder``.

    Other files in ``folder`` stay, those of the same name are replaced one by one; on an error all stay whole.
    """
    folder = make_folder(folder)
    with _disk_errors(folder):
        tmp = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
        try:
            yield tmp
            _settle(tmp)
            for file in sorted(tmp.iterdir()):
                file.replace(folder / file.name)
            _sync(folder)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.EISDIR,
            errno.EFBIG,
        ):
            raise
        raise UserError(
            f"cannot write {path}: {e.strerror}; what was saved before is untouched; "
            f"free space or choose another folder"
        ) from e


def _settle(folder: Path) -> None:
    """Gives what a temporary folder holds the usual permissions (temporary files are private) and syncs it."""
    mask = _umask()
    folder.chmod(0o777 & ~mask)
    for path in sorted(folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)


def _sync(path: Path) -> None:
    flags = os.O_RDONLY if os.name != "nt" else os.O_RDWR
    if os.name == "nt" and path.is_dir():
        return
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
