"""Where clar keeps files, and how it writes them so that a reader never sees half of one.

Paths are of folders or, for a storage, of a bucket (`clar.buckets`): those have the methods of `pathlib.Path`, and what
differs between the two is here.
"""

import errno
import io
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import platformdirs

from clar.errors import UserError

Item = TypeVar("Item")
Found = TypeVar("Found")

_AT_ONCE = 32

AWAY = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.ENOLINK, errno.EPIPE,
})  # fmt: skip
"""Error numbers that files on a network give while their server is away."""


class Lock(Protocol):
    """What `lock` gives; a `filelock.FileLock` is one."""

    def acquire(self, timeout: float | None = None) -> object: ...  # noqa: D102

    def release(self) -> None: ...  # noqa: D102

    def __enter__(self) -> object: ...

    def __exit__(self, *error: Any) -> object: ...


def place(text: str | Path) -> Path:
    """The folder, or the place in a bucket, that a text names.

    Raises:
        UserError: a URI of neither, or what buckets need is not installed.
    """
    if "://" not in str(text):
        return Path(text)
    try:
        from clar import buckets
    except ImportError as error:
        raise UserError(
            f"{text}: {error}; a storage in a bucket needs the extra: pip install 'clar[cluster]'"
        ) from None
    return buckets.path(str(text))


def is_folder(path: Path) -> bool:
    """Whether a path is one of a file system, and not of a bucket."""
    return isinstance(path, Path)


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
        (_write if is_folder(path) else _put)(path, content)
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


def _put(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    from clar import buckets

    if callable(content):
        file = io.BytesIO()
        content(file)
        content = file.getvalue()
    buckets.write(path, content.encode() if isinstance(content, str) else content)


def read_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_folder(path):
        return path.read_bytes()
    from clar import buckets

    return buckets.read(path)


def append(path: Path, text: str) -> None:
    """Write a text (UTF-8) at the end of a file. In a bucket that writes the file anew: no two may do so at a time."""
    if is_folder(path):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        return
    try:
        before = read_bytes(path)
    except FileNotFoundError:
        before = b""
    write_atomically(path, before + text.encode())


def make_folder(path: Path) -> None:
    """Make a folder and those above it; in a bucket there are none to be made."""
    if is_folder(path):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    if is_folder(path):
        path.unlink(missing_ok=True)
        return
    from clar import buckets

    buckets.remove(path)


def move(source: Path, target: Path, last: str) -> None:
    """Move a folder; in a bucket, where that takes a while, the file called `last` goes last."""
    if is_folder(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    from clar import buckets

    buckets.move(source, target, last)


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file for a library that wants one on a disk: itself, or a copy of what a bucket holds.

    Raises:
        FileNotFoundError: there is none in the bucket.
    """
    if is_folder(path):
        yield path
        return
    content = read_bytes(path)
    with tempfile.TemporaryDirectory(prefix="clar-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        yield copy


def at_once(function: Callable[[Item], Found], items: Iterable[Item], storage: Path) -> list[Found]:
    """`map`, for what reads a file of a storage each time: in a bucket, many at a time, as each waits for an answer."""
    if is_folder(storage):
        return list(map(function, items))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


def linked(file: Path, name: Path) -> bool:
    """Give a file of this machine's a second name; whether that could be done: not every file system knows links."""
    try:
        os.link(file, name)
    except OSError:
        return False
    return True


def upload(source: Path, target: Path) -> None:
    """Write a file of this machine's into a bucket, in parts where it is large: whole or not at all."""
    from clar import buckets

    buckets.upload(source, target)


def download(source: Path, target: Path) -> None:
    """Write what a bucket holds into a file of this machine's."""
    from clar import buckets

    buckets.download(source, target)


def lock(path: Path, timeout: float = -1) -> Lock:
    """The lock of a path, which frees itself when its holder dies.

    Args:
        path: the lock; its folder is made where it is missing.
        timeout: seconds after which waiting for it raises `filelock.Timeout`; below 0: never.
    """
    if is_folder(path):
        from filelock import FileLock

        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, timeout=timeout)
    from clar import buckets

    return buckets.Lease(path, timeout)


class Pace:
    """Says when to write what is written again and again, such as checkpoints.

    So seldom that the writes take no more than `share` of the time, but at least every `longest` seconds.

    Args:
        share: of the time, that writing may take.
        longest: seconds of work that may be lost.
    """

    def __init__(self, share: float, longest: float = float("inf")) -> None:
        self.share, self.longest = share, longest
        self.cost = 0.0
        """Seconds that the last write took."""
        self.written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time, at a moment that suits."""
        return time.monotonic() - self.written >= min(self.cost / self.share, self.longest - self.cost)

    def overdue(self) -> bool:
        """Whether it is time at any moment: as much is at stake as may be."""
        return time.monotonic() - self.written >= self.longest - self.cost

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While it is written."""
        began = time.monotonic()
        yield
        self.written = time.monotonic()
        self.cost = self.written - began


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock `path`, see `lock`.

    Args:
        path: the lock.
        busy: what to say, on stderr, where another process holds it and is waited for.
    """
    from filelock import Timeout

    one = lock(path)
    try:
        one.acquire(timeout=0)
    except Timeout:
        print(f"{busy}; waiting for it", file=sys.stderr)
        one.acquire()
    try:
        yield
    finally:
        one.release()


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of `value` as indented JSON, keys in their own order."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote; empty where there is none, or none that can be read."""
    try:
        content = json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
