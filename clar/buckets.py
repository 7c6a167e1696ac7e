"""A storage on S3, or on what speaks its protocol: paths with the methods of `pathlib.Path`, and locks.

Loaded where a storage is named by a URI, never for a folder. An object is written whole or not at all, and whoever
reads it next reads what was written last. Requests that S3 cannot answer at the moment are sent again for a quarter of
an hour, and the trial that waits for longer than that starts again from its last checkpoint. Credentials, region and
endpoint are those of the environment (`AWS_PROFILE`, `AWS_ENDPOINT_URL`, a machine's own role); none is ever part of a
path.
"""

import asyncio
import errno
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import filelock
import s3fs
import upath.registry
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from fsspec.asyn import sync_wrapper
from upath.implementations.cloud import S3Path

from clar.errors import UserError

_PATIENCE_SECONDS = 900.0
_WAIT_SECONDS = 15.0
"""Between two tries, at most."""
LEASE_SECONDS, _RENEW_SECONDS = 60.0, 15.0
"""A lock that was not renewed for so long is nobody's. Clocks of machines that share a storage may differ by half."""
_ASK_SECONDS = 0.5
_PASSING = {errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
"""What s3fs makes of the answers 500 to 599, of `SlowDown`, and of two writes at the same moment."""
_FULL = 507
_CLIENT = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60}
"""botocore's own tries would be unheard."""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Patient(s3fs.S3FileSystem):
    """S3 that is asked again while it does not answer."""

    retries = 2
    patience = _PATIENCE_SECONDS

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        began, wait, away = time.monotonic(), 0.5, False
        while True:
            try:
                answer = await super()._call_s3(method, *arguments, **options)
            except Exception as error:
                where = f"s3://{options.get('Bucket', '')}/{options.get('Key', options.get('Prefix', ''))}"
                if _status(error) == _FULL or "Quota" in _code(error):
                    raise OSError(errno.ENOSPC, _reason(error), where) from error
                if not _passes(error):
                    raise
                if time.monotonic() - began + wait > self.patience:
                    raise OSError(errno.EIO, f"no answer ({_reason(error)})", where) from error
                if not away:
                    away = True
                    _say(f"{where} does not answer ({_reason(error)}); it is asked again")
                await asyncio.sleep(wait)
                wait = min(2 * wait, _WAIT_SECONDS)
            else:
                if away:
                    _say(f"{where} answers again")
                return answer

    call_s3 = sync_wrapper(_call_s3)


class Bucket(S3Path):
    """A path in a bucket."""

    @classmethod
    def _fs_factory(cls, urlpath: str, protocol: str, storage_options: Any) -> _Patient:
        # Others write here too: a listing that is kept would be one of a moment ago.
        return _Patient(use_listings_cache=False, config_kwargs=_CLIENT, **storage_options)


# Paths made of others are made through the registry; this process uses it for nothing else.
upath.registry.register_implementation("s3", Bucket, clobber=True)


def path(uri: str) -> Path:
    """The path that an `s3://bucket/key` URI names.

    Raises:
        UserError: it names none, or carries credentials.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3":
        raise UserError(f"{scheme}://: a storage is a folder or s3://BUCKET/PREFIX; mount others as a folder")
    if "@" in bucket:
        raise UserError("s3://...@: credentials belong into the environment, AWS_PROFILE for one, not into a URI")
    if not bucket or not key.strip("/"):
        raise UserError(f"{uri}: no s3://BUCKET/PREFIX")
    # It has a path's methods, as far as the project uses them, without being of its class.
    return cast(Path, Bucket(f"s3://{bucket}/{key.strip('/')}"))


def check(place: Path, write: bool) -> None:
    """See to it that a storage can be read, and, for writing, that two writers cannot take one lock.

    Raises:
        UserError: it cannot, with the reason.
    """
    patience, _Patient.patience = _Patient.patience, 10.0
    try:
        fs = _files(place)
        if not write:
            fs.call_s3("list_objects_v2", Bucket=_bucket(place), Prefix=_key(place), MaxKeys=1)
            return
        probe = place / f".probe-{secrets.token_hex(4)}"
        where = {"Bucket": _bucket(probe), "Key": _key(probe)}
        fs.call_s3("put_object", **where, Body=b"", IfNoneMatch="*")
        try:
            fs.call_s3("put_object", **where, Body=b"", IfNoneMatch="*")
        except OSError as error:
            if not _refused(error):
                raise
        else:
            raise UserError(
                f"--storage {place}: this server writes twice what it was to write only once (If-None-Match), so that "
                f"there can be no locks; use AWS S3, a recent MinIO or Ceph, or a folder"
            )
        finally:
            fs.call_s3("delete_object", **where)
    except FileNotFoundError:
        raise UserError(f"--storage {place}: there is no bucket {_bucket(place)}; make it first") from None
    except NoCredentialsError:
        raise UserError(
            f"--storage {place}: no credentials; give them by AWS_PROFILE, by AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or by the machine's role"
        ) from None
    except (OSError, BotoCoreError) as error:
        raise UserError(f"--storage {place}: {_reason(error)}") from None
    finally:
        _Patient.patience = patience


def read(place: Path) -> bytes:
    """An object, in one request.

    Raises:
        FileNotFoundError: there is none.
    """
    return cast(bytes, _files(place).cat_file(_path(place)))


def write(place: Path, content: bytes) -> None:
    """Write an object, whole or not at all."""
    _files(place).pipe_file(_path(place), content)


def upload(file: Path, place: Path) -> None:
    """Write a file of any size, in parts, whole or not at all."""
    _files(place).put_file(os.fspath(file), _path(place))


def download(place: Path, file: Path) -> None:
    """Write an object of any size into a file."""
    _files(place).get_file(_path(place), os.fspath(file))


def remove(place: Path) -> None:
    """Remove an object, if it is there."""
    _files(place).call_s3("delete_object", Bucket=_bucket(place), Key=_key(place))


def move(source: Path, target: Path, last: str) -> None:
    """Move all objects below `source` to below `target`: copied first, removed then, `last` as the last one.

    Interrupted, it leaves either all of them in both places, or fewer and `last` at `source`.
    """
    fs = _files(source)
    found = sorted(fs.find(_path(source)), key=lambda one: one.endswith(f"/{last}"))
    for one in found:
        fs.cp_file(one, one.replace(_path(source), _path(target), 1))
    for one in found:
        fs.rm_file(one)


class Lease:
    """A lock in a bucket: an object that only one can make, and that its holder renews while it lives.

    Used like `filelock.FileLock`. Whoever dies with it loses it within a minute; so does a process that stands still
    for so long. What two processes then write at the same time is the same, or one of them whole.

    Args:
        place: the object.
        timeout: seconds to wait for it, below 0: for as long as it takes.
    """

    def __init__(self, place: Path, timeout: float = -1) -> None:
        self.place, self.timeout = place, timeout
        self.token = secrets.token_hex(8).encode()
        self.where = {"Bucket": _bucket(place), "Key": _key(place)}
        self.call: Callable[..., Any] = _files(place).call_s3
        self.etag = ""
        self.count = 0

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for the lock and take it.

        Raises:
            filelock.Timeout: another process has had it all the time.
        """
        timeout = self.timeout if timeout is None else timeout
        if self.count == 0:
            deadline = time.monotonic() + timeout
            while not (self._make() or self._is_own() or self._take_over()):
                if timeout >= 0 and time.monotonic() >= deadline:
                    raise filelock.Timeout(str(self.place))
                time.sleep(_ASK_SECONDS)
            self.left = threading.Event()
            threading.Thread(target=self._renew, args=[self.left], name="lease", daemon=True).start()
        self.count += 1

    def release(self) -> None:
        """Give the lock back."""
        self.count -= 1
        if self.count == 0:
            self.left.set()
            # It may be another's by now.
            if self._is_own():
                self.call("delete_object", **self.where)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _put(self, **condition: str) -> bool:
        try:
            self.etag = self.call("put_object", **self.where, Body=self.token, **condition)["ETag"]
        except FileNotFoundError:  # what was to be replaced is gone
            return False
        except OSError as error:
            if _refused(error):
                return False
            raise
        return True

    def _make(self) -> bool:
        return self._put(IfNoneMatch="*")

    def _is_own(self) -> bool:
        """Whether it is this one's; an answer that was lost may have made it so."""
        try:
            return read(self.place) == self.token
        except FileNotFoundError:
            return False

    def _take_over(self) -> bool:
        """Take it from a holder that does not renew it."""
        try:
            held = self.call("head_object", **self.where)
        except FileNotFoundError:
            return False
        age = (datetime.now(UTC) - held["LastModified"]).total_seconds()
        return age > LEASE_SECONDS and self._put(IfMatch=held["ETag"])

    def _renew(self, left: threading.Event) -> None:
        while not left.wait(_RENEW_SECONDS):
            with suppress(OSError, BotoCoreError):
                if not self._put(IfMatch=self.etag):
                    return


def _files(place: Path) -> Any:
    return cast(Bucket, place).fs


def _path(place: Path) -> str:
    """`bucket/key`, as s3fs names it."""
    return str(cast(Bucket, place).path)


def _bucket(place: Path) -> str:
    return _path(place).partition("/")[0]


def _key(place: Path) -> str:
    return _path(place).partition("/")[2]


def _response(error: BaseException | None) -> dict[str, Any]:
    """What the server answered, where that is the reason."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return error.response if error else {}


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _refused(error: BaseException) -> bool:
    """Whether a condition of a write was not fulfilled."""
    return _status(error) == 412


def _passes(error: BaseException) -> bool:
    """Whether the same request may be answered later."""
    if isinstance(error, s3fs.core.S3_RETRYABLE_ERRORS):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
