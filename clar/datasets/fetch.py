"""The archives of the public data sets: where they lie, and how one is fetched so that its bytes are the original's.

A download is kept as `NAME.part` and goes on where it broke off, in the same run or a later one.
"""

import hashlib
import html
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.client import IncompleteRead
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import clar
from clar.errors import UserError
from clar.files import held, read_json, write_json
from clar.progress import Bar, bar

if TYPE_CHECKING:
    import requests
    from tenacity import RetryCallState


@dataclass(frozen=True)
class Archive:
    """A file of a data set, as its makers published it.

    Args:
        url: where it lies; http or https.
        checksum: `sha256:<hex>` or `md5:<hex>`; empty: its bytes are not fixed.
        bytes: its length; 0: unknown.
        file: what it is called on disk and in a mirror's folder; empty: as the URL calls it.
    """

    url: str
    checksum: str = ""
    bytes: int = 0
    file: str = ""

    @property
    def name(self) -> str:
        """What the file is called."""
        return self.file or PurePosixPath(unquote(urlsplit(self.url).path)).name


_GOOGLE = "https://storage.googleapis.com"
_NSYNTH = f"{_GOOGLE}/download.magenta.tensorflow.org/datasets/nsynth"
_SPEECH = f"{_GOOGLE}/download.tensorflow.org/data"

# The pages of both data sets link to http://download.tensorflow.org and http://download.magenta.tensorflow.org; these
# are the buckets behind them, which the storage service serves with a certificate.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    # SHA-256 of both: torchaudio, datasets/speechcommands.py. TensorFlow Datasets, url_checksums/speech_commands.txt,
    # has the same of v0.02, and its length. The length of v0.01 is what its server says.
    "speech_commands_v0.02": (
        Archive(
            f"{_SPEECH}/speech_commands_v0.02.tar.gz",
            "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            2_428_923_189,
        ),
    ),
    "speech_commands_v0.01": (
        Archive(
            f"{_SPEECH}/speech_commands_v0.01.tar.gz",
            "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
            1_489_096_277,
        ),
    ),
    # MD5: the HEAR benchmark's hear-preprocess, nsynth_pitch.py. Lengths: what the server says; their sum is the
    # download size on the data set's card at Hugging Face (jg583/NSynth), 25,233,566,634.
    "nsynth": (
        Archive(f"{_NSYNTH}/nsynth-train.jsonwav.tar.gz", "md5:fde6665a93865503ba598b9fac388660", 23_815_298_079),
        Archive(f"{_NSYNTH}/nsynth-valid.jsonwav.tar.gz", "md5:87e94a00a19b6dbc99cf6d4c0c0cae87", 1_068_767_009),
        Archive(f"{_NSYNTH}/nsynth-test.jsonwav.tar.gz", "md5:5e6f8719bf7e16ad0a00d518b78af77d", 349_501_546),
    ),
    # No checksum: GitHub packs the branch when asked, and promises no fixed bytes. HEAR and two other public loaders
    # state three different MD5 of this very file. Its content is checked where it is read: the CRC of every file when
    # unpacking, the list of files when decoding.
    "esc50": (
        Archive("https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip", file="ESC-50-master.zip"),
    ),
}
"""Name of an original -> its archives."""


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Args:
        connect: seconds until a server must take the connection.
        read: seconds without a byte after which it counts as hanging.
        attempts: failures in a row after which a URL is given up.
        wait: seconds before the second attempt; doubled before each further one.
        longest: the longest wait in seconds; a server that asks for a longer one is given up.
        progress: bytes that an attempt must bring for the count of failures to start anew.
    """

    connect: float = 20.0
    read: float = 60.0
    attempts: int = 5
    wait: float = 1.0
    longest: float = 60.0
    progress: int = 2**20


PATIENCE = Patience()
LARGEST_UNKNOWN = 4 * 10**9
"""Bytes after which an archive of unknown length is too long; the only such, ESC-50's, has 0.6 GB."""

_CHUNK = 2**16
_REDIRECTS = 10
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MAGIC = {
    (".gz", ".tgz"): ("gzip", b"\x1f\x8b"),
    (".zip",): ("zip", b"PK"),
    (".bz2",): ("bzip2", b"BZh"),
    (".xz",): ("xz", b"\xfd7zXZ\x00"),
}


class _Failed(Exception):
    """This URL does not give the archive; says why."""


class _BrokenOff(_Failed):
    """It may give it on a further attempt, `after` so many seconds at the earliest."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def fetch(archive: Archive, folder: Path, mirrors: Sequence[str] = (), patience: Patience = PATIENCE) -> Path:
    """The archive's file in `folder`, fetched where it is not there yet; its checksum is right where one is known.

    Interrupted in any way, the next call goes on from the bytes that are there. A second process waits for the first.

    Args:
        archive: what to fetch.
        folder: where to; made where it is missing.
        mirrors: tried in this order and before `archive.url`: each the URL of the file, or of a folder that holds it
            under `archive.name`, which then ends in `/`.
        patience: how long to try.

    Raises:
        UserError: no URL gives the archive (each is named with its reason), a mirror is no http or https URL, another
            file of the name is there, or the folder is full or cannot be written. What is fetched is kept, but for
            wrong bytes.
    """
    urls = list(dict.fromkeys([*(_address(mirror, archive) for mirror in mirrors), archive.url]))
    path = folder / archive.name
    with _disk_errors(folder):
        # Before the lock: the file may lie in a folder that others have filled and nobody may write.
        if _is_there(path, archive):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with held(path.with_name(f".{path.name}.lock"), f"another process is fetching {path.name}"):
            if not _is_there(path, archive):
                _from_any(urls, path, archive, patience)
    return path


def was_fetched(path: Path) -> bool:
    """Whether the file is one that `fetch` brought, now or in an earlier run, and not the user's own."""
    return bool(read_json(_about(path)).get("fetched"))


def keep(path: Path, archive: Archive) -> None:
    """From now on the archive counts as the user's own."""
    _remember(path, archive)


def verify(path: Path, archive: Archive) -> None:
    """Check a file that the user has: its length, and its checksum where one is known.

    Raises:
        UserError: it is not the archive, or cannot be read.
    """
    try:
        _check_original(path, archive, "fetch it, or name another file")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; name a file that can be read") from error


def _from_any(urls: list[str], path: Path, archive: Archive, patience: Patience) -> None:
    part, reasons = _Part(path, archive), []
    with _session() as session, bar(archive.name, archive.bytes or None, in_bytes=True) as shown:
        part.load(shown)
        for url in urls:
            try:
                _from_one(session, url, part, patience, shown)
            except _Failed as failure:
                reasons.append(f"{_shown(url)} {failure}")
            else:
                part.finish()
                return
    raise UserError(
        f"cannot fetch {archive.name}: {'; '.join(reasons)}; try again later, name another server with --url URL, or "
        f"get the file by other means and pass it with --archive FILE"
    )


def _from_one(session: "requests.Session", url: str, part: "_Part", patience: Patience, shown: Bar) -> None:
    """All of the archive from one URL, over as many connections as it takes, and verified."""
    while True:
        _patiently(partial(_attempt, session, url, part, patience, shown), part, patience)
        wrong = part.wrong()
        if not wrong:
            return
        joined = part.joined
        part.clear()
        # With bytes of an earlier run, whose machine may have died, or of another server, it is no proof against `url`.
        if not joined:
            raise _Failed(f"gives wrong bytes, which are removed: {wrong}")


def _patiently(attempt: Any, part: "_Part", patience: Patience) -> None:
    """Repeat an attempt that breaks off, until too many in a row have brought nothing."""
    from tenacity import Retrying, retry_if_exception_type

    failures, most = 0, part.size

    def count(state: "RetryCallState") -> None:
        nonlocal failures, most
        failures = 1 if part.size >= most + patience.progress else failures + 1
        most = max(most, part.size)

    def wait(state: "RetryCallState") -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, _BrokenOff) else 0.0
        return max(asked, min(patience.longest, patience.wait * 2 ** (failures - 1)))

    retrying = Retrying(
        retry=retry_if_exception_type(_BrokenOff),
        after=count,  # tenacity calls it before `wait` and `stop`
        wait=wait,
        stop=lambda state: failures >= patience.attempts,
        reraise=True,
    )
    try:
        retrying(attempt)
    except _BrokenOff as error:
        raise _Failed(f"{error} ({patience.attempts} attempts in a row)") from error


def _attempt(session: "requests.Session", url: str, part: "_Part", patience: Patience, shown: Bar) -> None:
    """One connection: the bytes that `part` lacks, or all of them where the server cannot give just these."""
    if part.is_whole():
        return
    headers = {"User-Agent": f"clar/{clar.__version__}", "Accept-Encoding": "identity", **part.range_headers(url)}
    with _get(session, url, headers, patience) as response:
        if "Range" in headers and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _check_end(response, part)
            return
        joins = "Range" in headers and response.status_code == HTTPStatus.PARTIAL_CONTENT
        if not joins and response.status_code != HTTPStatus.OK:
            raise _refusal(response, patience)
        total = _check_joint(response, url, part) if joins else _number(response.headers.get("Content-Length"))
        chunks = _chunks(response, patience)
        first = b"" if joins else _start(chunks)
        if not joins:
            _check_archive(response, first, part.archive.name)
        _check_length(total, part.archive)
        _check_space(part, (total or part.archive.bytes) - part.size)  # a new start frees what is there
        if joins:
            part.join(url)
        else:
            part.begin(url, _validator(response), total)
        shown.show(part.archive.name, part.size, total or part.archive.bytes or None)
        part.append(first)
        shown.advance(len(first))
        for chunk in chunks:
            part.append(chunk)
            shown.advance(len(chunk))
    part.check_end()


class _Part:
    """The bytes of an archive that are there so far, with the hash of them and where they are from.

    Args:
        path: where the whole file will be.
        archive: what is being fetched.
    """

    def __init__(self, path: Path, archive: Archive) -> None:
        self.archive = archive
        self.whole = path
        self.path = path.with_name(f"{path.name}.part")
        self.size = 0
        self.joined = False
        """Whether bytes may be in it that the present URL has not given in this run."""
        self._about = _about(self.path)
        self._source: dict[str, Any] = {}
        self._hash = _hash(archive)

    def load(self, shown: Bar) -> None:
        """Take up what an earlier run has left."""
        if not self.path.is_file():
            return
        self._source = read_json(self._about)
        shown.show(f"{self.archive.name}: reading what is there", 0, self.path.stat().st_size)
        self.size = _feed(self.path, self._hash, shown)
        self.joined = self.size > 0

    def is_whole(self) -> bool:
        """Whether nothing is left to fetch, as far as the length is known."""
        return self.size > 0 and self.size == (self.archive.bytes or self._source.get("total"))

    def range_headers(self, url: str) -> dict[str, str]:
        """The headers that ask for the rest only; none where the bytes of `url` may not fit to those that are there."""
        validator = self._source.get("validator") if self._source.get("url") == _key(url) else None
        # A known checksum finds out afterwards whether they fitted.
        known = bool(self.archive.checksum) and self.size < self.archive.bytes
        if not self.size or not (validator or known):
            return {}
        return {"Range": f"bytes={self.size}-", **({"If-Range": validator} if validator else {})}

    def begin(self, url: str, validator: str, total: int) -> None:
        """Start anew with bytes of `url`."""
        self.clear()
        # Before the first byte: bytes of unknown origin are never joined.
        self._source = {"url": _key(url), "validator": validator, "total": total}
        write_json(self._about, self._source)

    def join(self, url: str) -> None:
        """The next bytes are of `url`."""
        self.joined |= self._source.get("url") != _key(url)

    def changed(self, url: str, validator: str) -> bool:
        """Whether the file at `url` is no longer the one that the bytes are from."""
        known = self._source.get("validator") if self._source.get("url") == _key(url) else None
        return bool(known and validator and known != validator)

    def append(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            _Failed: more than there can be.
        """
        most = self.archive.bytes or self._source.get("total") or LARGEST_UNKNOWN
        if self.size + len(chunk) > most:
            self.clear()
            raise _Failed(f"gives more than the {most:,} bytes that {self.archive.name} can have")
        with open(self.path, "ab") as file:
            file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def check_end(self) -> None:
        """The server has said that this is all.

        Raises:
            _BrokenOff: it is not.
        """
        total = self.archive.bytes or self._source.get("total") or 0
        if self.size < total:
            raise _BrokenOff(f"broke off after {self.size:,} of {total:,} bytes")

    def wrong(self) -> str:
        """What is wrong with the whole; empty: nothing."""
        return _wrong(self.path, self.size, self._hash.hexdigest(), self.archive)

    def clear(self) -> None:
        """Forget the bytes."""
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)
        self.size, self.joined, self._source, self._hash = 0, False, {}, _hash(self.archive)

    def finish(self) -> None:
        """Give the whole file its name."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.whole)
        self._about.unlink(missing_ok=True)
        _remember(self.whole, self.archive, fetched=True)


# What is on the disk


def _is_there(path: Path, archive: Archive) -> bool:
    """Whether `path` is the archive already.

    Raises:
        UserError: it is something else.
    """
    if not path.exists():
        return False
    if not path.is_file():
        raise UserError(f"{path} is not a file; remove it or name another folder")
    about = read_json(_about(path))
    if {**about, **_identity(path, archive)} == about:
        return True
    _check_original(path, archive, "remove it to fetch it again")
    _remember(path, archive)
    return True


def _check_original(path: Path, archive: Archive, way_out: str) -> None:
    digest, size = _hash(archive), path.stat().st_size
    if archive.checksum and size == (archive.bytes or size):
        with bar(f"{archive.name}: checking", size, in_bytes=True) as shown:
            _feed(path, digest, shown)
    wrong = _wrong(path, size, digest.hexdigest(), archive)
    if wrong:
        raise UserError(f"{path} is not the original {archive.name}: {wrong}; {way_out}")


def _wrong(path: Path, size: int, digest: str, archive: Archive) -> str:
    if archive.bytes and size != archive.bytes:
        return f"{size:,} bytes, the original has {archive.bytes:,}"
    kind, _, right = archive.checksum.partition(":")
    if right and digest != right.lower():
        return f"{kind} {digest[:12]}..., the original's is {right[:12]}..."
    if not right and archive.name.lower().endswith(".zip") and not zipfile.is_zipfile(path):
        return "it has not the end of a zip file"
    return ""


def _hash(archive: Archive) -> Any:
    return hashlib.new(archive.checksum.partition(":")[0] or "md5", usedforsecurity=False)


def _feed(path: Path, digest: Any, shown: Bar) -> int:
    """Hash a file; its length."""
    size = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            size += len(chunk)
            shown.advance(len(chunk))
    return size


def _about(path: Path) -> Path:
    """The small file with what is known of `path`."""
    return path.with_name(f".{path.name}.json")


def _identity(path: Path, archive: Archive) -> dict[str, Any]:
    status = path.stat()
    return {"checksum": archive.checksum, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _remember(path: Path, archive: Archive, **more: bool) -> None:
    """That the file is verified, so that 24 GB need not be read again; where that cannot be written, they are."""
    try:
        write_json(_about(path), {**_identity(path, archive), **more})
    except OSError:
        return


def _check_space(part: _Part, missing: int) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise UserError(
            f"{part.path.parent}: {part.archive.name} needs {_amount(missing)} more and {_amount(free)} are free; "
            "make room, and the same command goes on from what is there, or name another folder"
        )


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Say in one line what is wrong with the folder. What the network has against it is a `_Failed` by then."""
    try:
        yield
    except BrokenPipeError:  # no file has that: whoever read the messages is gone, which the command line handles
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}; make room or get permission there, and the same "
            "command goes on from what is fetched, or name another folder"
        ) from error


# What servers say


def _session() -> "requests.Session":
    import requests

    class Session(requests.Session):
        """Leaves redirects to `_get`: requests reads a redirect's whole body, of any length, even if told to stop."""

        def get_redirect_target(self, resp: requests.Response) -> None:
            return None

    return Session()


def _get(session: "requests.Session", url: str, headers: dict[str, str], patience: Patience) -> "requests.Response":
    """The answer after all redirects, its body not read yet."""
    import requests

    for _ in range(_REDIRECTS + 1):
        with _network(patience):
            # By hand: requests would follow one from https to http.
            response = session.get(
                url, headers=headers, stream=True, allow_redirects=False, timeout=(patience.connect, patience.read)
            )
            target = requests.Session.get_redirect_target(session, response)
        if target is None:
            return response
        response.close()
        try:
            following = urljoin(url, target)
            schemes = urlsplit(url).scheme, urlsplit(following).scheme
        except ValueError:
            raise _Failed(f"redirects to {_words(target, 100)!r}, which is no URL") from None
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise _Failed(f"redirects from {schemes[0]} to {_shown(following)}, which is not followed")
        url = following
    raise _Failed(f"redirects more than {_REDIRECTS} times")


def _chunks(response: "requests.Response", patience: Patience) -> Iterator[bytes]:
    """The body's bytes as they are sent: requests itself would unpack a .gz that is labelled as compressed."""
    chunks = response.raw.stream(_CHUNK, decode_content=False)
    while True:
        with _network(patience):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _start(chunks: Iterator[bytes]) -> bytes:
    """Enough of a body to know what it is."""
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= 512:
            break
    return start


@contextmanager
def _network(patience: Patience) -> Iterator[None]:
    """What goes wrong between here and the server, as `_BrokenOff`, or as `_Failed` where no further attempt helps."""
    import requests
    import urllib3

    try:
        yield
    except (requests.exceptions.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError):
        raise _BrokenOff(f"takes no connection within {patience.connect:g} s") from None
    except (requests.exceptions.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError):
        raise _BrokenOff(f"sends nothing for {patience.read:g} s") from None
    except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
        raise _Failed(f"has no secure connection: {_cause(error)}") from error
    except (requests.exceptions.ConnectionError, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise _BrokenOff(f"cannot be read: {_cause(error)}") from error
    except (requests.exceptions.RequestException, ValueError, OSError) as error:  # ValueError: a host no URL can have
        raise _Failed(f"cannot be asked: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The innermost reason of an exception that wraps others, in a few words."""
    seen = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        inner = inner or getattr(error, "reason", None) or error.__cause__ or error.__context__
        inner = inner if isinstance(inner, BaseException) else None
    if isinstance(error, IncompleteRead):
        return "the connection ended in the middle"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return _words(text, 100)


def _refusal(response: "requests.Response", patience: Patience) -> _Failed:
    """What a status other than success means."""
    status = response.status_code
    phrase = next((known.phrase for known in HTTPStatus if known == status), "")
    said = f"answers {status} {phrase}".strip()
    if status not in _AGAIN:
        return _Failed(said)
    after = _retry_after(response.headers.get("Retry-After", ""))
    if after > patience.longest:
        return _Failed(f"{said} and asks to come again in {after:,.0f} s")
    return _BrokenOff(said, after)


def _retry_after(value: str) -> float:
    """Seconds; 0 where the header says nothing that can be read."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
        return 0.0


def _check_joint(response: "requests.Response", url: str, part: _Part) -> int:
    """The length of the whole file; the answer carries on exactly where the bytes end, and of the same file."""
    start, total = _content_range(response)
    if start != part.size or part.changed(url, _validator(response)):
        part.clear()
        raise _BrokenOff("has another file than before, or cannot give the rest of one")
    return total


def _check_end(response: "requests.Response", part: _Part) -> None:
    """The server has no bytes after those that are there: they are all, or not of its file."""
    _, total = _content_range(response)
    if total != part.size:
        part.clear()
        raise _BrokenOff("has fewer bytes than were there")


def _content_range(response: "requests.Response") -> tuple[int, int]:
    """Where the bytes begin, -1 if that is not said, and the length of the whole file, 0 if that is not."""
    found = re.fullmatch(r"bytes\s+(?:(\d{1,18})-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    return (int(found[1]) if found and found[1] else -1), _number(found[2] if found else None)


def _number(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,18}", text) else 0


def _validator(response: "requests.Response") -> str:
    """What tells this version of the file from others; a weak ETag may stand for several."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _check_archive(response: "requests.Response", start: bytes, name: str) -> None:
    """Servers and hotspots say what is wrong in a page, with the status of success."""
    kind, magic = next((known for suffixes, known in _MAGIC.items() if name.lower().endswith(suffixes)), ("", b""))
    if not start:
        raise _Failed("gives an empty file")
    if magic and start.startswith(magic):
        return
    if _is_page(response, start):
        raise _Failed(f"gives a page instead of the file: {_title(start)!r}")
    if magic:
        raise _Failed(f"gives no {kind} file: it begins with {start[:8]!r}")


def _is_page(response: "requests.Response", start: bytes) -> bool:
    kind = response.headers.get("Content-Type", "").lower()
    return kind.startswith(("text/html", "application/xhtml")) or bool(re.match(rb"\s*<(!doctype|html)", start, re.I))


def _title(page: bytes) -> str:
    """The first words of a page's title, or of the page."""
    text = page[:4096].decode("utf-8", "replace")
    found = re.search(r"<title[^>]*>(.*?)</title", text, re.I | re.S)
    return _words(html.unescape(re.sub(r"<[^>]*>", " ", found[1] if found else text)), 60)


def _words(text: str, most: int) -> str:
    """One line of printable text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 3].rstrip() + "..."


def _check_length(total: int, archive: Archive) -> None:
    if archive.bytes and total and total != archive.bytes:
        raise _Failed(f"has a file of {total:,} bytes, the original has {archive.bytes:,}")
    if not archive.bytes and total > LARGEST_UNKNOWN:
        raise _Failed(f"has a file of {total:,} bytes, far more than {archive.name} can have")


# URLs


def _address(mirror: str, archive: Archive) -> str:
    """The URL of the archive's file at a mirror.

    Raises:
        UserError: it is no http or https URL.
    """
    try:
        parts = urlsplit(mirror)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            f"--url {_words(mirror, 300)}: name an http or https URL of the file, or of its folder, which ends in /"
        )
    return mirror + archive.name if mirror.endswith("/") else mirror


def _shown(url: str) -> str:
    """A URL as a message may show it: passwords and signatures stay out of logs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "what is no URL"
    host = parts.netloc.rpartition("@")[2]
    return _words(f"{parts.scheme}://{host}{parts.path}", 300) + ("?..." if parts.query else "")


def _key(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
