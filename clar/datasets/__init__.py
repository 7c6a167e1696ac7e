"""The data sets: `load(name)` opens one, and decodes it first where that has not been done on this machine.

One file a data set. Each makes a `clar.clips.Source`, from which `clar.building` makes a store in the cache folder.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from clar.building import build
from clar.clips import ClipStore, DamagedStore, Source, cache_errors
from clar.datasets import digits, esc, folder, hear, listing, notes, nsynth, scenes, speech_commands
from clar.errors import UserError, near
from clar.files import cache_dir, read_json, write_json


@dataclass(frozen=True)
class Embedded:
    """A data set that is synthesised here.

    Attributes:
        description: one line.
        module: has `VERSION`, `CLIPS` and `whole`.
        source: of so many clips.
        folds: how many it has.
    """

    description: str
    module: ModuleType
    source: Callable[[int], Source]
    folds: int = 0


@dataclass(frozen=True)
class Folder:
    """A data set that is decoded from an unpacked folder of audio files.

    Attributes:
        description: one line.
        collection: what the folder is called below a folder of data sets; several data sets read the same one.
        source: of the data set's name, its option and its folder.
        landmarks: a file of each of its archives, by a part of the archive's name: where it is, that is unpacked.
        options: that the name may have after a colon.
        folds: how many it has.
    """

    description: str
    collection: str
    source: Callable[[str, str, Path], Source]
    landmarks: dict[str, str]
    options: tuple[str, ...] = ()
    folds: int = 0


_SPEECH_COMMANDS = {"": speech_commands.LISTS["test"]}
_NSYNTH = {split: f"{folder}/examples.json" for split, folder in nsynth.FOLDERS.items()}
_ESC = {"": "meta/esc50.csv"}


def _speech_commands(words: tuple[str, ...]) -> Callable[[str, str, Path], Source]:
    return lambda name, option, root: speech_commands.source(name, words, root)


EMBEDDED = {
    "digits": Embedded("ten spoken digits, 2,000 clips of 1 s", digits, digits.source),
    "notes": Embedded(
        "notes of eleven families of instruments, 2 s", notes, lambda clips: notes.source("family", clips)
    ),
    "notes_pitch": Embedded("the same notes, by pitch", notes, lambda clips: notes.source("pitch", clips)),
    "scenes": Embedded("ten classes of environmental sound, 400 clips of 5 s", scenes, scenes.source, folds=5),
}

FOLDERS = {
    "speech_commands_10": Folder(
        "Speech Commands v0.02, the ten digits (SC-10), 1 s; :v0.01 for the older version",
        "speech_commands", _speech_commands(speech_commands.DIGITS), _SPEECH_COMMANDS, ("v0.01", "v0.02"),
    ),
    "speech_commands_35": Folder(
        "Speech Commands v0.02, all 35 words (SC-35), 1 s; :v0.01 for the 30 of the older version",
        "speech_commands", _speech_commands(speech_commands.WORDS), _SPEECH_COMMANDS, ("v0.01", "v0.02"),
    ),
    "nsynth_family": Folder(
        "NSynth, eleven families of instruments (NSynth-11), 4 s", "nsynth",
        lambda name, option, root: nsynth.source(name, "family", root), _NSYNTH,
    ),
    "nsynth_pitch": Folder(
        "NSynth, 128 pitches (NSynth-128), 4 s", "nsynth",
        lambda name, option, root: nsynth.source(name, "pitch", root), _NSYNTH,
    ),
    "esc_50": Folder(
        "ESC-50, fifty classes of environmental sound, 5 s", "esc",
        lambda name, option, root: esc.source(name, root), _ESC, folds=5,
    ),
    "esc_10": Folder(
        "ESC-10, its ten easiest classes, 5 s", "esc",
        lambda name, option, root: esc.source(name, root), _ESC, folds=5,
    ),
}  # fmt: skip

PATHS = {
    "folder": "audio files of your own: a folder per class, or a CSV or Parquet file with columns path, label "
    "and, if there are, split, group and fold; folder:PATH#seconds=2#rate=16000#seed=0, #folds=5 draws folds",
    "hear": "a scene classification task of the HEAR benchmark, from its folder",
}
"""Data sets whose name says where they are, after a colon."""

DESCRIPTIONS = {
    **{name: f"embedded: {one.description}; {name}:N for about N" for name, one in EMBEDDED.items()},
    **{name: one.description for name, one in FOLDERS.items()},
    **{f"{name}:PATH": description for name, description in PATHS.items()},
}
"""Every data set and one line about it."""


def names() -> tuple[str, ...]:
    """The names that `load` takes, without options."""
    return (*EMBEDDED, *FOLDERS, *PATHS)


def load(
    name: str, root: str | os.PathLike[str] | None = None, allow_bad: int | None = None, quiet: bool = False
) -> ClipStore:
    """The data set `name`, built first where it must be.

    Args:
        name: one of `names()`; `digits:N` for about N clips, `folder:PATH` for one that lies there.
        root: the folder of a data set that has one, or a folder that holds it as `speech_commands`, `nsynth` or `esc`.
            None: where it was last prepared from, else `$CLAR_DATA`. With a root the folder is listed, and decoded anew
            where files have changed; without, a built store is just opened.
        allow_bad: files that may be unreadable or silent; none: 1 %.
        quiet: do not print the notes of a store that is built now, for the caller shows them.

    Raises:
        UserError: no such data set, no root is known, the data are not as they must be, or the cache folder cannot be
            written.
    """
    store = _load(name, root, allow_bad)
    if store.fresh and not quiet:
        print("".join(f"{store.name}: {note}\n" for note in store.notes), end="", file=sys.stderr)
    return store


def _load(name: str, root: str | os.PathLike[str] | None, allow_bad: int | None) -> ClipStore:
    base, option = _parse(name)
    if base in FOLDERS:
        with listing.reading(name, Path(root or ".")):
            return _load_folder(name, base, option, root, allow_bad)
    if root is not None:
        why = "lies where its name says" if base in PATHS else "is synthesised"
        raise UserError(f"{name} {why} and takes no root; leave out {os.fspath(root)}")
    if base in PATHS:
        with listing.reading(name, _place(base, option).path):
            return _load_path(name, base, option, allow_bad)
    path = _embedded_path(base, option)
    store = _open_whole(path)
    if store and store.grouped:
        return store
    return build(path, EMBEDDED[base].source(_clips(base, option)), allow_bad)


def canonical(name: str) -> str:
    """The one name of the data set that `load(name)` gives: `digits:2003` and `digits:2000` are `digits`.

    Raises:
        UserError: as `load`, where the name or its option is wrong.
    """
    base, option = _parse(name)
    if base in FOLDERS:
        return base if option in ("", "v0.02") else f"{base}:{option}"
    if base in PATHS:
        return str(_place(base, option))
    module = EMBEDDED[base].module
    clips = module.whole(_clips(base, option))
    return base if clips == module.whole(module.CLIPS) else f"{base}:{clips}"


def built(name: str) -> bool:
    """Whether `load(name)` would only open a store.

    Raises:
        UserError: as `load`, where the name is wrong or the cache folder cannot be read.
    """
    base, option = _parse(name)
    path = _embedded_path(base, option) if base in EMBEDDED else _pointer(canonical(name))[1]
    with cache_errors(cache_dir()):
        return path is not None and (path / "meta.json").is_file()


def takes_root(name: str) -> bool:
    """Whether the data set is decoded from a folder that its name does not say."""
    return _parse(name)[0] in FOLDERS


def folds(name: str) -> int:
    """How many folds the data set has, official ones or one's own; 0: none.

    Raises:
        UserError: the name is wrong, nothing is where it says, or the data set there is none.
    """
    base, option = _parse(name)
    if base in PATHS:
        place = _place(base, option)
        if place.folds:
            return place.folds
        with listing.reading(name, place.path):
            if place.path.exists():
                return hear.folds(place.path) if base == "hear" else folder.folds(place.path)
        _, path = _pointer(str(place))
        if store := path and _open_whole(path):
            return store.fold_count
        raise _nothing_at(name, place.path)
    entry = EMBEDDED.get(base) or FOLDERS.get(base)
    return entry.folds if entry else 0


def _parse(name: str) -> tuple[str, str]:
    """The data set and its option, empty where there is none."""
    base, _, option = name.partition(":")
    if base not in names():
        raise UserError(f"no data set {name!r}{near(base, names())}")
    if base in PATHS and not option:
        raise UserError(f"{name}: write {base}:PATH, with the place of the data after the colon")
    if base in FOLDERS and option and option not in FOLDERS[base].options:
        known = FOLDERS[base].options
        way = f"{base} takes {' or '.join(known)} after the colon" if known else f"{base} takes no option after a colon"
        raise UserError(f"{name}: {way}")
    return base, option


# Embedded ones


def _embedded_path(base: str, option: str) -> Path:
    """Where the store of an embedded data set lies."""
    module = EMBEDDED[base].module
    return cache_dir() / f"{base}-{module.whole(_clips(base, option))}-v{module.VERSION}"


def _clips(base: str, option: str) -> int:
    if not option:
        return int(EMBEDDED[base].module.CLIPS)
    if not (option.isascii() and option.isdigit() and len(option) < 10):
        raise UserError(f"{base}:{option}: write {base}:N with a number of clips, for example {base}:400")
    return int(option)


# Ones in a folder


def source(name: str, root: Path) -> Source:
    """What a data set's store is built from, in the folder `root`.

    Raises:
        UserError: the folder is not what it must be.
    """
    base, option = _parse(name)
    if base in FOLDERS:
        return FOLDERS[base].source(canonical(name), option, root)
    if base == "hear":
        return hear.source(name, root)
    place = _place(base, option)
    return folder.source(name, root, place.seconds, place.rate, place.seed, place.folds)


def unpacked(name: str, root: str | os.PathLike[str]) -> Path:
    """The folder of the data set in `root`: `root` itself, or what is called as its collection in there."""
    path = _expanded(name, os.fspath(root)).resolve()
    base, _ = _parse(name)
    below = path / FOLDERS[base].collection
    return below if below.is_dir() else path


def original(name: str) -> str:
    """What `clar.datasets.fetch.ARCHIVES` calls the archives of a data set that is decoded from a folder."""
    base, option = _parse(name)
    collection = FOLDERS[base].collection
    return {"speech_commands": f"speech_commands_{option or 'v0.02'}", "esc": "esc50"}.get(collection, collection)


def landmark(name: str, archive: str) -> str:
    """A file that the archive of this file name leaves in the data set's folder."""
    return next(file for part, file in FOLDERS[_parse(name)[0]].landmarks.items() if part in archive)


def _load_folder(
    name: str, base: str, option: str, root: str | os.PathLike[str] | None, allow_bad: int | None
) -> ClipStore:
    name = canonical(name)
    if root is None:
        root, path = _pointer(name)
        store = path and _open_whole(path)
        if store:
            return store
        root = root or os.environ.get("CLAR_DATA")
        if not root:
            raise UserError(
                f"{name} is not prepared on this machine; run `python -m clar.datasets prepare {name} --root DIR` "
                "once, where DIR is the unpacked data set or will hold it, or set CLAR_DATA to DIR"
            )
    return _build_at(name, unpacked(name, root), allow_bad)


def _build_at(name: str, root: Path, allow_bad: int | None) -> ClipStore:
    """Decode the data set `name`, a canonical one, from `root`, and remember where it was."""
    store = build(cache_dir() / f"{_file_name(name)}-{_hash(os.fsencode(root))}", source(name, root), allow_bad)
    content = {"root": os.fsencode(root).decode(errors="backslashreplace"), "store": store.path.name}
    with cache_errors(cache_dir()):
        if read_json(_pointer_path(name)) != content:  # a cache that is complete may be for reading only
            write_json(_pointer_path(name), content)
    return store


def _pointer(name: str) -> tuple[str | None, Path | None]:
    """The root that `name` was last prepared from, and its store."""
    try:
        content = json.loads(_pointer_path(name).read_text(encoding="utf-8"))
        return content["root"], cache_dir() / content["store"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _pointer_path(name: str) -> Path:
    return cache_dir() / f"{_file_name(name)}.json"


def _file_name(name: str) -> str:
    """A data set's canonical name as it can stand in a file's name."""
    base, _, option = name.partition(":")
    if base in PATHS:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(option.partition("#")[0]).stem)
        return f"{base}-{stem}-{_hash(name.encode(errors='surrogateescape'))}"
    return f"{base}-{option}" if option else base


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


# Ones whose name says where they are


@dataclass(frozen=True)
class _Place:
    """A path with settings: `folder:PATH#seconds=2#seed=1`. As text, it is the data set's canonical name."""

    base: str
    path: Path
    seconds: float | None = None
    rate: int | None = None
    seed: int = 0
    folds: int = 0

    def __str__(self) -> str:
        settings = [
            f"#{name}={value:g}" if name == "seconds" else f"#{name}={value}"
            for name, value, default in (
                ("seconds", self.seconds, None), ("rate", self.rate, None), ("seed", self.seed, 0),
                ("folds", self.folds, 0),
            )
            if value != default
        ]  # fmt: skip
        return f"{self.base}:{self.path}" + "".join(settings)


_SETTINGS: dict[str, tuple[Callable[[str], float], float, float]] = {
    "seconds": (float, 0.05, 60),
    "rate": (int, 4_000, 48_000),
    "seed": (int, 0, 2**31),
    "folds": (int, 3, folder.MOST_FOLDS),
}
"""Of `folder:PATH#...`: how each is read, its least and its largest value."""


def _place(base: str, option: str) -> _Place:
    """Read `PATH#seconds=2#seed=1`; a `#` that no `name=` follows is the path's own."""
    path, *settings = re.split(r"#(?=[a-z]+=)", option)
    if settings and base != "folder":
        raise UserError(f"{base}:{option}: {base} takes no settings; leave out #{settings[0]}")
    values: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in _SETTINGS:
            raise UserError(f"{base}:{option}: no setting {key!r}{near(key, _SETTINGS)}")
        read, least, most = _SETTINGS[key]
        try:
            values[key] = read(text)
        except ValueError:
            raise UserError(f"{base}:{option}: {key}={text} is not a number of its kind") from None
        if not least <= values[key] <= most:
            raise UserError(f"{base}:{option}: {key}={text} must lie between {least:g} and {most:g}")
    return _Place(base, _expanded(f"{base}:{option}", path).absolute(), **values)


def _expanded(name: str, path: str) -> Path:
    """The path, with `~` and `~user` as the folders that they are.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{name}: {path}: there is no such user") from None


def place_of(name: str) -> Path:
    """Where the data set lies, of one whose name says so."""
    return _place(*_parse(name)).path


def _load_path(name: str, base: str, option: str, allow_bad: int | None) -> ClipStore:
    place = _place(base, option)
    if place.path.exists():
        return _build_at(str(place), place.path, allow_bad)
    _, path = _pointer(str(place))
    store = path and _open_whole(path)
    if store:  # prepared before, and its files are elsewhere now
        return store
    raise _nothing_at(name, place.path)


def _nothing_at(name: str, path: Path) -> UserError:
    return UserError(f"{name}: nothing is at {path}; name the folder or the table of the data set")


def _open_whole(path: Path) -> ClipStore | None:
    """The store at `path`, or None where it must be built; says so where it is damaged."""
    try:
        with cache_errors(path.parent):
            return ClipStore.open(path) if path.is_dir() else None
    except DamagedStore as error:
        print(f"{error}; building it again", file=sys.stderr)
        return None
