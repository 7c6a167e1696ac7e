"""Unpacking: what is there afterwards, what is refused, and that neither attacks nor faults leave the folder."""

import contextlib
import errno
import gzip
import io
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clar.datasets import unpack as unpacking
from clar.datasets.unpack import Limits, is_unpacked, unpack
from clar.errors import UserError

FILES = {
    "set/list.txt": b"one\ntwo\n",
    "set/audio/a.wav": bytes(range(256)) * 40,
    "set/audio/b.wav": random.Random(0).randbytes(3000),
    "set/empty.txt": b"",
}
KINDS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")


def tar_member(name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def make_tar(path, members, mode="w:gz", **options):
    with tarfile.open(path, mode, **options) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def make_zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    """A zip file; an entry's name may be a ZipInfo."""
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that stand twice
        for name, content in entries:
            archive.writestr(name, content)
    return path


def make(path, files=FILES):
    """An archive of `files`, of the kind that its name says, with a folder's own entry in it."""
    if path.suffix == ".zip":
        return make_zip(path, [("set/", b""), *files.items()])
    mode = f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w"
    folder = tar_member("set", type=tarfile.DIRTYPE)
    return make_tar(path, [folder, *(tar_member(name, content) for name, content in files.items())], mode)


def held(folder):
    """Every file below a folder but what unpacking keeps for itself."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not name.startswith((".unpacked-", ".unpacking-")):
            found[name] = path.read_bytes()
    return found


def refused(archive, folder, limits=unpacking.LIMITS):
    """The one line that says why; the archive then does not count as unpacked."""
    with pytest.raises(UserError) as caught:
        unpack(archive, folder, limits)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert not is_unpacked(archive.name, folder)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """The folder to unpack to; whatever else is in `tmp_path` after the test is the test's own archive."""
    yield tmp_path / "inside" / "folder"
    outside = {path.name for path in tmp_path.iterdir()} - {"inside"}
    assert all(name.startswith("x.") for name in outside), outside
    if (tmp_path / "inside").exists():
        assert [path.name for path in (tmp_path / "inside").iterdir()] == ["folder"]


# What is right


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tmp_path, folder, kind):
    archive = make(tmp_path / f"x.{kind}")
    assert not is_unpacked(archive.name, folder)
    unpack(archive, folder)
    assert held(folder) == FILES
    assert is_unpacked(archive.name, folder)
    marker = json.loads((folder / f".unpacked-x.{kind}.json").read_text())
    assert marker["entries"] == len(FILES)
    assert marker["bytes"] == sum(map(len, FILES.values()))
    archive.rename(tmp_path / "x.moved")  # its first bytes say what it is
    unpack(tmp_path / "x.moved", folder)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_done_work_is_not_repeated(tmp_path, folder, kind, monkeypatch):
    archive = make(tmp_path / f"x.{kind}")
    unpack(archive, folder)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_entries", lambda *arguments: pytest.fail("read again"))
        unpack(archive, folder)
    os.utime(archive, ns=(1, 1))  # perhaps another archive: read again, but what is the same stays
    (folder / "set/audio/a.wav").write_bytes(bytes(256 * 40))
    unpack(archive, folder)
    assert held(folder) == FILES
    assert (folder / "set/audio/b.wav").stat().st_mtime_ns == written[folder / "set/audio/b.wav"]


def test_another_archive_of_the_same_name_replaces_the_first(tmp_path, folder):
    archive = make(tmp_path / "x.zip")
    unpack(archive, folder)
    other = {**FILES, "set/list.txt": b"one\nTWO\n"}
    make(archive, other)
    unpack(archive, folder)
    assert held(folder) == other


def test_large_files_that_differ_late_are_replaced_as_a_whole(tmp_path, folder):
    content = random.Random(1).randbytes(3 * unpacking._BLOCK + 17)
    archive = make(tmp_path / "x.tar", {"big": content})
    folder.mkdir(parents=True)
    (folder / "big").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    unpack(archive, folder)
    assert held(folder) == {"big": content}


def test_permissions_are_those_of_new_files(tmp_path, folder):
    archive = make_tar(tmp_path / "x.tar.gz", [tar_member("a", b"1", mode=0o6777, uid=12, uname="root")])
    info = zipfile.ZipInfo("b")
    info.external_attr = (stat.S_IFREG | 0o6777) << 16
    other = make_zip(tmp_path / "x.zip", [(info, b"2")])
    umask = os.umask(0o027)
    try:
        unpack(archive, folder)
        unpack(other, folder)
    finally:
        os.umask(umask)
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in "ab"} == {0o640}
    assert (folder / "a").stat().st_uid == os.getuid()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_what_macos_adds_is_left_out(tmp_path, folder, kind):
    large = random.Random(2).randbytes(2 * unpacking._HEADER)
    junk = {"__MACOSX/set/._a.wav": b"x", "set/._a.wav": large, "set/.DS_Store": b"x"}
    unpack(make(tmp_path / f"x.{kind}", {**junk, **FILES}), folder)
    assert held(folder) == FILES


def test_long_names_and_other_letters(tmp_path, folder):
    files = {f"{'ordner' * 30}/größe {'é' * 100}.wav": b"1"}
    for kind in ("tar", "zip"):
        unpack(make(tmp_path / f"x.{kind}", files), folder)
        assert held(folder) == files
    gnu = [tar_member(name, content) for name, content in files.items()]
    unpack(make_tar(tmp_path / "x.gnu", gnu, "w", format=tarfile.GNU_FORMAT), folder)


# Names that leave the folder, or cannot be


NAMES = {
    "../x.evil": "leaves the folder by ..",
    "a/../../x.evil": "leaves the folder by ..",
    "..": "leaves the folder by ..",
    "/x.evil": "absolute",
    "//server/x.evil": "absolute",
    "C:/x.evil": "drive letter",
    "c:x.evil": "drive letter",
    "a/D:/x.evil": "drive letter",
    "..\\x.evil": "backslash",
    "a\\b": "backslash",
    "\\\\server\\x.evil": "backslash",
    "a\nb": "control characters",
    "a\x1b[2Jb": "control characters",
    ".unpacked-other.zip.json": "unpacking itself uses",
    ".Unpacking-x": "unpacking itself uses",
    ".": "the folder itself",
    "a/" * 60 + "b": "folders deep",
    "a" * 2000: "longer than",
    "b" * 400: "cannot be on this disk",
}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(("name", "message"), NAMES.items(), ids=[ascii(name[:20]) for name in NAMES])
def test_names(tmp_path, folder, kind, name, message):
    archive = make(tmp_path / f"x.{kind}", {"good.txt": b"good", name: b"evil"})
    said = refused(archive, folder)
    assert message in said
    assert "entry " in said
    # Of a tar file, read once, what comes before the bad entry is there; a zip file is checked as a whole.
    assert held(folder) == ({"good.txt": b"good"} if kind == "tar" or "disk" in message else {})


def test_names_with_nul(tmp_path, folder):
    archive = make(tmp_path / "x.zip", {"good.txtXevil": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"good.txtXevil", b"good.txt\0evil"))
    assert "control characters" in refused(archive, folder)
    member, content = tar_member("placeholder", b"1", pax_headers={"path": "good.txt\0evil"})
    assert "control characters" in refused(make_tar(tmp_path / "x.tar", [(member, content)], "w"), folder)


def test_names_that_are_not_unicode(tmp_path, folder):
    member = tar_member("b\udce9.wav", b"1")
    archive = make_tar(tmp_path / "x.tar", [member], "w", format=tarfile.GNU_FORMAT)
    assert "not Unicode" in refused(archive, folder)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "A", "C:", "/", "\\", "\0", "._a", "é", "e\u0301", ".unpacked-x"])
             | st.text(max_size=5), min_size=1, max_size=5),
    st.sampled_from(["/", "\\", "//"]),
    st.sampled_from(["tar", "zip"]),
)  # fmt: skip
def test_any_name_stays_inside_or_is_refused(tmp_path, parts, separator, kind):
    name = separator.join(parts)
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "deep" / "er").mkdir(parents=True)
    archive = work / f"x.{kind}"
    try:
        make(archive, {name: b"content", "good": b"good"})
    except (ValueError, IndexError):  # names that the standard library cannot write
        return
    with contextlib.suppress(UserError):
        unpack(archive, work / "deep" / "er" / "folder")
    assert sorted(path.name for path in work.iterdir()) == ["deep", archive.name]
    assert [path.name for path in (work / "deep").iterdir()] == ["er"]
    assert [path.name for path in (work / "deep" / "er").iterdir()] == ["folder"]
    assert set(held(work / "deep" / "er" / "folder").values()) <= {b"content", b"good"}


# Entries that are no files


SPECIAL = {
    "symbolic link": (tar_member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (tar_member("a", type=tarfile.LNKTYPE, linkname="good.txt"), "is a link"),
    "character device": (
        tar_member("a", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        "is neither a file nor a folder",
    ),
    "block device": (tar_member("a", type=tarfile.BLKTYPE), "is neither a file nor a folder"),
    "fifo": (tar_member("a", type=tarfile.FIFOTYPE), "is neither a file nor a folder"),
    "unknown": (tar_member("a", type=b"Z"), "is neither a file nor a folder"),
}


@pytest.mark.parametrize(("member", "message"), SPECIAL.values(), ids=SPECIAL)
def test_special_entries_of_tar(tmp_path, folder, member, message):
    archive = make_tar(tmp_path / "x.tar.gz", [tar_member("good.txt", b"1"), member])
    said = refused(archive, folder)
    assert f"entry 'a': {message}" in said
    assert "do not use this one" in said


def test_sparse_files_of_tar(tmp_path, folder):
    member = tar_member("a", b"", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**15)})
    assert "sparse" in refused(make_tar(tmp_path / "x.tar", [member], "w"), folder)


@pytest.mark.parametrize("kind", ["S_IFLNK", "S_IFCHR", "S_IFIFO", "S_IFSOCK", "S_IFDIR"])
def test_special_entries_of_zip(tmp_path, folder, kind):
    info = zipfile.ZipInfo("a")
    info.create_system = 3
    info.external_attr = (getattr(stat, kind) | 0o777) << 16
    said = refused(make_zip(tmp_path / "x.zip", [("good.txt", b"1"), (info, b"/etc/passwd")]), folder)
    assert ("is a link" if kind == "S_IFLNK" else "neither") in said
    assert held(folder) == {}


def test_write_through_a_link_that_is_there(tmp_path, folder):
    folder.mkdir(parents=True)
    outside = tmp_path / "x.outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    (folder / "set").symlink_to(outside)
    assert "needs a folder where" in refused(make(tmp_path / "x.zip"), folder)
    (folder / "set").unlink()
    (folder / "a").symlink_to(outside / "kept.txt")
    (folder / ".unpacking-x.tar").symlink_to(outside / "kept.txt")
    unpack(make(tmp_path / "x.tar", {"a": b"evil"}), folder)
    assert held(outside) == {"kept.txt": b"kept"}
    assert (folder / "a").read_bytes() == b"evil"
    assert not (folder / "a").is_symlink()


# Entries that do not go together


CLASHES = {
    "twice": (["a", "a"], "stands twice"),
    "twice by a dot": (["a/b", "a/./b"], "stands twice"),
    "case": (["a/b", "A/B"], "in the case of letters only"),
    "forms of Unicode": (["\u00e9", "e\u0301"], "in the case of letters only"),
    "file, then a folder of it": (["a", "a/b"], "needs a folder where another entry is a file"),
    "folder, then a file of it": (["a/b", "a"], "is a file where other entries need a folder"),
}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(("names", "message"), CLASHES.values(), ids=CLASHES)
def test_clashes(tmp_path, folder, kind, names, message):
    if kind == "zip":
        archive = make_zip(tmp_path / "x.zip", [(name, b"1") for name in names])
    else:
        archive = make_tar(tmp_path / "x.tar", [tar_member(name, b"1") for name in names], "w")
    assert message in refused(archive, folder)


def test_clashes_with_what_is_there(tmp_path, folder):
    (folder / "set" / "list.txt").mkdir(parents=True)
    assert "a folder is there already" in refused(make(tmp_path / "x.zip"), folder)
    shutil.rmtree(folder / "set")
    (folder / "set").write_text("a file")
    assert "needs a folder where" in refused(make(tmp_path / "x.zip"), folder)


# Bombs


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(total=10_000), "more than 10,000 bytes"),
        (Limits(one=9_999), "in one file, 9,999 are allowed"),
        (Limits(entries=3), "more than 3 entries"),
    ],
)
def test_limits(tmp_path, folder, kind, limits, message):
    assert message in refused(make(tmp_path / f"x.{kind}"), folder, limits)
    assert sum(map(len, held(folder).values())) <= limits.total


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_ratio(tmp_path, folder, kind, monkeypatch):
    monkeypatch.setattr(unpacking, "_RATIO_FROM", 2**20)
    archive = make(tmp_path / f"x.{kind}", {"zeros": bytes(4 * 2**20)})
    assert "more than 100 times its size" in refused(archive, folder)
    assert held(folder) == {}


def test_zeros_after_the_end_are_a_bomb_too(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(unpacking, "_RATIO_FROM", 2**20)
    archive = make(tmp_path / "x.tar.gz")
    archive.write_bytes(archive.read_bytes() + gzip.compress(bytes(8 * 2**20)))
    assert "more than 100 times its size" in refused(archive, folder)


def test_a_name_that_would_fill_the_memory(tmp_path, folder):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2**40
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress(long.tobuf(tarfile.GNU_FORMAT) + b"a" * 8 * 2**20))
    assert "a name or attributes of more than" in refused(archive, folder)


def test_zip_entries_that_share_bytes(tmp_path, folder):
    """A hundred entries in the directory, one after the other in the file: each holds the same megabyte."""
    archive = make_zip(tmp_path / "x.zip", [("00", bytes(2**20))])
    content = archive.read_bytes()
    start = content.rindex(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    record, count = content[start:end], 100
    records = b"".join(record[:46] + f"{i:02}".encode() + record[48:] for i in range(count))
    ending = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(records), start, 0)
    archive.write_bytes(content[:start] + records + ending)
    said = refused(archive, folder, Limits(total=50 * 2**20))
    assert "unpacks to more than 52,428,800 bytes" in said
    assert held(folder) == {}


def test_sizes_in_headers_are_not_believed(tmp_path, folder):
    archive = make_zip(tmp_path / "x.zip", [("a", b"much" * 1000)])
    true, false = struct.pack("<L", 4000), struct.pack("<L", 10)
    archive.write_bytes(archive.read_bytes().replace(true, false))
    assert "is damaged" in refused(archive, folder)
    archive.write_bytes(archive.read_bytes().replace(false, struct.pack("<L", 5000)))
    assert "4,000 bytes instead of 5,000" in refused(archive, folder)
    assert held(folder) == {}


# Damage


def test_encrypted_zip(tmp_path, folder):
    archive = make_zip(tmp_path / "x.zip", [("a", b"1")])
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "entry 'a': is encrypted" in refused(archive, folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_are_not_read(tmp_path, folder, method):
    assert f"method {method}" in refused(make_zip(tmp_path / "x.zip", [("a", b"1")], method), folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 1, 100, -1, -30, -1024, 0.5])
def test_cut_off(tmp_path, folder, kind, keep):
    archive = make(tmp_path / f"x.{kind}")
    content = archive.read_bytes()
    if kind == "tar":  # which may end in any number of zeros
        content = content.rstrip(b"\0")
    archive.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    said = refused(archive, folder)
    assert "get the archive again" in said


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_wrong_checksum_of_the_content(tmp_path, folder, kind):
    archive = make(tmp_path / f"x.{kind}")
    content = bytearray(archive.read_bytes())
    place = content.index(b"PK\x01\x02") + 16 if kind == "zip" else len(content) - 8
    if kind == "zip":  # of the first file, the second entry
        place = content.index(b"PK\x01\x02", place) + 16
    content[place] ^= 1
    archive.write_bytes(content)
    assert "is damaged" in refused(archive, folder)


def test_damage_that_only_the_end_shows_is_mended_by_the_right_archive(tmp_path, folder):
    files = {**FILES, "set/more": random.Random(3).randbytes(3 * unpacking._BLOCK)}
    archive = make(tmp_path / "x.tar.gz", files)
    right = archive.read_bytes()
    plain = gzip.decompress(right).replace(b"one\ntwo\n", b"one\ntwx\n")
    archive.write_bytes(gzip.compress(plain)[:-8] + right[-8:])  # as if bits had turned: the CRC is the right one's
    refused(archive, folder)
    assert held(folder)["set/list.txt"] == b"one\ntwx\n"
    archive.write_bytes(right)
    unpack(archive, folder)
    assert held(folder) == files


def test_a_header_in_the_middle_is_not_the_end(tmp_path, folder):
    archive = make(tmp_path / "x.tar")
    content = bytearray(archive.read_bytes())
    content[content.index(b"set/audio/b.wav")] ^= 1
    archive.write_bytes(content)
    assert "is damaged or cut off" in refused(archive, folder)


def test_a_second_archive_behind_the_first(tmp_path, folder):
    archive = make(tmp_path / "x.tar.gz")
    archive.write_bytes(archive.read_bytes() * 2)
    assert "goes on after its end" in refused(archive, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_nothing(tmp_path, folder, kind):
    assert "holds no file" in refused(make(tmp_path / f"x.{kind}", {}), folder)


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"text" * 1000])
def test_no_archive(tmp_path, folder, content):
    (tmp_path / "x.zip").write_bytes(content)
    assert "is no tar, tar.gz, tar.bz2, tar.xz or zip file" in refused(tmp_path / "x.zip", folder)


def test_no_file(tmp_path, folder):
    assert f"cannot read {tmp_path / 'x.zip'}: No such file" in refused(tmp_path / "x.zip", folder)


def check_damaged(tmp_path, content, kind, files=FILES):
    """Whatever the bytes are: all files with their content, or one line; and nothing outside."""
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    archive = work / f"x.{kind}"
    archive.write_bytes(content)
    try:
        unpack(archive, work / "folder", Limits(total=10**7))
    except UserError as error:
        said = str(error)
    else:
        said = ""
        assert held(work / "folder") == files
    assert "\n" not in said
    assert is_unpacked(archive.name, work / "folder") == (not said)
    assert {path.name for path in work.iterdir()} <= {archive.name, "folder"}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00"]),
    st.binary(max_size=2000),
)
def test_random_bytes(tmp_path, start, content):
    check_damaged(tmp_path, start + content, "any", files=None)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Valid archives, of the kinds that have checksums of their content."""
    folder = tmp_path_factory.mktemp("wholes")
    return {kind: make(folder / f"x.{kind}").read_bytes() for kind in ("tar.gz", "tar.bz2", "tar.xz", "zip")}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["zip", "tar.gz", "zip", "tar.xz", "tar.bz2"]),
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 255)), min_size=1, max_size=3),
    st.none() | st.floats(0, 1),
)
def test_turned_bits_and_cuts(tmp_path, wholes, kind, turned, cut):
    content = bytearray(wholes[kind])
    for place, bits in turned:
        # Half of them in the last kilobyte, where a zip file has its directory.
        index = int(place * (len(content) - 1)) if place >= 0 else len(content) - 1 + int(place * 1000)
        content[index] ^= bits
    check_damaged(tmp_path, content if cut is None else content[: int(cut * len(content))], kind)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 4 * 512 - 1), st.integers(1, 255))
def test_turned_bits_of_tar_headers(tmp_path, place, bits):
    """The content of a plain tar file has no checksum; its headers do."""
    tar, files = io.BytesIO(), dict.fromkeys(("a", "b/c", "d", "e"), b"")
    make_tar(None, [tar_member(name) for name in files], "w", fileobj=tar)
    content = bytearray(tar.getvalue())
    content[place] ^= bits
    check_damaged(tmp_path, content, "tar", files)


# Killed, full, forbidden


SLOW = """
import sys, time
from pathlib import Path
from clar.datasets import unpack as unpacking

copy = unpacking._Writer._copy
def slowly(self, source, path, size):
    copy(self, source, path, size)
    time.sleep(0.02)
unpacking._Writer._copy = slowly
unpacking.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_killed_in_the_middle(tmp_path, folder, kind):
    files = {f"set/{number:03}.wav": random.Random(number).randbytes(2000) for number in range(100)}
    archive = make(tmp_path / f"x.{kind}", files)
    with subprocess.Popen([sys.executable, "-c", SLOW, archive, folder]) as process:
        while len(list(folder.rglob("*.wav"))) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = held(folder)
    assert 5 <= len(there) < 100
    assert there.items() <= files.items()
    assert not is_unpacked(archive.name, folder)
    (folder / f".unpacking-x.{kind}").write_bytes(b"half of a file")
    before = {name: (folder / name).stat().st_mtime_ns for name in there}
    unpack(archive, folder)
    assert held(folder) == files
    assert before == {name: (folder / name).stat().st_mtime_ns for name in there}
    assert is_unpacked(archive.name, folder)
    assert not (folder / f".unpacking-x.{kind}").exists()


def test_two_processes(tmp_path, folder):
    files = {f"set/{number:03}.wav": random.Random(number).randbytes(2000) for number in range(25)}
    archive = make(tmp_path / "x.tar.gz", files)
    command = [sys.executable, "-c", SLOW, archive, folder]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("another process is unpacking x.tar.gz" in text for text in said) <= 1
    assert held(folder) == files


def test_full_disk(tmp_path, folder, monkeypatch):
    archive = make(tmp_path / "x.zip")
    opened = unpacking._Writer._open_partial

    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_partial(writer):
        opened(writer).close()
        return Full() if held(folder) else open(writer._partial, "wb")

    with monkeypatch.context() as patch:
        patch.setattr(unpacking._Writer, "_open_partial", open_partial)
        said = refused(archive, folder)
    assert not list(folder.glob(".unpacking-x.zip"))
    assert "No space left on device" in said
    assert "make room, and the same command goes on" in said
    assert list(held(folder)) == ["set/list.txt"]
    unpack(archive, folder)
    assert held(folder) == FILES


def test_no_permission(tmp_path, folder, monkeypatch):
    def denied(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "set"))

    monkeypatch.setattr(os, "mkdir", denied)  # no permission bits: tests may run as root
    said = refused(make(tmp_path / "x.zip"), folder)
    assert "Permission denied; get permission there" in said


def test_folder_that_is_a_file(tmp_path, folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    said = refused(make(tmp_path / "x.zip"), folder)
    assert "File exists" in said
