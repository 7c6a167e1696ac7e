"""From a published archive to an unpacked folder: fetched, or given by the user, or there already."""

import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from clar import datasets
from clar.datasets import listing
from clar.datasets.fetch import ARCHIVES, Archive, fetch, verify, was_fetched
from clar.datasets.fetch import keep as keep_archive
from clar.datasets.unpack import is_unpacked, others_in, unpack
from clar.errors import UserError


def unpack_given(name: str, root: Path, files: Sequence[Path]) -> None:
    """Unpack archives that the user has into the data set's folder.

    Raises:
        UserError: one is missing, damaged or not to be trusted, the folder holds another archive's files, or it cannot
            be written.
    """
    known = {archive.name: archive for archive in _archives(name)}
    folder = datasets.unpacked(name, root) if known else root
    for file in files:
        try:
            if file.is_dir():
                raise UserError(f"--archive {file}: it is a folder; name an archive, or an unpacked folder with --root")
            if not file.is_file():
                raise UserError(f"--archive {file}: no such file")
        except OSError as error:
            raise UserError(f"--archive {file}: {error.strerror}") from error
        original = known.get(file.name)
        if original and original.bytes == file.stat().st_size:
            verify(file, original)  # a copy that was damaged on its way
        elif original and original.bytes:
            print(
                f"note: {file} has {file.stat().st_size:,} bytes, the original {original.bytes:,}: it is another one",
                file=sys.stderr,
            )
        _check_unmixed(name, folder, file)
        known_place = datasets.landmark(name, file.name) if original else ""
        unpack(file, folder, again=not (known_place and any(folder.glob(known_place))))


def obtain(name: str, root: Path, mirrors: Sequence[str] = (), checksum: str | None = None, keep: bool = False) -> None:
    """Fetch and unpack what the data set's folder lacks; nothing, where it is all there.

    Args:
        name: of the data set.
        root: its folder, or a folder that holds it; made where it is missing.
        mirrors: URLs of the archives, or of folders that hold them, tried before the makers' own.
        checksum: of the archive at the mirrors, if it is another than the makers': `sha256:HEX`, `md5:HEX`, or `none`.
        keep: the archives, once they are unpacked.

    Raises:
        UserError: an archive cannot be had, is wrong, damaged or not to be trusted; a mirror has none of several; or
            the folder cannot be written.
    """
    with listing.reading(name, root):
        folder = datasets.unpacked(name, root)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--root {root}: it is no folder; name the one that holds the data set, or will")
    archives = _archives(name)
    if checksum is not None:
        if len(archives) > 1:
            raise UserError(f"--checksum {checksum}: {name} comes in {len(archives)} archives; use --archive for each")
        # Another archive than the makers', which is therefore not looked for at theirs.
        url = mirrors[0] + archives[0].name if mirrors[0].endswith("/") else mirrors[0]
        archives, mirrors = (Archive(url, _checksum(checksum)),), mirrors[1:]
    files = [archive.name for archive in archives]
    for url in mirrors:
        if len(files) > 1 and not url.endswith("/") and _file(url) not in files:
            raise UserError(
                f"--url {url}: it is none of {', '.join(files)}; name one of them, or their folder, which ends in /"
            )
    for archive in archives:
        if _is_there(folder, archive, datasets.landmark(name, archive.name)):
            continue
        own = [url for url in mirrors if url.endswith("/") or len(archives) == 1 or _file(url) == archive.name]
        size = f", {archive.bytes / 1e9:.1f} GB" if archive.bytes else ""
        there = (folder / archive.name).is_file()
        print(f"{'unpacking' if there else 'fetching'} {archive.name}{size} into {folder}", file=sys.stderr)
        path = fetch(archive, folder, own)
        _check_unmixed(name, folder, path)
        unpack(path, folder, again=True)
        if keep:
            keep_archive(path, archive)
        elif was_fetched(path):  # also by an earlier run, which was interrupted; what the user put there stays
            path.unlink()


def _archives(name: str) -> tuple[Archive, ...]:
    """None of a data set that lies where its name says."""
    return ARCHIVES[datasets.original(name)] if datasets.takes_root(name) else ()


def _check_unmixed(name: str, folder: Path, file: Path) -> None:
    """What an earlier archive left and this one lacks would stay, and be trained on.

    Of sets in several archives, and of those without a place of their own, the labels name every file: there it shows.
    """
    archives = _archives(name)
    others = others_in(file, folder) if len(archives) == 1 else []
    if others and _has(folder, datasets.landmark(name, archives[0].name)):
        raise UserError(
            f"{folder} holds what {others[0]} was unpacked to, and {file} is another archive: they would mix; name "
            "another folder with --root, or remove what is there"
        )


def _checksum(text: str) -> str:
    kind, _, digits = text.partition(":")
    lengths = {"sha256": 64, "md5": 32}
    if text == "none":
        return ""
    if len(digits) != lengths.get(kind) or set(digits.lower()) - set("0123456789abcdef"):
        raise UserError(f"--checksum {text}: write sha256: and 64 hex digits, md5: and 32, or none")
    return text.lower()


def _file(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def _is_there(folder: Path, archive: Archive, landmark: str) -> bool:
    """Whether the archive has been unpacked into the folder, by `unpack` or by somebody else."""
    if not _has(folder, landmark):
        return False  # whatever was unpacked once
    begun = any((folder / f"{archive.name}{suffix}").exists() for suffix in ("", ".part"))
    return is_unpacked(archive.name, folder) or not begun


def _has(folder: Path, landmark: str) -> bool:
    return any(any(folder.glob(place)) for place in (landmark, f"*/{landmark}"))
