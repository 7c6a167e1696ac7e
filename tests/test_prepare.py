"""From a server or an archive to a store, by the command: small archives of exactly the originals' layout."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from clar import datasets
from clar.datasets import fetch as fetching
from clar.datasets.fetch import Archive, Patience
from clar.datasets.fetch import fetch as fetch_slowly
from tests import originals
from tests.server import gives, serving, sha256, status

QUICK = Patience(connect=2, read=1, attempts=3, wait=0.01, longest=0.2, progress=1000)
COMMAND = [sys.executable, "-m", "clar.datasets"]


def tar(folder: Path, below: str = ".") -> bytes:
    """The folder as the original archives are packed."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.add(folder, below)
    return content.getvalue()


def zipped(folder: Path, below: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{below}/{path.relative_to(folder)}")
    return content.getvalue()


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Of each collection its archives, by name; with an unpacked folder beside each other to compare with."""
    place = tmp_path_factory.mktemp("originals")
    speech = originals.write_speech_commands(place / "speech_commands")
    nsynth = originals.write_nsynth(place / "nsynth")
    esc = originals.write_esc(place / "esc")
    return {
        "speech_commands_v0.02": {"speech_commands_v0.02.tar.gz": tar(speech)},
        "nsynth": {
            f"nsynth-{split}.jsonwav.tar.gz": tar(nsynth / f"nsynth-{split}", f"nsynth-{split}")
            for split in ("train", "valid", "test")
        },
        "esc50": {"ESC-50-master.zip": zipped(esc, "ESC-50-master")},
    }


@pytest.fixture
def server(packed, monkeypatch, tmp_path):
    """A server with all archives, which the command takes for their makers' own."""
    monkeypatch.setenv("CLAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLAR_DATA", raising=False)
    with serving() as running:
        for key, files in packed.items():
            made = []
            for name, content in files.items():
                kind = "application/zip" if name.endswith(".zip") else "application/gzip"
                url = running.answers(name, gives(content, kind=kind))
                made.append(Archive(url, sha256(content) if key != "esc50" else "", len(content) * (key != "esc50")))
            monkeypatch.setitem(fetching.ARCHIVES, key, tuple(made))
        # The real waiting takes minutes.
        monkeypatch.setattr(
            "clar.datasets.originals.fetch", lambda archive, folder, own: fetch_slowly(archive, folder, own, QUICK)
        )
        yield running


def fetched(server) -> list[str]:
    return [asked.path.strip("/") for asked in server.asked]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("speech_commands_10", "speech_commands_v0.02"),
        ("speech_commands_35", "speech_commands_v0.02"),
        ("nsynth_family", "nsynth"),
        ("esc_50", "esc50"),
        ("esc_10", "esc50"),
    ],
)
def test_fetched_unpacked_and_decoded(run_datasets, server, packed, tmp_path, name, key):
    done = run_datasets("prepare", name, "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert sorted(fetched(server)) == sorted(packed[key])
    assert not list((tmp_path / "root").glob("*.tar.gz")) + list((tmp_path / "root").glob("*.zip"))
    store = datasets.load(name)
    assert repr(store) in done.stdout
    place = tmp_path / "unpacked"
    WRITE[key](place)
    assert datasets.load(name, place).fingerprint == store.fingerprint
    again = run_datasets("prepare", name, "--root", tmp_path / "root")
    assert again.returncode == 0
    assert len(fetched(server)) == len(packed[key])  # nothing was asked for again


WRITE = {
    "speech_commands_v0.02": originals.write_speech_commands,
    "nsynth": originals.write_nsynth,
    "esc50": originals.write_esc,
}


def test_the_second_label_set_fetches_and_decodes_nothing(run_datasets, server, tmp_path):
    assert run_datasets("prepare", "nsynth_family", "--root", tmp_path / "root").returncode == 0
    asked = len(server.asked)
    assert run_datasets("prepare", "nsynth_pitch", "--root", tmp_path / "root").returncode == 0
    assert len(server.asked) == asked
    family, pitch = datasets.load("nsynth_family"), datasets.load("nsynth_pitch")
    assert (family.path / "clips.int16").samefile(pitch.path / "clips.int16")
    said = run_datasets("info", "nsynth_pitch").stdout
    assert "no training clip: 0, 1, 2" in said


def test_a_server_that_breaks_off_is_asked_for_the_rest(run_datasets, server, packed, tmp_path):
    name, content = "speech_commands_v0.02.tar.gz", packed["speech_commands_v0.02"]["speech_commands_v0.02.tar.gz"]
    server.answers(name, gives(content, cut=10_000), gives(content))
    assert run_datasets("prepare", "speech_commands_10", "--root", tmp_path / "root").returncode == 0
    assert server.ranges(name) == [None, "bytes=10000-"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(404), "404"),
        (status(200, b"<html><title>Please sign in</title></html>", Content_Type="text/html"), "Please sign in"),
        (gives(b"\x1f\x8b" + bytes(5000)), "5,002 bytes|5002|checksum|length"),
    ],
)
def test_a_server_without_the_archive_is_named_with_its_reason(run_datasets, server, tmp_path, answer, reason):
    server.answers("speech_commands_v0.02.tar.gz", answer)
    done = run_datasets("prepare", "speech_commands_10", "--root", tmp_path / "root")
    assert one_line(done), done.stderr
    last = done.stderr.splitlines()[-1]
    assert server.url in last
    assert any(part in last for part in reason.split("|")), last
    assert "--archive" in last


def one_line(done) -> bool:
    """The command failed with one line of error, after those that say what it was at."""
    lines = done.stderr.splitlines()
    return done.returncode == 2 and [line for line in lines if line.startswith("error: ")] == lines[-1:]


def test_a_mirror_comes_first(run_datasets, server, packed, tmp_path):
    content = packed["esc50"]["ESC-50-master.zip"]
    server.answers("mirror/ESC-50-master.zip", gives(content, kind="application/zip"))
    done = run_datasets("prepare", "esc_10", "--root", tmp_path / "root", "--url", f"{server.url}mirror/")
    assert done.returncode == 0, done.stderr
    assert fetched(server) == ["mirror/ESC-50-master.zip"]


def test_a_mirror_with_another_archive_needs_its_checksum(run_datasets, server, tmp_path):
    other = tar(originals.write_speech_commands(tmp_path / "other", speakers=6))
    url = server.answers("other/mine.tar.gz", gives(other))
    arguments = ["prepare", "speech_commands_10", "--root", tmp_path / "root", "--url", url]
    wrong = run_datasets(*arguments, "--checksum", "sha256:" + 64 * "0")
    assert one_line(wrong), wrong.stderr
    assert set(fetched(server)) == {"other/mine.tar.gz"}
    done = run_datasets(*arguments, "--checksum", sha256(other))
    assert done.returncode == 0, done.stderr
    assert len(datasets.load("speech_commands_10")) == 60
    assert one_line(run_datasets(*arguments, "--checksum", "sha256:12"))


def test_given_archives_are_unpacked_and_nothing_is_fetched(run_datasets, server, packed, tmp_path):
    files = []
    for name, content in packed["nsynth"].items():
        files += ["--archive", tmp_path / name]
        (tmp_path / name).write_bytes(content)
    done = run_datasets("prepare", "nsynth_family", "--root", tmp_path / "root", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.asked == []
    assert all((tmp_path / name).exists() for name in packed["nsynth"])  # the user's own files stay


def test_a_damaged_copy_of_the_original_is_refused(run_datasets, server, packed, tmp_path):
    name, content = next(iter(packed["speech_commands_v0.02"].items()))
    (tmp_path / name).write_bytes(content[:-9] + b"\0" + content[-8:])
    done = run_datasets("prepare", "speech_commands_10", "--root", tmp_path / "root", "--archive", tmp_path / name)
    assert one_line(done), done.stderr
    assert "sha256" in done.stderr.lower()


def test_an_unpacked_folder_fetches_nothing(run_datasets, server, tmp_path):
    originals.write_esc(tmp_path / "root" / "ESC-50-master")
    assert run_datasets("prepare", "esc_50", "--root", tmp_path / "root").returncode == 0
    assert server.asked == []


def test_one_folder_may_hold_all_collections(run_datasets, server, tmp_path, monkeypatch):
    originals.write_speech_commands(tmp_path / "data" / "speech_commands")
    originals.write_esc(tmp_path / "data" / "esc")
    monkeypatch.setenv("CLAR_DATA", str(tmp_path / "data"))
    assert len(datasets.load("speech_commands_10")) == 30
    assert len(datasets.load("esc_10")) == 50
    assert server.asked == []


def test_a_hostile_archive_writes_nothing_outside(run_datasets, server, tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("../../escaped.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    file = tmp_path / "bad.tar.gz"
    file.write_bytes(content.getvalue())
    done = run_datasets("prepare", "speech_commands_10", "--root", tmp_path / "a" / "root", "--archive", file)
    assert one_line(done), done.stderr
    assert not list(tmp_path.rglob("escaped.txt"))


def test_hear_from_its_archive(run_datasets, server, tmp_path):
    originals.write_hear(tmp_path / "task", "new_split_kfold")
    file = tmp_path / "hear-task-48000.tar.gz"
    file.write_bytes(tar(tmp_path / "task", "hear-task/tasks/task"))
    name = f"hear:{tmp_path / 'root'}"
    done = run_datasets("prepare", name, "--archive", file)
    assert done.returncode == 0, done.stderr
    assert datasets.folds(name) == 5
    assert "fold 5" in run_datasets("info", name).stdout


@pytest.mark.slow
def test_killed_at_any_moment_the_command_goes_on(server, packed, tmp_path):
    """SIGKILL a few times while it fetches, unpacks and decodes, then let it end: the same store as undisturbed."""
    name, content = "speech_commands_v0.02.tar.gz", packed["speech_commands_v0.02"]["speech_commands_v0.02.tar.gz"]
    server.answers(f"slow/{name}", gives(content, pause=0.02))
    command = [
        *COMMAND, "prepare", "speech_commands_35", "--root", str(tmp_path / "root"),
        "--url", f"{server.url}slow/{name}", "--checksum", sha256(content),
    ]  # fmt: skip
    for seconds in (0.6, 0.9, 1.2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    place = originals.write_speech_commands(tmp_path / "whole")
    assert datasets.load("speech_commands_35").fingerprint == datasets.load("speech_commands_35", place).fingerprint


def test_an_archive_of_the_users_in_the_folder_stays(run_datasets, server, packed, tmp_path):
    file = tmp_path / "root" / "ESC-50-master.zip"
    file.parent.mkdir()
    file.write_bytes(packed["esc50"]["ESC-50-master.zip"])
    done = run_datasets("prepare", "esc_50", "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert "fetching" not in done.stderr
    assert server.asked == []
    assert file.exists()


def test_what_was_removed_is_unpacked_and_fetched_again(run_datasets, server, packed, tmp_path):
    """The unpacking is remembered in the folder; its files are what counts."""
    file = tmp_path / "esc.zip"
    file.write_bytes(packed["esc50"]["ESC-50-master.zip"])
    arguments = ["prepare", "esc_50", "--root", tmp_path / "root"]
    assert run_datasets(*arguments, "--archive", file).returncode == 0
    shutil.rmtree(tmp_path / "root" / "ESC-50-master")
    assert run_datasets(*arguments, "--archive", file).returncode == 0
    shutil.rmtree(tmp_path / "root" / "ESC-50-master")
    assert run_datasets(*arguments).returncode == 0
    assert fetched(server) == ["ESC-50-master.zip"]


@pytest.mark.parametrize("name", ["speech_commands_10", "speech_commands_35"])
@pytest.mark.parametrize("version", ["v0.01", "v0.02"])
def test_one_version_of_speech_commands_is_not_taken_for_the_other(run_datasets, server, tmp_path, name, version):
    originals.write_speech_commands(tmp_path / "root", version)
    wrong = {"v0.01": "", "v0.02": ":v0.01"}[version]
    done = run_datasets("prepare", f"{name}{wrong}", "--root", tmp_path / "root")
    assert one_line(done), done.stderr
    assert "say" in done.stderr or "leave out :v0.01" in done.stderr


def test_a_list_whose_lines_mean_nothing_is_refused(run_datasets, server, tmp_path):
    root = originals.write_speech_commands(tmp_path / "root")
    path = root / "testing_list.txt"
    text = path.read_text()
    for spoilt in (text.replace("eight/", "Eight/"), text.replace("/", "\\")):
        path.write_text(spoilt)
        done = run_datasets("prepare", "speech_commands_10", "--root", root)
        assert one_line(done), done.stderr
        assert "testing_list.txt, line " in done.stderr


def test_folds_of_a_task_that_is_elsewhere_now(run_datasets, server, tmp_path):
    name = f"hear:{originals.write_hear(tmp_path / 'task', 'new_split_kfold')}"
    assert run_datasets("prepare", name).returncode == 0
    shutil.rmtree(tmp_path / "task")
    assert datasets.folds(name) == 5
    assert datasets.load(name).fold_count == 5


NOBODY = """
import os, sys
os.setgroups([]); os.setuid(65534)
from clar.cli import command
from clar.datasets.__main__ import app
sys.exit(command(app))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "folder:{place}/x"],
        ["prepare", "hear:{place}/x"],
        ["prepare", "esc_50", "--root", "{place}/x"],
        ["prepare", "esc_50", "--root", "{open}", "--archive", "{place}/x.tar"],
        ["prepare", "folder:/" + 300 * "x"],
        ["prepare", "folder:~nobody-of-this-name/x"],
        ["prepare", "digits:" + 5000 * "9"],
        ["prepare", "folder:y", "--archive", "x.tar", "--root", "z"],
    ],
)
def test_places_that_cannot_be_reached_are_said_in_one_line(server, tmp_path, arguments):
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "open").mkdir(mode=0o777)
    tmp_path.chmod(0o755)
    places = {"place": tmp_path / "private", "open": tmp_path / "open"}
    script = NOBODY if os.getuid() == 0 else NOBODY.replace("os.setgroups([]); os.setuid(65534)", "")
    if os.getuid() != 0:
        (tmp_path / "private").chmod(0)
    environment = os.environ | {"CLAR_CACHE": str(tmp_path / "open" / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", script, *(argument.format(**places) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "Traceback" in done.stderr and "site-packages" not in done.stderr and "import" in done.stderr:
        pytest.skip("nobody may not read this interpreter")
    assert one_line(done), done.stderr
