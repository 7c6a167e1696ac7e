"""From a server or an archive to a store, by the command: small archives of exactly the originals' layout."""

import io
import os
import shutil
import signal
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
    assert "no train clip of the classes 0, 1, 2" in said


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


DIES = """
import os, signal, sys
from clar import building, datasets
from clar.cli import command
from clar.datasets import fetch, unpack
from clar.datasets.__main__ import app

owner, name, calls = eval(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
real = getattr(owner, name)

def dies(*arguments, **named):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)

setattr(owner, name, dies)
sys.exit(command(app))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_command_goes_on(server, packed, tmp_path):
    """SIGKILL while it fetches, unpacks and before it decodes, then to the end: the same store as undisturbed."""
    name, content = next(iter(packed["speech_commands_v0.02"].items()))
    url = server.answers(f"mirror/{name}", gives(content))
    command = ["prepare", "speech_commands_35", "--root", tmp_path / "root", "--url", url]
    command += ["--checksum", sha256(content)]
    moments = [
        *(("fetch._Part", "append", 2), ("fetch._Part", "finish", 1)),
        *(("unpack._Writer", "_copy", 40), ("unpack._Writer", "_copy", 80), ("unpack._Writer", "finish", 1)),
        ("datasets", "load", 1),
    ]
    for moment in moments:
        done = subprocess.run([sys.executable, "-c", DIES, *map(str, (*moment, *command))], env=os.environ)
        assert done.returncode == -signal.SIGKILL, moment
    first, *rest = server.ranges(f"mirror/{name}")
    assert first is None
    assert len(rest) == 1, "fetched once, in two parts"
    assert rest[0].startswith("bytes=")
    done = subprocess.run([*COMMAND, *map(str, command)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert len(fetched(server)) == 2
    assert not (tmp_path / "root" / name).exists(), "what was fetched goes, in whatever run it was"
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


def test_an_archive_that_is_kept_is_the_users_from_then_on(run_datasets, server, tmp_path):
    arguments = ["prepare", "esc_50", "--root", tmp_path / "root"]
    assert run_datasets(*arguments, "--keep-archive").returncode == 0
    for _ in range(2):
        shutil.rmtree(tmp_path / "root" / "ESC-50-master")
        assert run_datasets(*arguments).returncode == 0
        assert (tmp_path / "root" / "ESC-50-master.zip").exists()
    assert len(fetched(server)) == 1


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
    one = next(line for line in text.splitlines() if line.startswith("eight/"))
    wrong = (f"./{one}", f"/data/{one}", f"data/{one}", f"/{one}", "eight/", f"eigth{one[5:]}")
    for spoilt in (
        *(text.replace("eight/", "Eight/"), text.replace("/", "\\")),
        *(text.replace(one, other) for other in wrong),  # the other lines are as they should be
    ):
        path.write_text(spoilt)
        done = run_datasets("prepare", "speech_commands_10", "--root", root)
        assert one_line(done), done.stderr
        assert "testing_list.txt, line " in done.stderr
    shutil.rmtree(root / "bed")
    path.write_text(text + "hello/1_nohash_0.wav\n")
    originals.write_tone(root / "hello" / "1_nohash_0.wav", 300)
    done = run_datasets("prepare", "speech_commands_10", "--root", root)
    assert done.returncode == 0, "words that are not asked for may be there or not"


def test_folds_of_a_task_that_is_elsewhere_now(run_datasets, server, tmp_path):
    name = f"hear:{originals.write_hear(tmp_path / 'task', 'new_split_kfold')}"
    assert run_datasets("prepare", name).returncode == 0
    shutil.rmtree(tmp_path / "task")
    assert datasets.folds(name) == 5
    assert datasets.load(name).fold_count == 5


HELD_TO_PERMISSIONS = """
import ctypes, sys
header, sets = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None)
assert libc.capget(header, sets) == 0
sets[0] &= ~0b110  # what lets root pass by permissions: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
assert libc.capset(header, sets) == 0
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
    (tmp_path / "private").mkdir(mode=0)
    if os.getuid() == 0:
        os.chown(tmp_path / "private", 65534, -1)
    (tmp_path / "open").mkdir()
    places = {"place": tmp_path / "private", "open": tmp_path / "open"}
    environment = os.environ | {"CLAR_CACHE": str(tmp_path / "open" / "cache")}
    command = [sys.executable, "-c", HELD_TO_PERMISSIONS, *(argument.format(**places) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    (tmp_path / "private").chmod(0o700)  # or pytest cannot remove it
    assert one_line(done), done.stderr
    assert ("Permission denied" in done.stderr) == any("{place}" in argument for argument in arguments)


def test_esc_beside_other_things(run_datasets, server, tmp_path):
    """Its archive has a folder of its own, which need not be the only one where it is put."""
    originals.write_folder(tmp_path / "root" / "mine")
    (tmp_path / "root" / "empty").mkdir()
    done = run_datasets("prepare", "esc_50", "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert len(datasets.load("esc_10", tmp_path / "root")) == 50
    originals.write_esc(tmp_path / "root" / "second")
    done = run_datasets("prepare", "esc_50", "--root", tmp_path / "root")
    assert one_line(done), done.stderr
    assert "ESC-50-master, second; name one of them" in done.stderr


def test_a_mirror_of_none_of_the_archives_is_not_passed_over(run_datasets, server, tmp_path):
    """Else the makers' server is asked for all 24 GB."""
    done = run_datasets("prepare", "nsynth_family", "--root", tmp_path, "--url", f"{server.url}nsynth")
    assert one_line(done), done.stderr
    assert "/nsynth: it is none of nsynth-train.jsonwav.tar.gz, " in done.stderr
    assert not server.asked


def test_two_archives_are_not_mixed(run_datasets, server, packed, tmp_path):
    """What the first holds and the second does not would be trained on, speakers of the test list among it."""
    (name, content), root = next(iter(packed["speech_commands_v0.02"].items())), tmp_path / "root"
    arguments, mine = ["prepare", "speech_commands_35", "--root", root], tmp_path / "mine.tgz"
    mine.write_bytes(tar(originals.write_speech_commands(tmp_path / "older", "v0.01", speakers=4)))
    assert "or name another folder" in run_datasets(*arguments, "--archive", mine).stderr
    (tmp_path / name).write_bytes(content)
    mine.write_bytes(content)  # another under the first one's name
    root.joinpath(name).write_bytes(content)  # there, and so not fetched
    for file in (["--archive", tmp_path / name], ["--archive", mine], []):
        done = run_datasets(*arguments, *file)
        assert one_line(done), done.stderr
        assert f"{root} holds what mine.tgz was unpacked to, and " in done.stderr
    assert not (root / "visual").exists()
    shutil.rmtree(root)
    for file in (mine, tmp_path / name):  # the same under two names
        assert run_datasets(*arguments, "--archive", file).returncode == 0
    assert len(datasets.load("speech_commands_35")) == 105


def test_an_archive_that_is_a_folder(run_datasets, server, tmp_path):
    done = run_datasets("prepare", "esc_50", "--root", tmp_path / "root", "--archive", tmp_path)
    assert one_line(done), done.stderr
    assert f"--archive {tmp_path}: it is a folder; name an archive, or an unpacked folder with --root" in done.stderr


def test_a_picture_has_room_for_any_names(run_datasets, server, tmp_path, recwarn):
    from matplotlib.image import imread

    classes = ("猫", "a name that is far longer than its spectrogram is wide")
    place = originals.write_folder(tmp_path / ("$x_{$" + "long" * 20), classes)
    done = run_datasets("info", f"folder:{place}", "--picture", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    pixels = imread(tmp_path / "a.png")
    assert pixels[:, [0, -1]].min() == pixels[[0, -1]].min() == 1, "nothing is cut off at the edge"
    assert not recwarn.list


def test_help_names_the_defaults(run_datasets, server):
    """In brackets they would be taken for the help's own markup."""
    said = run_datasets("info", "--help").stdout
    assert "default: beside the store" in " ".join(said.replace("│", " ").split())
