"""Fetching: from a server that behaves, from servers that do not, and what is left when it is interrupted."""

import errno
import hashlib
import io
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from clar.datasets import fetch as fetching
from clar.datasets.fetch import ARCHIVES, Archive, Patience, fetch, verify
from clar.errors import UserError
from tests.server import CONTENT, NAME, Asked, gives, hangs, serving, sha256, status

QUICK = Patience(connect=2, read=0.5, attempts=3, wait=0.01, longest=0.2, progress=1000)


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def archive(server):
    """The archive, at a URL that tells 404 until a test writes a script for it."""
    return Archive(server.url + NAME, sha256(CONTENT), len(CONTENT))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


def fails(archive, folder, mirrors=(), patience=QUICK):
    """The one line that says why; no file that could be taken for the archive is left."""
    with pytest.raises(UserError) as caught:
        fetch(archive, folder, mirrors, patience)
    assert "\n" not in str(caught.value)
    assert not (folder / archive.name).is_file()
    return str(caught.value)


def part(folder):
    return folder / f"{NAME}.part"


def left(folder):
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def interrupted(server, archive, folder, size=300_000, **answer):
    """A download that broke off after so many bytes, in an earlier run."""
    server.answers(NAME, gives(cut=size, **answer), status(404))
    fails(archive, folder)
    server.asked.clear()
    assert part(folder).stat().st_size == size


# What is right


def test_plain(server, archive, folder):
    server.answers(NAME, gives())
    assert fetch(archive, folder) == folder / NAME
    assert (folder / NAME).read_bytes() == CONTENT
    assert left(folder) == {NAME, f".{NAME}.json"}
    assert server.ranges() == [None]


def test_what_is_there_is_not_fetched_again(server, archive, folder, monkeypatch):
    server.answers(NAME, gives())
    fetch(archive, folder)
    monkeypatch.setattr(fetching, "_feed", lambda *arguments: pytest.fail("read again"))
    fetch(archive, folder)
    assert len(server.asked) == 1


def test_what_the_user_put_there_is_read_once(server, archive, folder):
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    fetch(archive, folder)
    assert server.asked == []
    assert f".{NAME}.json" in left(folder)
    (folder / NAME).write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(UserError, match=r"x\.tar\.gz is not the original x\.tar\.gz: sha256 .* remove it to fetch it"):
        fetch(archive, folder)
    assert (folder / NAME).exists()


def test_a_folder_that_cannot_be_written_but_has_the_file(archive, folder, monkeypatch):
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)

    def denied(*arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fetching, "write_json", denied)
    monkeypatch.setattr(os, "mkdir", denied)
    assert fetch(archive, folder) == folder / NAME
    assert left(folder) == {NAME}


def test_md5_and_no_checksum(server, archive, folder):
    server.answers(NAME, gives())
    md5 = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"
    fetch(Archive(archive.url, md5), folder / "md5")
    fetch(Archive(archive.url), folder / "none")
    assert (folder / "none" / NAME).read_bytes() == CONTENT
    assert "md5 " in fails(Archive(archive.url, "md5:" + "0" * 32), folder / "wrong")


def test_zip_without_checksum_needs_its_end(server, folder):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a", CONTENT)
    whole = packed.getvalue()
    archive = Archive(server.answers("master.zip", gives(whole, length=0)), file="set.zip")
    assert fetch(archive, folder).name == "set.zip"
    server.answers("master.zip", gives(whole[:-100], length=0))
    assert "gives wrong bytes, which are removed: it has not the end of a zip file" in fails(archive, folder / "cut")


def test_verify(archive, tmp_path):
    mine = tmp_path / "mine.tgz"
    mine.write_bytes(CONTENT)
    verify(mine, archive)
    mine.write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=r"mine\.tgz is not the original x\.tar\.gz: 700,001 bytes, the original has"):
        verify(mine, archive)
    with pytest.raises(UserError, match="No such file"):
        verify(tmp_path / "none", archive)
    assert left(tmp_path) == {"mine.tgz"}


def test_originals():
    names = [archive.name for archives in ARCHIVES.values() for archive in archives]
    assert len(set(names)) == len(names)
    for archive in (archive for archives in ARCHIVES.values() for archive in archives):
        assert re.fullmatch(r"https://\S+", archive.url)
        assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})?", archive.checksum)
        assert archive.name.endswith((".tar.gz", ".zip"))
    assert sum(archive.bytes for archive in ARCHIVES["nsynth"]) == 25_233_566_634  # the sum that Hugging Face states


# Going on


def test_break_offs_go_on_where_they_were(server, archive, folder):
    server.answers(NAME, gives(cut=300_000), gives(cut=200_000), gives())
    fetch(archive, folder, patience=QUICK)
    assert (folder / NAME).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=300000-", "bytes=500000-"]
    assert server.asked[1].if_range == '"1"'


def test_progress_starts_the_count_of_failures_anew(server, archive, folder):
    server.answers(NAME, *[gives(cut=100_000) for _ in range(7)], gives())
    fetch(archive, folder, patience=QUICK)
    assert len(server.asked) == 8
    server.answers(NAME, gives(cut=100), gives(cut=100), gives(cut=100), gives())
    assert "3 attempts in a row" in fails(archive, folder / "drops")


def test_a_later_run_goes_on(server, archive, folder):
    interrupted(server, archive, folder)
    server.answers(NAME, gives())
    fetch(archive, folder)
    assert (folder / NAME).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=300000-"]
    assert left(folder) == {NAME, f".{NAME}.json"}


def test_server_without_ranges_starts_anew(server, archive, folder):
    interrupted(server, archive, folder)
    server.answers(NAME, gives(ranges=False))
    fetch(archive, folder)
    assert (folder / NAME).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=300000-"]


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changed_is_not_joined(server, folder, honest):
    """An honest server minds If-Range and gives all; another joins what does not belong together."""
    other = b"\x1f\x8b" + random.Random(1).randbytes(600_000)
    archive = Archive(server.url + NAME)
    interrupted(server, archive, folder)

    def careless(request):
        request.headers.replace_header("If-Range", '"2"')
        gives(other, '"2"')(request)

    server.answers(NAME, *([gives(other, '"2"')] if honest else [careless, gives(other, '"2"')]))
    fetch(archive, folder, patience=QUICK)
    assert (folder / NAME).read_bytes() == other
    assert server.ranges() == (["bytes=300000-"] if honest else ["bytes=300000-", None])


def test_versions_are_told_apart_by_their_date_where_a_tag_is_weak(server, folder):
    archive, date = Archive(server.url + NAME), formatdate(usegmt=True)
    interrupted(server, archive, folder, tag='W/"1"', modified=date)
    server.answers(NAME, gives(tag='W/"1"', modified=date))
    fetch(archive, folder)
    assert server.asked == [Asked(f"/{NAME}", "bytes=300000-", date)]


def test_unknown_versions_are_not_joined(server, folder):
    archive = Archive(server.url + NAME)
    interrupted(server, archive, folder, tag=None)
    server.answers(NAME, gives(tag=None))
    fetch(archive, folder)
    assert server.ranges() == [None]
    assert (folder / NAME).read_bytes() == CONTENT


def test_another_server_goes_on_where_the_checksum_tells(server, archive, folder):
    interrupted(server, archive, folder)
    mirror = server.answers(f"mirror/{NAME}", gives(tag='"other"'))
    fetch(archive, folder, [mirror], QUICK)
    assert server.ranges(f"mirror/{NAME}") == ["bytes=300000-"]
    assert (folder / NAME).read_bytes() == CONTENT


def test_joined_bytes_that_are_wrong_are_fetched_once_more(server, archive, folder):
    interrupted(server, archive, folder)
    part(folder).write_bytes(bytes(300_000))  # what a machine leaves that died
    server.answers(NAME, gives())
    fetch(archive, folder, patience=QUICK)
    assert server.ranges() == ["bytes=300000-", None]
    assert (folder / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_more_is_there_than_the_server_has(server, archive, folder, known):
    archive = archive if known else Archive(archive.url)
    interrupted(server, archive, folder)
    with open(part(folder), "ab") as file:
        file.write(bytes(len(CONTENT)))
    server.answers(NAME, gives())
    fetch(archive, folder, patience=QUICK)
    assert (folder / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_all_is_there_but_its_name(server, archive, folder, known):
    archive = archive if known else Archive(archive.url)
    interrupted(server, archive, folder)
    part(folder).write_bytes(CONTENT)
    fetch(archive, folder)
    assert (folder / NAME).read_bytes() == CONTENT
    assert server.asked == []


def test_wrong_length_of_an_unknown_archive(server, folder):
    """The server promises more than it has: what it then says of the range is the truth."""
    archive = Archive(server.url + NAME, sha256(CONTENT))
    server.answers(NAME, gives(length=len(CONTENT) + 50_000), gives())
    fetch(archive, folder, patience=QUICK)
    assert server.ranges() == [None, f"bytes={len(CONTENT)}-"]


# A shell starts what is to run in the background with SIGINT ignored, and that is inherited.
CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from clar.datasets.fetch import Archive, fetch
fetch(Archive(sys.argv[1], sys.argv[2], int(sys.argv[3])), Path(sys.argv[4]))
"""


def in_a_process(archive, folder):
    command = [sys.executable, "-c", CODE, archive.url, archive.checksum, str(archive.bytes), folder]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle(server, archive, folder, how):
    server.answers(NAME, gives(pause=0.1))
    with in_a_process(archive, folder) as process:
        while not (part(folder).is_file() and part(folder).stat().st_size > 100_000):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate()
    size = part(folder).stat().st_size
    assert 100_000 < size < len(CONTENT)
    assert not (folder / NAME).exists()
    server.answers(NAME, gives())
    fetch(archive, folder)
    assert server.ranges() == [None, f"bytes={size}-"]
    assert (folder / NAME).read_bytes() == CONTENT


def test_two_processes(server, archive, folder):
    server.answers(NAME, gives(pause=0.1))
    both = [in_a_process(archive, folder) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert server.ranges() == [None]
    assert (folder / NAME).read_bytes() == CONTENT


# Servers that do not give it


def test_wrong_bytes(server, archive, folder):
    server.answers(NAME, gives(CONTENT[:-1] + b"!"))
    said = fails(archive, folder)
    assert f"{archive.url} gives wrong bytes, which are removed: sha256 " in said
    assert f"the original's is {archive.checksum[7:19]}" in said
    assert "--archive FILE" in said
    assert "--url URL" in said
    assert left(folder) == set()
    assert len(server.asked) == 1


def test_mirrors_come_first_and_in_their_order(server, archive, folder):
    bad = server.answers("bad/file", gives(CONTENT[:-1] + b"!"))
    server.answers(NAME, gives())
    fetch(archive, folder, [bad, server.url + "none/", server.url], QUICK)
    assert [asked.path for asked in server.asked] == ["/bad/file", f"/none/{NAME}", f"/{NAME}"]


def test_every_url_is_named_with_its_reason(server, archive, folder):
    mirrors = [server.answers("gone", status(410)), "http://user:secret@127.0.0.1:9/x?signature=secret"]
    said = fails(archive, folder, mirrors)
    assert f"{server.url}gone answers 410 Gone" in said
    assert "http://127.0.0.1:9/x?... cannot be read: Connection refused (3 attempts in a row)" in said
    assert f"{archive.url} answers 404 Not Found" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "x.tar.gz", "http:///x", "http://[::1", "http://a:b"]
)
def test_urls_that_are_none(archive, folder, url):
    assert f"--url {url}: name an http or https URL" in fails(archive, folder, [url])
    assert not folder.exists()


@pytest.mark.parametrize(
    "url", ["http://no such host/", "http://a..b/x", f"http://{'a' * 70}/x", "http://host.invalid/"]
)
def test_hosts_that_are_none(archive, folder, url):
    assert url.removesuffix("/") in fails(archive, folder, [url])


@pytest.mark.parametrize("code", [401, 403, 404, 418])
def test_refusals_are_not_repeated(server, archive, folder, code):
    server.answers(NAME, status(code))
    assert f"answers {code} " in fails(archive, folder)
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_troubles_that_pass(server, archive, folder, code):
    server.answers(NAME, status(code), status(code, Retry_After="0"), gives())
    fetch(archive, folder, patience=QUICK)
    assert len(server.asked) == 3
    server.answers(NAME, status(code))
    assert f"answers {code} " in fails(archive, folder / "other")


def test_retry_after(server, archive, folder):
    server.answers(NAME, status(503, Retry_After="1"), gives())
    start = time.monotonic()
    fetch(archive, folder, patience=Patience(wait=0.01, longest=2))
    assert time.monotonic() - start > 1
    for value in ("3600", formatdate(time.time() + 3600, usegmt=True)):
        server.answers(NAME, status(503, Retry_After=value))
        assert re.search(
            r"503 Service Unavailable and asks to come again in 3,(600|59\d) s", fails(archive, folder / "b")
        )
    server.answers(NAME, status(503, Retry_After="soon"), gives())
    fetch(archive, folder / "c", patience=QUICK)


PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>Please\n log&nbsp;in &amp; pay \x1b[31m</title></head><body>...</body></html>"
)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_instead_of_the_file(server, archive, folder, kind):
    server.answers(NAME, gives(PAGE, kind=kind))
    assert "gives a page instead of the file: 'Please log in & pay [31m'" in fails(archive, folder)
    interrupted(server, archive, folder)
    server.answers(NAME, gives(PAGE, kind=kind, ranges=False))
    fails(archive, folder)
    assert part(folder).stat().st_size == 300_000  # a hotspot's page costs nothing that is there


def test_no_archive_and_nothing(server, archive, folder):
    server.answers(NAME, gives(b"PK\x03\x04" + CONTENT))
    assert r"gives no gzip file: it begins with b'PK\x03\x04" in fails(archive, folder)
    server.answers(NAME, gives(b""))
    assert "gives an empty file" in fails(archive, folder)


def test_another_length_is_not_fetched(server, archive, folder):
    server.answers(NAME, gives(CONTENT + b"more"))
    assert "has a file of 700,006 bytes, the original has 700,002" in fails(archive, folder)
    assert left(folder) == set()


def test_more_bytes_than_there_can_be(server, archive, folder, monkeypatch):
    server.answers(NAME, gives(CONTENT * 2, length=0))
    assert "gives more than the 700,002 bytes" in fails(archive, folder)
    monkeypatch.setattr(fetching, "LARGEST_UNKNOWN", 500_000)
    assert "gives more than the 500,000 bytes" in fails(Archive(archive.url), folder)
    server.answers(NAME, gives())
    assert "far more than x.tar.gz can have" in fails(Archive(archive.url), folder)
    assert left(folder) == set()


def test_fewer_bytes_than_there_must_be(server, archive, folder):
    server.answers(NAME, gives(CONTENT[:-5], length=0, ranges=False))
    assert "broke off after 699,997 of 700,002 bytes (3 attempts in a row)" in fails(archive, folder)


def test_hanging(server, archive, folder):
    server.answers(NAME, hangs)
    assert "sends nothing for 0.5 s (3 attempts in a row)" in fails(archive, folder)


def test_redirects(server, archive, folder):
    server.answers("moved", status(302, Location="real/file"))
    server.answers(NAME, status(301, Location="/moved"))
    server.answers("real/file", gives(cut=300_000), gives())
    fetch(archive, folder, patience=QUICK)
    assert server.ranges("real/file") == [None, "bytes=300000-"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file:///etc/passwd", "redirects from http to file:///etc/passwd, which is not followed"),
        ("ftp://host/x", "redirects from http to ftp://host/x, which is not followed"),
        ("http://[::1", "redirects to 'http://[::1', which is no URL"),
    ],
)
def test_redirects_that_are_not_followed(server, archive, folder, target, message):
    server.answers(NAME, status(302, Location=target))
    assert f"{archive.url} {message}" in fails(archive, folder)


def test_a_redirect_counts_without_its_body(server, archive, folder):
    server.answers("real", gives())

    def redirects(request):
        request.send_response(302)
        request.send_header("Location", "/real")
        request.send_header("Content-Length", str(10**12))
        request.end_headers()
        time.sleep(2)

    server.answers(NAME, redirects)
    fetch(archive, folder, patience=QUICK)
    assert len(server.asked) == 2


def test_redirects_without_end(server, archive, folder):
    server.answers(NAME, status(302, Location=f"/{NAME}"))
    assert "redirects more than 10 times" in fails(archive, folder)


def test_no_redirect_from_https_to_http(server, archive, folder, monkeypatch):
    def send(adapter, request, **named):
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["Location"], response.raw = archive.url, io.BytesIO()
        return response

    server.answers(NAME, gives())
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    secure = Archive(f"https://host/{NAME}", archive.checksum)
    assert f"redirects from https to {archive.url}, which is not followed" in fails(secure, folder)
    assert server.asked == []


def test_no_secure_connection(server, archive, folder):
    url = server.url.replace("http:", "https:")
    assert f"{url}{NAME} has no secure connection: " in fails(archive, folder, [url])


# What the disk has against it


def test_no_room_for_it(server, archive, folder, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    server.answers(NAME, gives())
    said = fails(archive, folder)
    assert f"{folder}: x.tar.gz needs 700.0 kB more and 1.0 kB are free; make room" in said


def test_full_disk(server, archive, folder, monkeypatch):
    server.answers(NAME, gives())
    append = fetching._Part.append

    def full(self, chunk):
        if self.size > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(fetching._Part, "append", full)
        said = fails(archive, folder)
    assert f"{folder}: No space left on device; make room" in said
    size = part(folder).stat().st_size
    assert size > 200_000
    fetch(archive, folder)
    assert server.ranges() == [None, f"bytes={size}-"]


def test_no_permission(archive, folder, monkeypatch):
    def denied(path, *arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", denied)  # no permission bits: tests may run as root
    assert f"{folder}: Permission denied; make room or get permission there" in fails(archive, folder)


def test_folder_that_is_a_file(archive, folder):
    folder.write_text("a file")
    assert "File exists" in fails(archive, folder)


def test_file_that_is_a_folder(archive, folder):
    (folder / NAME).mkdir(parents=True)
    assert "is not a file; remove it" in fails(archive, folder)


def test_a_terminal_shows_bytes():
    code = "from clar.progress import bar\nwith bar('fetching', 3_000_000, in_bytes=True) as b: b.advance(1_500_000)"
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave) as process:
        process.wait(timeout=60)
    os.close(slave)
    assert b"1.5/3.0 MB" in os.read(master, 2**16)
    os.close(master)


def test_nothing_of_the_network_is_loaded_early():
    code = "import sys, clar.datasets.fetch, clar.datasets.unpack; print({'requests', 'tenacity'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "set()"
