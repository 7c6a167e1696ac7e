"""Unpack an archive from anywhere: nothing lands outside the folder, and half of it is never taken for the whole.

tarfile and zipfile read the formats. Own code decides what may be written: their own extraction follows links, believes
the sizes in headers, keeps permissions, and cannot go on where it was killed.
"""

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from clar.errors import UserError
from clar.files import held, read_json, write_json
from clar.progress import bar


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. The largest known, NSynth's training part, has 289,205 recordings: 37 GB in 24 GB.

    Args:
        total: bytes of all files.
        entries: files and folders.
        one: bytes of one file.
        ratio: bytes that come out for one that goes in; asked after the first `_RATIO_FROM` bytes, silence packs well.
    """

    total: int = 100 * 10**9
    entries: int = 1_000_000
    one: int = 10 * 10**9
    ratio: float = 100.0


LIMITS = Limits()

_LONGEST, _DEEPEST = 1000, 50
_RATIO_FROM = 64 * 2**20
_BLOCK = 2**18
_HEADER = 2**20
"""Bytes of a tar file that may lie before an entry: long names and attributes. tarfile holds them in memory."""

# What the readers of the standard library raise about bytes that are no archive; besides TarError and BadZipFile all of
# these come out of them too, on headers that a fault or an attacker has changed. An OSError without a number is gzip's
# and bz2's.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError),
)

_HOSTILE = "no archive of a data set has that; do not use this one"
_DAMAGED = "get the archive again"


class _Refused(Exception):
    """An entry, or the archive as a whole, that is not unpacked; with what to do about it."""

    def __init__(self, reason: str, way_out: str = _HOSTILE) -> None:
        super().__init__(reason)
        self.way_out = way_out


@dataclass(frozen=True)
class _Entry:
    """What an archive says of one of its entries, and a way to its bytes."""

    name: str
    size: int
    folder: bool
    open: Callable[[], IO[bytes]]
    refused: str = ""
    """Why it is not unpacked, whatever its name."""


def unpack(archive: Path, folder: Path, limits: Limits = LIMITS, again: bool = False) -> None:
    """Unpack a tar, tar.gz, tar.bz2, tar.xz or zip file; what it is, its first bytes say.

    Files get the permissions that new files get here; links, devices and the archive's owners, modes and times do not
    count. What macOS adds (`__MACOSX/`, `._x`, `.DS_Store`) is left out. Killed, the next call goes on: a file that is
    there with the archive's bytes is left as it is, any other is replaced. The entries of a zip file are all checked
    before the first is written; a tar file is read once, so that entries before a bad one are there.

    Args:
        archive: the file.
        folder: where to; made where it is missing.
        limits: what it may hold at most.
        again: also where it was unpacked before; files may have been removed since.

    Raises:
        UserError: the archive is damaged, is not one, holds something other than files and folders, a name that leaves
            the folder, stands twice or cannot be, or more than `limits`; or the folder cannot be written.
    """
    entry = ""
    try:
        if not again and _is_this(
            archive, folder
        ):  # before the lock: others may have filled a folder that nobody may write
            return
        size = archive.stat().st_size
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / f"{_PARTIAL}{archive.name}.lock", f"another process is unpacking {archive.name}"):
            if not again and _is_this(archive, folder):
                return
            _marker(archive.name, folder).unlink(missing_ok=True)
            with bar(f"{archive.name}: unpacking", size, in_bytes=True) as shown:
                writer = _Writer(folder, archive.name, limits)
                for item, done in _entries(archive, limits):
                    entry = item.name
                    writer.write(item)
                    entry = ""
                    shown.show(f"{archive.name}: unpacking", done, size)
            writer.finish(archive)
    except _Refused as refused:
        raise _error(archive, entry, str(refused), refused.way_out) from None
    except OSError as error:
        if entry and error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise _error(archive, entry, f"its name cannot be on this disk ({error.strerror})", _HOSTILE) from error
        if error.errno is not None:
            raise _system_error(archive, folder, error) from error
        raise _error(archive, entry, f"is damaged ({_words(error)})", _DAMAGED) from error
    except _DAMAGE as error:
        raise _error(archive, entry, f"is damaged ({_words(error)})", _DAMAGED) from error


def is_unpacked(archive_name: str, folder: Path) -> bool:
    """Whether all of the archive of this name has been unpacked into the folder."""
    return "entries" in _read_marker(archive_name, folder)


def others_in(archive: Path, folder: Path) -> list[str]:
    """What archives of other content than this file's have been unpacked into the folder, by their names."""
    size = archive.stat().st_size
    markers = [read_json(path) for path in sorted(folder.glob(f"{_MARKER}*.json"))]
    return [marker["archive"] for marker in markers if marker.get("archive") and marker.get("size") != size]


# What may be written


class _Checks:
    """The rules for an archive's entries, taken together.

    Args:
        limits: what there may be at most.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.entries = 0
        # As a file system holds them that does not tell cases or forms of Unicode apart.
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def path(self, entry: _Entry) -> tuple[str, ...]:
        """Where the entry belongs below the folder; empty: it is left out.

        Raises:
            _Refused: the entry breaks a rule.
        """
        self.entries += 1
        if self.entries > self.limits.entries:
            raise _Refused(f"more than {self.limits.entries:,} entries")
        parts = _parts(entry.name)
        if entry.refused:
            raise _Refused(entry.refused)
        if not 0 <= entry.size <= self.limits.one:
            raise _Refused(f"{entry.size:,} bytes in one file, {self.limits.one:,} are allowed")
        if not parts and not entry.folder:
            raise _Refused("its name is that of the folder itself")
        if not parts or _is_junk(parts):
            return ()
        self._place(parts, entry.folder)
        return parts

    def _place(self, parts: tuple[str, ...], folder: bool) -> None:
        """One name, one file; and no file where others need a folder."""
        folded = [unicodedata.normalize("NFC", part).casefold() for part in parts]
        names = ["/".join(folded[: end + 1]) for end in range(len(folded))]
        parents, name = (names, "") if folder else (names[:-1], names[-1])
        if any(parent in self._files for parent in parents):
            raise _Refused("needs a folder where another entry is a file")
        if name in self._folders:
            raise _Refused("is a file where other entries need a folder")
        if name in self._files:
            raise _Refused("its name stands twice, or differs from another in the case of letters only")
        self._folders.update(parents)
        if name:
            self._files.add(name)


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a relative path that stays below where it starts, on every system."""
    if len(name) > _LONGEST or name.count("/") > _DEEPEST:
        raise _Refused(f"its name is longer than {_LONGEST} characters or more than {_DEEPEST} folders deep")
    if not name or re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        raise _Refused("its name is empty, has control characters or is not Unicode")
    if "\\" in name:
        raise _Refused("its name has a backslash, which some systems take for a folder")
    if name.startswith("/"):
        raise _Refused("its name is an absolute path")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _Refused("its name leaves the folder by ..")
    if any(re.match("[A-Za-z]:", part) for part in parts):
        raise _Refused("its name has a drive letter")
    if parts and parts[0].lower().startswith((_MARKER, _PARTIAL)):
        raise _Refused("its name is one that unpacking itself uses")
    return parts


def _is_junk(parts: tuple[str, ...]) -> bool:
    return any(part in ("__MACOSX", ".DS_Store") or part.startswith("._") for part in parts)


# Reading


def _entries(archive: Path, limits: Limits) -> Iterator[tuple[_Entry, int]]:
    """The entries, and how many of the archive's bytes are behind each.

    Raises:
        _Refused: it is no archive, or unpacks to far more than it is.
    """
    with open(archive, "rb") as raw:
        start = raw.read(512)
        raw.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _zip_entries(raw, limits)
        elif start.startswith(b"\x1f\x8b"):
            yield from _tar_entries(raw, gzip.GzipFile(fileobj=raw), limits)
        elif start.startswith(b"BZh"):
            yield from _tar_entries(raw, bz2.BZ2File(raw), limits)
        elif start.startswith(b"\xfd7zXZ\x00"):
            yield from _tar_entries(raw, lzma.LZMAFile(raw), limits)  # noqa: SIM115 - closed with `raw`
        elif start[257:262] == b"ustar":
            yield from _tar_entries(raw, raw, limits)
        else:
            raise _Refused("is no tar, tar.gz, tar.bz2, tar.xz or zip file", _DAMAGED)


class _Meter:
    """Reads what a decompressor gives, and stops where it gives too much."""

    def __init__(self, raw: IO[bytes], plain: Any, limits: Limits) -> None:
        self._raw = raw
        self._plain = plain
        self._limits = limits
        self._given = 0
        self.header: int | None = _HEADER
        """Bytes that may still be read as headers; None: what is read are a file's."""

    def read(self, size: int) -> bytes:
        content = self._plain.read(size)
        self._given += len(content)
        _check_ratio(self._given, self._raw.tell(), self._limits)
        if self.header is not None:
            self.header -= len(content)
            if self.header < 0:
                raise _Refused(f"a name or attributes of more than {_HEADER:,} bytes")
        return content


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a header that it cannot read for the end of the archive; this one says that it is damaged."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise  # a block of zeros: the true end
            raise _Refused(f"is damaged or cut off ({_words(error)})", _DAMAGED) from None


def _tar_entries(raw: IO[bytes], plain: Any, limits: Limits) -> Iterator[tuple[_Entry, int]]:
    meter = _Meter(raw, plain, limits)
    # "|": read forward only. Uncompressed for tarfile, whose own reader of gzip streams does not check their CRC.
    with tarfile.open(fileobj=meter, mode="r|", bufsize=_BLOCK, tarinfo=_TarInfo) as tar:  # type: ignore[call-overload]
        while True:
            meter.header = _HEADER
            member = tar.next()
            meter.header = None
            if member is None:
                break
            tar.members.clear()  # a list of all entries takes gigabytes
            yield _tar_entry(tar, member), raw.tell()
        _check_rest(tar.fileobj)


def _tar_entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    refused = ""
    if member.issym() or member.islnk():
        refused = "is a link"
    elif member.issparse():
        refused = "is a sparse file"
    elif not (member.isreg() or member.isdir()):
        refused = "is neither a file nor a folder"
    return _Entry(member.name, member.size, member.isdir(), lambda: _opened(tar.extractfile(member)), refused)


def _opened(file: IO[bytes] | None) -> IO[bytes]:
    if file is None:
        raise _Refused("has no content", _DAMAGED)
    return file


def _check_rest(stream: Any) -> None:
    """Only zeros follow the last entry; reading them to the end also checks the checksum of the compressed stream."""
    while content := stream.read(_BLOCK):
        if content.count(0) != len(content):
            raise _Refused("goes on after its end", _DAMAGED)


def _zip_entries(raw: IO[bytes], limits: Limits) -> Iterator[tuple[_Entry, int]]:
    with zipfile.ZipFile(raw) as archive:
        checks, total, entries = _Checks(limits), 0, []
        for info in archive.infolist():
            entry = _Entry(
                info.orig_filename.rstrip("/") if info.is_dir() else info.orig_filename,
                info.file_size,
                info.is_dir(),
                lambda info=info: archive.open(info),  # type: ignore[misc]
                _zip_refusal(info),
            )
            total += entry.size
            entries.append((entry, info.compress_size))
            try:
                checks.path(entry)
                _check_total(total, limits)
            except _Refused as refused:
                raise _Refused(f"entry {_quoted(entry.name)}: {refused}", refused.way_out) from None
        _check_ratio(total, os.fstat(raw.fileno()).st_size, limits)
        done = 0
        for entry, packed in entries:
            if entry.folder:
                entry.open().close()  # zipfile then compares the two names of an entry, as it does for files
            done += packed
            yield entry, done


def _zip_refusal(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not info.is_dir()):
        return "is neither a file nor a folder"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {info.compress_type}, which is not read here"
    if info.is_dir() and info.file_size:
        return "is a folder with content"
    return ""


def _check_total(total: int, limits: Limits) -> None:
    if total > limits.total:
        raise _Refused(f"unpacks to more than {limits.total:,} bytes")


def _check_ratio(given: int, taken: int, limits: Limits) -> None:
    if given > _RATIO_FROM and given > limits.ratio * taken:
        raise _Refused(f"unpacks to more than {limits.ratio:g} times its size")


# Writing

_MARKER = ".unpacked-"
_PARTIAL = ".unpacking-"


class _Writer:
    """Writes entries below a folder.

    Args:
        folder: where to.
        name: the archive's.
        limits: what may be written at most.
    """

    def __init__(self, folder: Path, name: str, limits: Limits) -> None:
        self._folder = folder.resolve()
        self._partial = self._folder / f"{_PARTIAL}{name}"
        self._limits = limits
        self._checks = _Checks(limits)
        self._made: set[Path] = {self._folder}
        self._files = 0
        self._bytes = 0

    def write(self, entry: _Entry) -> None:
        """Write one entry as a whole or not at all.

        Raises:
            _Refused: it must not be written.
        """
        parts = self._checks.path(entry)
        path = self._folder.joinpath(*parts)
        if entry.folder:
            self._make(path)
            return
        with entry.open() as source:
            if not parts:
                self._leave_out(source)
                return
            self._make(path.parent)
            if path.is_dir() and not path.is_symlink():
                raise _Refused("is a file where a folder is there already", "remove that folder or name another")
            try:
                self._copy(source, path, entry.size)
            finally:
                self._partial.unlink(missing_ok=True)
        self._files += 1

    def finish(self, archive: Path) -> None:
        """Say that all is there.

        Raises:
            _Refused: it is nothing.
        """
        if not self._files:
            raise _Refused("holds no file", _DAMAGED)
        os.sync()  # a machine that dies now must not keep the marker and lose the files
        write_json(
            _marker(archive.name, self._folder), {**_stamp(archive), "entries": self._files, "bytes": self._bytes}
        )

    def _make(self, folder: Path) -> None:
        """Make a folder; none of those above it is a link, which could lead elsewhere."""
        if folder in self._made:
            return
        self._make(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise _Refused(f"needs a folder where {folder} is none", "remove that, or name another folder")
        self._made.add(folder)

    def _copy(self, source: IO[bytes], path: Path, size: int) -> None:
        """Write the bytes of `source`, where `path` does not hold them already.

        Bytes are compared and not only lengths: an earlier copy of the archive may have been damaged in the middle.
        """
        count = 0
        with ExitStack() as stack:
            there = stack.enter_context(open(path, "rb")) if _is_plain_file(path, size) else None
            out = None if there else stack.enter_context(self._open_partial())
            while block := source.read(_BLOCK):
                if there and there.read(len(block)) != block:
                    out = stack.enter_context(self._open_partial())
                    there.seek(0)
                    _copy_bytes(there, out, count)
                    there = None
                if out:
                    out.write(block)
                count += len(block)
                self._count(len(block), count)
        if count != size:
            raise _Refused(f"has {count:,} bytes instead of {size:,}", _DAMAGED)
        if out:
            os.replace(self._partial, path)

    def _open_partial(self) -> IO[bytes]:
        """One for all files, so that a killed run leaves one at most."""
        self._partial.unlink(missing_ok=True)
        return open(self._partial, "xb")

    def _leave_out(self, source: IO[bytes]) -> None:
        """Read past a file."""
        while block := source.read(_BLOCK):
            self._count(len(block), 0)

    def _count(self, written: int, of_one: int) -> None:
        self._bytes += written
        _check_total(self._bytes, self._limits)
        if of_one > self._limits.one:
            raise _Refused(f"more than {self._limits.one:,} bytes in one file")


def _is_plain_file(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _copy_bytes(source: IO[bytes], target: IO[bytes], count: int) -> None:
    while count and (block := source.read(min(_BLOCK, count))):
        target.write(block)
        count -= len(block)


# Where it stands


def _marker(name: str, folder: Path) -> Path:
    return folder / f"{_MARKER}{Path(name).name}.json"


def _read_marker(name: str, folder: Path) -> dict[str, Any]:
    with suppress(OSError):
        return read_json(_marker(name, folder))
    return {}


def _stamp(archive: Path) -> dict[str, Any]:
    status = archive.stat()
    return {"archive": archive.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_this(archive: Path, folder: Path) -> bool:
    """Whether the folder holds this very file's content, and not an earlier one's of the same name."""
    marker = _read_marker(archive.name, folder)
    return "entries" in marker and {**marker, **_stamp(archive)} == marker


# Messages


def _error(archive: Path, entry: str, reason: str, way_out: str) -> UserError:
    where = f"{archive}, entry {_quoted(entry)}" if entry else str(archive)
    return UserError(f"{where}: {reason}; {way_out}")


def _system_error(archive: Path, folder: Path, error: OSError) -> UserError:
    where = error.filename or folder
    if str(where) == str(archive):
        return UserError(f"cannot read {archive}: {error.strerror}; name a file that can be read")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder).free
        return UserError(
            f"{where}: {error.strerror} ({free:,} bytes are free) while unpacking {archive}; what is there stays: make "
            "room, and the same command goes on"
        )
    return UserError(
        f"cannot unpack {archive}: {where}: {error.strerror}; get permission there, or name another folder"
    )


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:60]}...{name[-30:]}")


def _words(error: BaseException) -> str:
    line = " ".join(ascii(str(error))[1:-1].split()) or type(error).__name__
    return line if len(line) <= 100 else f"{line[:97]}..."
