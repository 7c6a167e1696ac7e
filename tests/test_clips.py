"""ClipStore and its building: what comes out, what is left out, and what survives interruption."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clar import building, clips
from clar.building import build
from clar.clips import ClipStore, DamagedStore, Source, fit
from clar.errors import UserError

SAMPLES = 50


def make_source(decode=None, n=40, seed=0, shard=8) -> Source:
    data = np.random.default_rng(seed).integers(-3000, 3000, (n, SAMPLES)).astype(np.int16)
    return Source(
        name="toy",
        classes=["a", "b"],
        sample_rate=100,
        samples=SAMPLES,
        files=[f"clip{i}.wav" for i in range(n)],
        stamps=[f"{seed}"] * n,
        labels=np.arange(n) % 2,
        splits=np.array([0, 0, 1, 1, 2, 2, 0, 0] * (n // 8), np.uint8),
        decode=decode or (lambda start, stop: (data[start:stop], [None] * (stop - start))),
        shard=shard,
    )


def bad_rows(source: Source, bad: dict[int, str]) -> Source:
    return replace(
        source,
        decode=lambda start, stop: (source.decode(start, stop)[0], [bad.get(i) for i in range(start, stop)]),
    )


def test_store_holds_what_was_built(tmp_path):
    source = make_source()
    store = build(tmp_path / "toy", source)
    assert store.clips.dtype == np.int16
    assert store.clips.shape == (40, SAMPLES)
    assert isinstance(store.clips, np.memmap)
    assert np.array_equal(store.clips, source.decode(0, 40)[0])
    assert store.labels.dtype == np.int64
    assert np.array_equal(store.labels, source.labels)
    assert store.classes == ["a", "b"]
    assert store.files == source.files
    assert store.sample_rate == 100
    assert store.left_out == []
    assert np.array_equal(store.split("valid"), np.flatnonzero(source.splits == 1))
    assert store.split("train").dtype == np.int64
    assert len(store) == 40
    assert "40 clips" in repr(store)
    with pytest.raises(ValueError, match="read-only"):
        store.clips[0, 0] = 1


def test_unknown_split_names_near_ones(tmp_path):
    with pytest.raises(UserError, match="did you mean valid"):
        build(tmp_path / "toy", make_source()).split("validation")


def test_pickles_by_path(tmp_path):
    store = build(tmp_path / "toy", make_source())
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert again.fingerprint == store.fingerprint
    assert np.array_equal(again.clips, store.clips)


def test_fingerprint_depends_on_content_alone(tmp_path):
    source = make_source()
    first = build(tmp_path / "first", source).fingerprint
    assert build(tmp_path / "second", make_source(shard=13)).fingerprint == first
    assert len(first) == 64
    labels, splits = source.labels.copy(), source.splits.copy()
    labels[0], splits[0] = 1, 2
    data = source.decode(0, 40)[0].copy()
    data[7, 3] += 1
    changed = [
        replace(source, labels=labels),
        replace(source, splits=splits),
        replace(source, classes=["a", "c"]),
        replace(source, sample_rate=101),
        replace(source, decode=lambda start, stop: (data[start:stop], [None] * (stop - start))),
    ]
    others = {build(tmp_path / f"changed{i}", other).fingerprint for i, other in enumerate(changed)}
    assert len(others | {first}) == 6


def test_bad_rows_are_left_out_and_named(tmp_path, capsys):
    source = bad_rows(make_source(), {3: "silent", 20: "empty"})
    store = build(tmp_path / "toy", source, allow_bad=2)
    keep = np.delete(np.arange(40), [3, 20])
    assert np.array_equal(store.clips, source.decode(0, 40)[0][keep])
    assert np.array_equal(store.labels, source.labels[keep])
    assert store.left_out == [("clip3.wav", "silent"), ("clip20.wav", "empty")]
    assert store.files == [source.files[i] for i in keep]
    said = capsys.readouterr().err
    assert "2 of 40 files" in said
    assert "clip20.wav: empty" in said


def test_too_many_bad_rows_stop_and_good_ones_are_decoded_no_second_time(tmp_path):
    calls = []
    source = make_source(n=80)
    inner = bad_rows(source, dict.fromkeys(range(30), "silent")).decode
    counted = replace(source, decode=lambda start, stop: (calls.append(start), inner(start, stop))[1])
    with pytest.raises(UserError, match=r"30 of 80 files.*above the limit of 0.*--allow-bad 30") as error:
        build(tmp_path / "toy", counted)
    assert str(error.value).count("clip") == 20
    assert "… and 10 more" in str(error.value)
    calls.clear()
    assert len(build(tmp_path / "toy", counted, allow_bad=30)) == 50
    assert sorted(calls) == [0, 8, 16, 24]  # the shards with the bad ones, which may have been repaired
    with pytest.raises(UserError, match="above the limit of 5"):
        build(tmp_path / "toy", counted, allow_bad=5)


def test_a_file_that_is_repaired_is_used(tmp_path):
    """Its stamp is the same: a permission was given, a disk answers again. In a build under way, and in a store."""
    source, passing = make_source(n=200), {7: "unreadable: Permission denied"}
    flaky = replace(
        source,
        decode=lambda start, stop: (source.decode(start, stop)[0], [passing.get(row) for row in range(start, stop)]),
    )
    with pytest.raises(UserError, match="above the limit of 0"):
        build(tmp_path / "toy", flaky, allow_bad=0)
    assert len(build(tmp_path / "toy", flaky)) == 199
    never, seen = counting(flaky)
    assert len(build(tmp_path / "toy", never)) == 199
    assert seen == [7]  # looked at, and nothing else
    passing.clear()
    assert len(build(tmp_path / "toy", flaky)) == 200


def test_recordings_that_were_repaired_are_not_taken_from_another_store(tmp_path):
    source, passing = replace(make_source(n=200), recordings="toy"), {7: "unreadable: Permission denied"}
    flaky = replace(
        source,
        decode=lambda start, stop: (source.decode(start, stop)[0], [passing.get(row) for row in range(start, stop)]),
    )
    build(tmp_path / "one", flaky)
    assert len(build(tmp_path / "two", replace(flaky, name="two"))) == 199
    passing.clear()
    assert len(build(tmp_path / "three", replace(flaky, name="three"))) == 200


def test_a_changed_decoder_builds_again(tmp_path):
    first, seen = counting(replace(make_source(), decoder="1"))
    build(tmp_path / "toy", first)
    seen.clear()
    build(tmp_path / "toy", first)
    assert seen == []
    build(tmp_path / "toy", replace(first, decoder="2"))
    assert len(seen) == 5


def test_a_store_in_a_folder_for_reading_is_just_opened(tmp_path, monkeypatch):
    store = build(tmp_path / "toy", make_source())
    monkeypatch.setattr(building, "held", lambda path, busy: pytest.fail("locked"))
    assert build(tmp_path / "toy", make_source()).fingerprint == store.fingerprint


def test_every_fold_must_have_all_classes_to_train_on(tmp_path):
    folds = (np.arange(40) % 5 + 1).astype(np.uint8)
    labels = np.where(folds == 4, 1, 0)
    labels[folds == 5] = np.arange(8) % 2
    labels[folds == 4] = 1
    source = replace(make_source(), folds=folds, splits=building.fold_splits(folds, 1), labels=labels)
    with pytest.raises(UserError, match="toy, tested on fold 4: no training file for the class b"):
        build(tmp_path / "toy", source)


def test_a_store_that_is_replaced_while_it_is_opened_is_one_or_the_other(tmp_path, monkeypatch):
    path, real, swapped = tmp_path / "toy", ClipStore._map, []
    build(path, make_source())

    def swap(store, meta):
        real(store, meta)
        if not swapped:
            swapped.append(True)
            build(path, make_source(n=80, seed=5))

    monkeypatch.setattr(ClipStore, "_map", swap)
    store = ClipStore(path)
    assert len(store.labels) == len(store.clips) == 80
    assert np.array_equal(store.clips, make_source(n=80, seed=5).decode(0, 80)[0])


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"format": 1}', '{"format": 1, "bytes": []}', "{"])
def test_a_meta_of_another_shape_is_damaged(tmp_path, content):
    (build(tmp_path / "toy", make_source()).path / "meta.json").write_text(content)
    with pytest.raises(DamagedStore):
        ClipStore.open(tmp_path / "toy")


def test_one_percent_may_be_bad(tmp_path):
    assert len(build(tmp_path / "toy", bad_rows(make_source(n=200), {7: "empty", 9: "empty"}))) == 198


def test_empty_split_or_class_is_an_error(tmp_path):
    source = make_source()
    with pytest.raises(UserError, match="the test split has no file"):
        build(tmp_path / "toy", replace(source, splits=np.minimum(source.splits, 1)))
    with pytest.raises(UserError, match="no training file for the class b"):
        build(tmp_path / "toy", replace(source, labels=np.where(source.splits == 0, 0, source.labels)))
    with pytest.raises(UserError, match="valid split has no file that can be used"):
        build(tmp_path / "toy", bad_rows(source, dict.fromkeys(np.flatnonzero(source.splits == 1), "silent")), 40)


@pytest.mark.parametrize("file", ["clips.int16", "labels.npy", "splits.npy", "files.txt", "meta.json"])
def test_half_written_store_is_damaged_and_built_again(tmp_path, file):
    path = tmp_path / "toy"
    store = build(path, make_source())
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedStore):
        ClipStore.open(path)
    assert build(path, make_source()).fingerprint == store.fingerprint
    (path / file).unlink()
    with pytest.raises(DamagedStore):
        ClipStore.open(path)


OTHER_BYTES = [(0, b"x"), (20, b"((("), (22, b"O"), (61, b"9")]
"""An unreadable head, another type, another shape; the file is as long as it was."""


@pytest.mark.parametrize(
    ("file", "place", "content"),
    [
        *((file, *other) for file in ("labels.npy", "splits.npy", "seconds.npy") for other in OTHER_BYTES),
        ("labels.npy", 129, b"\xff"),  # a class that there is not
        ("splits.npy", 129, b"\x03"),
    ],
)
def test_arrays_with_other_bytes_are_damaged(tmp_path, file, place, content):
    store = build(tmp_path / "toy", make_source())
    spoilt = bytearray((store.path / file).read_bytes())
    spoilt[place : place + len(content)] = content
    (store.path / file).write_bytes(spoilt)
    with pytest.raises(DamagedStore, match=f"is damaged .*{file} holds"):
        ClipStore.open(store.path)
    assert build(store.path, make_source()).labels.tolist() == [0, 1] * 20


def test_store_of_another_format_is_damaged(tmp_path):
    path = tmp_path / "toy"
    build(path, make_source())
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": 0}))
    with pytest.raises(DamagedStore, match="format 0"):
        ClipStore.open(path)


def test_no_store_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no clip store"):
        ClipStore.open(tmp_path / "nowhere")


def test_changed_source_is_built_again_and_unchanged_is_not(tmp_path):
    path = tmp_path / "toy"
    first = build(path, make_source())
    never = replace(make_source(), decode=lambda start, stop: pytest.fail("decoded again"))
    assert build(path, never).fingerprint == first.fingerprint
    assert build(path, make_source(seed=1)).fingerprint != first.fingerprint
    assert not list(tmp_path.glob(".toy.[bno]*"))  # no working folder is left


def test_failing_build_leaves_finished_shards(tmp_path):
    source = make_source()
    seen = []

    def failing(start, stop):
        if start == 24:
            raise OSError("disk gone")
        seen.append(start)
        return source.decode(start, stop)

    with pytest.raises(OSError, match="disk gone"):
        build(tmp_path / "toy", replace(source, decode=failing))
    assert not (tmp_path / "toy").exists()
    first = set(seen)
    seen.clear()

    def counted(start, stop):
        seen.append(start)
        return source.decode(start, stop)

    store = build(tmp_path / "toy", replace(source, decode=counted))
    assert not first & set(seen)
    assert np.array_equal(store.clips, source.decode(0, 40)[0])


def counting(source: Source) -> tuple[Source, list[int]]:
    """The source, and the first rows of the shards that are decoded of it."""
    seen: list[int] = []
    return replace(source, decode=lambda start, stop: (seen.append(start), source.decode(start, stop))[1]), seen


def without(source: Source, row: int) -> Source:
    """The source after file `row` was removed: the rows behind it shift."""
    keep = np.delete(np.arange(len(source.files)), row)

    def decode(start, stop):
        clips_NT, reasons = source.decode(0, len(source.files))
        return clips_NT[keep[start:stop]], [reasons[i] for i in keep[start:stop]]

    files, stamps = [source.files[i] for i in keep], [source.stamps[i] for i in keep]
    return replace(
        source, files=files, stamps=stamps, labels=source.labels[keep], splits=source.splits[keep], decode=decode
    )


@pytest.mark.parametrize("removed", [0, 12, 39])
def test_marks_of_another_source_are_not_trusted(tmp_path, removed):
    """Refused with all files, refused with one file less, allowed with all: no clip has its neighbour's label."""
    source = bad_rows(make_source(), {30: "silent"})
    for refused in (source, without(source, removed)):
        with pytest.raises(UserError, match="above the limit"):
            build(tmp_path / "toy", refused)
    store = build(tmp_path / "toy", source, allow_bad=1)
    assert np.array_equal(store.clips, np.delete(source.decode(0, 40)[0], 30, 0))
    assert store.fingerprint == build(tmp_path / "undisturbed", source, allow_bad=1).fingerprint


def test_lines_of_another_source_are_removed_before_its_clips_are(tmp_path):
    source, journal = bad_rows(make_source(), {30: "silent"}), tmp_path / ".toy.building" / "journal-4"
    with pytest.raises(UserError, match="above the limit"):
        build(tmp_path / "toy", source)
    assert len(journal.read_text().splitlines()) == 40

    def look(start, stop):
        assert journal.read_text() == ""
        raise OSError("stop here")

    with pytest.raises(OSError, match="stop here"):
        build(tmp_path / "toy", replace(make_source(seed=1), decode=look))


def test_a_build_goes_on_at_the_file(tmp_path):
    """Of a shard of which some files are known, the others are decoded, in as few calls as they make."""
    source = replace(bad_rows(make_source(), {30: "silent"}), shard=0)
    with pytest.raises(UserError, match="above the limit"):
        build(tmp_path / "toy", source)
    journal = tmp_path / ".toy.building" / "journal-4"
    lines = journal.read_text().splitlines(keepends=True)
    gone = {3, 4, 5, 17, 39}
    journal.write_text("".join(line for line in lines if json.loads(line)[0] not in gone) + '[39, "half a li')
    ranges = []
    counted = replace(source, decode=lambda *rows: (ranges.append(rows), source.decode(*rows))[1])
    store = build(tmp_path / "toy", counted, allow_bad=1)
    assert sorted(ranges) == [(3, 6), (17, 18), (30, 31), (39, 40)]  # 30 is bad, and may have been repaired
    assert np.array_equal(store.clips, np.delete(make_source().decode(0, 40)[0], 30, 0))
    assert store.fingerprint == build(tmp_path / "undisturbed", source, allow_bad=1).fingerprint


@pytest.mark.parametrize(
    "line",
    ['[3.0, "k", 1, 1.0, null]', '["3", "k", 1, 1.0, null]', '[3, "k", 1, "1", null]', "[[]]", "7", "\x00\ufffd"],
)
def test_a_journal_with_other_bytes_is_not_believed(tmp_path, line):
    source, journal = bad_rows(make_source(), {30: "silent"}), tmp_path / ".toy.building" / "journal-4"
    with pytest.raises(UserError, match="above the limit"):
        build(tmp_path / "toy", source)
    lines = journal.read_text().splitlines()
    own = next(each for each in lines if each.startswith("[3,"))
    key = json.loads(own)[1]
    journal.write_text("\n".join(each if each != own else line.replace("k", key) for each in lines))
    assert len(build(tmp_path / "toy", source, allow_bad=1)) == 39


def test_too_small_a_disk_is_known_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10))
    never = replace(make_source(), decode=lambda start, stop: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"0\.0 GB are needed and 0\.0 GB are free; make room"):
        build(tmp_path / "toy", never)


def test_stores_of_the_same_recordings_share_their_clips(tmp_path):
    """Other labels, other classes: one file of clips, decoded once; a change of the recordings ends that."""
    source = replace(bad_rows(make_source(), {30: "silent"}), recordings="toy")
    first = build(tmp_path / "toy", source, allow_bad=1)
    other = replace(
        source, name="other", classes=["x", "y", "z"], labels=np.arange(40) % 3,
        decode=lambda *rows: source.decode(*rows) if rows == (30, 31) else pytest.fail("decoded again"),
    )  # fmt: skip
    second = build(tmp_path / "other", other, allow_bad=1)
    assert (first.path / "clips.int16").samefile(second.path / "clips.int16")
    assert second.left_out == first.left_out
    assert second.files == first.files
    assert np.array_equal(second.labels, np.delete(np.arange(40) % 3, 30))
    alone = build(tmp_path / "alone" / "other", replace(other, decode=source.decode), allow_bad=1)
    assert alone.fingerprint == second.fingerprint
    changed = replace(source, name="new", stamps=["new"] * 40)
    assert not (build(tmp_path / "new", changed, allow_bad=1).path / "clips.int16").samefile(first.path / "clips.int16")


def test_links_that_the_file_system_refuses_become_copies(tmp_path, monkeypatch):
    source = replace(make_source(), recordings="toy")
    first = build(tmp_path / "toy", source)

    def refuse(old, new):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    second = build(tmp_path / "other", replace(source, name="other"))
    assert np.array_equal(second.clips, first.clips)


def test_folds(tmp_path):
    folds = (np.arange(40) % 5 + 1).astype(np.uint8)
    source = replace(make_source(), folds=folds, splits=clips.fold_splits(folds, 5), labels=np.arange(40) // 5 % 2)
    store = build(tmp_path / "toy", source)
    assert store.fold_count == 5
    for fold in range(1, 6):
        assert np.array_equal(store.split("test", fold), np.flatnonzero(folds == fold))
        assert np.array_equal(store.split("valid", fold), np.flatnonzero(folds == fold % 5 + 1))
        parts = [store.split(name, fold) for name in clips.SPLITS]
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(40))
    assert np.array_equal(store.split("test"), store.split("test", 5))
    with pytest.raises(UserError, match="fold = 6: there are 5 folds, 1 to 5"):
        store.split("test", 6)
    assert store.fingerprint != build(tmp_path / "without", replace(source, folds=None)).fingerprint
    with pytest.raises(UserError, match="toy has no folds"):
        build(tmp_path / "without", replace(source, folds=None)).split("test", 1)


def test_two_folds_are_too_few():
    with pytest.raises(UserError, match="2 folds are too few"):
        clips.fold_splits(np.array([1, 2, 1, 2], np.uint8), 1)


def test_lengths_of_recordings_and_notes_are_kept(tmp_path):
    source = make_source()
    seconds = np.linspace(0.1, 4.0, 40).astype(np.float32)
    told = replace(
        bad_rows(source, {3: "silent"}), notes=["missing words: c"],
        decode=lambda start, stop: clips.Decoded(
            source.decode(start, stop)[0], [None if i != 3 else "silent" for i in range(start, stop)],
            seconds[start:stop],
        ),
    )  # fmt: skip
    store = build(tmp_path / "toy", told, allow_bad=1)
    assert np.allclose(store.recording_seconds, np.delete(seconds, 3), atol=1e-4)
    assert store.notes == ["missing words: c"]
    assert np.isnan(build(tmp_path / "untold", source).recording_seconds).all()


def test_classes_of_a_fixed_list_may_be_empty(tmp_path):
    source = replace(make_source(), classes=["a", "b", "c"])
    with pytest.raises(UserError, match="toy: no training file for the class c"):
        build(tmp_path / "toy", source)
    assert build(tmp_path / "toy", replace(source, vocabulary=True)).classes == ["a", "b", "c"]


def test_a_name_with_a_line_break_or_no_utf8_cannot_break_the_list(tmp_path):
    source = make_source()
    names = [*source.files[:38], "two\nlines.wav", os.fsdecode(b"m\xfcller.wav")]
    store = build(tmp_path / "toy", replace(source, files=names), allow_bad=1)
    assert store.left_out == [("two\nlines.wav", "a line break in its name")]
    assert store.files == [*names[:38], names[39]]
    never = replace(source, files=names, decode=lambda *rows: pytest.fail("decoded again"))
    assert build(tmp_path / "toy", never, allow_bad=1).fingerprint == store.fingerprint


def test_the_same_clip_in_two_splits_is_named(tmp_path):
    """By content: copies have names of their own. Twice in one split is no leak, nor is the same sum of samples."""
    source = make_source()
    clips_NT = source.decode(0, 40)[0].copy()
    clips_NT[4] = clips_NT[9] = clips_NT[1]  # test, train and train
    clips_NT[2] = clips_NT[10]  # valid and valid
    clips_NT[5] = clips_NT[0][::-1]  # test, as loud as one of train
    same = replace(source, decode=lambda start, stop: (clips_NT[start:stop], [None] * (stop - start)))
    store = build(tmp_path / "toy", same)
    assert store.notes == [
        "1 file holds the clip of another split's file, first clip4.wav (test) that of clip1.wav (train)"
    ]
    folds = np.arange(40) % 4 + 1
    folded = replace(same, folds=folds, splits=clips.fold_splits(folds, 4), labels=np.arange(40) // 4 % 2)
    assert "clip4.wav (fold 1) that of clip1.wav (fold 2)" in build(tmp_path / "folded", folded).notes[0]
    assert build(tmp_path / "other", source).notes == []


def test_a_store_of_an_older_version_opens(tmp_path):
    """Stores that were built before there were folds, lengths and notes."""
    path = build(tmp_path / "toy", make_source()).path
    meta = json.loads((path / "meta.json").read_text())
    for key in ("recordings", "content", "notes"):
        del meta[key]
    del meta["bytes"]["seconds.npy"]
    (path / "seconds.npy").unlink()
    (path / "meta.json").write_text(json.dumps(meta))
    store = ClipStore.open(path)
    assert (store.fold_count, store.notes, store.recordings) == (0, [], "")
    assert np.isnan(store.recording_seconds).all()
    assert store.groups == [""] * 40


def test_groups_are_kept_beside_the_clips(tmp_path):
    """They are no part of the content: a store that has none, or others, gets them and decodes nothing."""
    source = bad_rows(make_source(), {3: "silent"})
    plain = build(tmp_path / "toy", source, allow_bad=1)
    assert not (plain.path / "groups.txt").exists()
    for names in ([f"speaker {i % 7}" for i in range(40)], ["", *map(str, range(39))], [""] * 40):
        never = replace(source, groups=names, decode=lambda a, b: (source.decode(a, b)[0], ["silent"]))
        store = build(tmp_path / "toy", never, allow_bad=1)
        assert store.groups == [*names[:3], *names[4:]]
        assert (store.fingerprint, store.manifest) == (plain.fingerprint, plain.manifest)
        assert ClipStore.open(store.path).groups == store.groups
        fresh = build(tmp_path / f"fresh {names[1]}", replace(source, groups=names), allow_bad=1)
        assert (fresh.groups, fresh.fingerprint) == (store.groups, store.fingerprint)
    (store.path / "groups.txt").write_text("speaker 1\n")
    with pytest.raises(DamagedStore, match=r"groups\.txt has 10 of"):
        ClipStore.open(store.path)


def test_groups_of_a_store_that_cannot_be_written_are_done_without(tmp_path, monkeypatch):
    store = build(tmp_path / "toy", make_source())

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(building, "held", refuse)
    again = build(tmp_path / "toy", replace(make_source(), groups=["x"] * 40))
    assert (again.groups, again.fingerprint) == ([""] * 40, store.fingerprint)


@pytest.mark.parametrize(("length", "said"), [(0.24, True), (0.25, False), (np.nan, False)])
def test_clips_that_are_mostly_padding_are_noted(tmp_path, length, said):
    source = make_source()
    lengths = np.full(40, length, np.float32)
    lengths[:15] = 0.5
    told = replace(source, decode=lambda a, b: clips.Decoded(source.decode(a, b)[0], [None] * (b - a), lengths[a:b]))
    store = build(tmp_path / "toy", told)
    assert [note.startswith("most of a clip is padding: it has 0.5 s") for note in store.notes] == [True] * said
    assert build(tmp_path / "toy", told).notes == store.notes


def test_building_holds_little_in_memory(tmp_path):
    """A store of 400 MB is built in a process that may not grow by a quarter of that."""
    script = """
import re, sys
import numpy as np
from pathlib import Path
from clar.building import build
from clar.clips import Source
count, samples = 3200, 64_000
noise = np.random.default_rng(0).integers(-9, 9, samples).astype(np.int16)
source = Source(
    name="big", classes=["a"], sample_rate=16_000, samples=samples, files=[f"{i}.wav" for i in range(count)],
    stamps=[""] * count, labels=np.zeros(count, np.int64), splits=(np.arange(count) % 3).astype(np.uint8),
    decode=lambda start, stop: (np.stack([np.roll(noise, i) for i in range(start, stop)]), [None] * (stop - start)),
)
def most():  # not getrusage's, which a process takes over from the one that starts it
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = most()
build(Path(sys.argv[1]), source)
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "big"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 * 1024


def many(decode=None, count=1200) -> Source:
    """So many clips that processes decode them."""
    data = np.random.default_rng(3).integers(-3000, 3000, (count, SAMPLES)).astype(np.int16)
    return replace(
        make_source(lambda start, stop: (data[start:stop], [None] * (stop - start)), n=count),
        shard=0, **({"decode": decode} if decode else {}),
    )  # fmt: skip


@pytest.fixture
def alone(monkeypatch):
    """This process as the command's would be: without other threads, of which earlier tests may have left some."""
    monkeypatch.setattr(building.threading, "active_count", lambda: 1)
    monkeypatch.setattr(building, "cores", lambda: 2)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_processes_and_threads_build_the_same(tmp_path, monkeypatch, alone):
    who = tmp_path / "who"
    who.mkdir()
    source = many()

    def noted(start, stop):
        (who / str(os.getpid())).touch()
        return source.decode(start, stop)

    forked = build(tmp_path / "forked", replace(source, decode=noted))
    assert str(os.getpid()) not in names(who)
    assert len(names(who)) >= 1
    monkeypatch.setattr(building, "_FORK_FROM", 10**9)
    threaded = build(tmp_path / "threaded", source)
    assert forked.fingerprint == threaded.fingerprint
    assert np.array_equal(forked.clips, source.decode(0, 1200)[0])


def test_a_process_with_threads_does_not_fork(tmp_path, monkeypatch):
    monkeypatch.setattr(building.threading, "active_count", lambda: 2)
    monkeypatch.setattr(building, "ProcessPoolExecutor", lambda *arguments, **named: pytest.fail("forked"))
    build(tmp_path / "toy", many())


def test_a_decoder_that_is_killed_says_so_and_the_build_goes_on(tmp_path, alone):
    source = many()

    def deadly(start, stop):
        if start == 640:
            os.kill(os.getpid(), signal.SIGKILL)
        return source.decode(start, stop)

    with pytest.raises(UserError, match=r"toy: a process that decodes was killed, by a file from clip\d+\.wav on"):
        build(tmp_path / "toy", replace(source, decode=deadly))
    assert np.array_equal(build(tmp_path / "toy", source).clips, source.decode(0, 1200)[0])


def test_what_a_process_raises_is_raised_here(tmp_path, alone):
    def failing(start, stop):
        raise UserError("this cannot be read; do that")

    with pytest.raises(UserError, match="this cannot be read; do that"):
        build(tmp_path / "toy", many(failing))


ORPHANS = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_clips import many
from clar import building
building.cores = lambda: 2
def slow(start, stop):
    (Path({who!r}) / str(os.getpid())).touch()
    time.sleep(60)
building.build(Path({path!r}), many(slow))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_no_process_outlives_a_build_that_is_killed(tmp_path):
    who = tmp_path / "who"
    who.mkdir()
    script = ORPHANS.format(tests=str(Path(__file__).parent), who=str(who), path=str(tmp_path / "toy"))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while len(names(who)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    children = [int(name) for name in names(who)]
    assert len(children) == 2
    process.kill()
    process.wait()
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_will_need_asks_for_the_clips_alone(tmp_path, monkeypatch):
    store, asked = build(tmp_path / "toy", make_source()), []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: asked.append((start, size)))
    store.will_need(np.array([3, 7]))
    assert asked == [(3 * 2 * SAMPLES, 2 * SAMPLES), (7 * 2 * SAMPLES, 2 * SAMPLES)]
    assert pickle.loads(pickle.dumps(store)).fingerprint == store.fingerprint


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda path: os.truncate(path, 1000), lambda path: path.write_bytes(bytes(path.stat().st_size))],
)
def test_mark_is_not_trusted_over_other_bytes(tmp_path, spoil):
    source, seen = counting(bad_rows(make_source(), {30: "silent"}))
    with pytest.raises(UserError, match="above the limit"):
        build(tmp_path / "toy", source)
    spoil(tmp_path / ".toy.building" / "decoded.int16")
    seen.clear()
    store = build(tmp_path / "toy", source, allow_bad=1)
    assert np.array_equal(store.clips, np.delete(make_source().decode(0, 40)[0], 30, 0))
    assert len(seen) >= 4


def test_build_never_writes_into_a_store(tmp_path, monkeypatch):
    """Killed between the store's appearance and the end of the cleaning up, then a build of changed files fails."""
    real = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **how: None if Path(path).name == ".toy.building" else real(path, **how)
    )
    source = make_source()
    store = build(tmp_path / "toy", source)
    assert (tmp_path / ".toy.building").is_dir()
    with pytest.raises(UserError, match="above the limit"):
        build(tmp_path / "toy", bad_rows(make_source(seed=1), dict.fromkeys(range(9), "silent")))
    assert np.array_equal(store.clips, source.decode(0, 40)[0])
    assert np.array_equal(ClipStore.open(tmp_path / "toy").clips, source.decode(0, 40)[0])
    assert (store.path / "clips.int16").stat().st_nlink == 1


def test_cache_that_cannot_be_written_names_the_way_out(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot keep decoded clips in .*file/cache: Not a directory.*set CLAR_CACHE"):
        build(tmp_path / "file" / "cache" / "toy", make_source())


@pytest.mark.parametrize(("good_calls", "again"), [(0, 5), (3, 3), (7, 0)])
def test_full_disk_names_the_way_out(tmp_path, monkeypatch, good_calls, again):
    """Full at the first shard, a later one, and when the store is put together; afterwards the build goes on."""
    left = [good_calls]

    def limited(real):
        def call(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", limited(os.pwrite))
        patch.setattr(os, "fsync", limited(os.fsync))
        with pytest.raises(UserError, match=r"clips in .*: No space left on device; make room.*CLAR_CACHE"):
            build(tmp_path / "toy", make_source())
    source, seen = counting(make_source())
    assert np.array_equal(build(tmp_path / "toy", source).clips, make_source().decode(0, 40)[0])
    assert len(seen) == again


def test_clips_that_another_store_shares_are_not_taken_back(tmp_path):
    """A build's own leftovers beside a half made store that was to share another's clips."""
    other = build(tmp_path / "other", make_source())
    for folder in (".toy.building", ".toy.new"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".toy.building" / "journal-4").write_text("")
    os.link(other.path / "clips.int16", tmp_path / ".toy.new" / "clips.int16")
    build(tmp_path / "toy", make_source(seed=1))
    assert np.array_equal(ClipStore.open(tmp_path / "other").clips, make_source().decode(0, 40)[0])


def test_all_bad_files_stand_in_a_file(tmp_path, capsys):
    source = bad_rows(make_source(n=80), dict.fromkeys(range(30), "silent"))
    with pytest.raises(UserError) as error:
        build(tmp_path / "toy", source)
    listing = tmp_path / "toy-bad-files.txt"
    assert str(listing) in str(error.value)
    assert "add --allow-bad 30 to the command" in str(error.value)
    assert listing.read_text() == "".join(f"clip{i}.wav: silent\n" for i in range(30))
    build(tmp_path / "toy", source, allow_bad=30)
    assert str(listing) in capsys.readouterr().err
    assert len(listing.read_text().splitlines()) == 30
    build(tmp_path / "toy", make_source(n=80, seed=1))  # repaired
    assert not listing.exists()


def _build_slowly(path, log):
    source = make_source()

    def slow(start, stop):
        with open(log, "a") as file:
            file.write(f"{start}\n")
        time.sleep(0.05)
        return source.decode(start, stop)

    print(build(path, replace(source, decode=slow)).fingerprint)


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_build_slowly, args=(tmp_path / "toy", tmp_path / "log")) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted((tmp_path / "log").read_text().split(), key=int) == ["0", "8", "16", "24", "32"]


KILLED = """
import sys, time, os, signal
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_clips import make_source
from clar import building
building.cores = lambda: 1
source = make_source()
def decode(start, stop):
    if start == 24:
        os.kill(os.getpid(), signal.SIGKILL)
    return source.decode(start, stop)
building.build(Path({path!r}), replace(source, decode=decode))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_build_goes_on(tmp_path):
    path = tmp_path / "toy"
    script = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -9
    assert not path.exists()
    source, seen = make_source(), []

    def counted(start, stop):
        seen.append(start)
        return source.decode(start, stop)

    store = build(path, replace(source, decode=counted))
    assert sorted(seen) == [24, 32]
    assert store.fingerprint == build(tmp_path / "undisturbed", source).fingerprint


def test_fit_pads_and_clips_on_the_right():
    assert fit(np.array([1, 2, 3], np.int16), 5).tolist() == [1, 2, 3, 0, 0]
    assert fit(np.array([1, 2, 3], np.int16), 2).tolist() == [1, 2]
    assert fit(np.zeros(0, np.float32), 2).tolist() == [0, 0]


def test_fit_rounds_and_saturates():
    steps = np.array([0.0, 1.4, -1.6, 32766.6, 40000, -40000])
    assert fit(steps / 32768, 6).tolist() == [0, 1, -2, 32767, 32767, -32768]


def test_imports_no_torch():
    script = "import sys, clar.clips, clar.datasets; sys.exit('torch' in sys.modules or 'soundfile' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_cores_is_positive():
    assert clips.cores() >= 1
