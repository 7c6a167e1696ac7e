"""Where clar keeps files, and how it writes them so that a reader never sees half of one."""

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs


def cache_dir() -> Path:
    """The folder of decoded data sets: `$CLAR_CACHE`, else the user's cache folder of this system."""
    return Path(os.environ.get("CLAR_CACHE") or platformdirs.user_cache_dir("clar")).expanduser().absolute()


def write_atomically(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Write `path` as a whole or not at all, also when the process or the machine dies half way.

    Args:
        path: the file; its folder is made where it is missing.
        content: bytes, text (UTF-8), or a function that writes to the open binary file.

    Raises:
        OSError: the disk is full or the folder cannot be written; it names `path`, which is then as it was before.
    """
    try:
        _write(path, content)
    except OSError as error:
        raise _naming(path, error) from error
    except RuntimeError as error:
        # torch.save says of a full disk that a stream writer failed, and keeps the reason in the exception's context.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise _naming(path, cause) from error


def _naming(path: Path, error: OSError) -> OSError:
    return OSError(error.errno, error.strerror or str(error), str(path))


def _write(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer: two processes may write the same path at the same time.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path`; the system frees it when a process dies.

    Args:
        path: the lock, in a folder that is there.
        busy: what to say, on stderr, where another process holds it and is waited for.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{busy}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of `value` as indented JSON, keys in their own order."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote; empty where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
