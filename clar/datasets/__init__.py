"""The data sets: `load(name)` opens one, and decodes it first where that has not been done on this machine.

One file a data set. Each makes a `clar.clips.Source`, from which `clar.clips.build` makes a store in the cache folder.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from clar.clips import ClipStore, DamagedStore, build, cache_errors
from clar.datasets import digits, speech_commands
from clar.errors import UserError, near
from clar.files import cache_dir, write_json


@dataclass(frozen=True)
class Folder:
    """A data set that is decoded from a folder of audio files."""

    description: str
    words: tuple[str, ...]


FOLDERS = {
    "speech_commands_10": Folder("Speech Commands, the ten digits (SC-10), 1 s", speech_commands.DIGITS),
    "speech_commands_35": Folder("Speech Commands v0.02, all 35 words (SC-35), 1 s", speech_commands.WORDS),
}

DESCRIPTIONS = {
    "digits": "embedded: ten spoken digits, synthesised here, 2,000 clips of 1 s; digits:N for about N clips",
    **{name: folder.description for name, folder in FOLDERS.items()},
}
"""Every data set and one line about it."""


def names() -> tuple[str, ...]:
    """The names that `load` takes, without options."""
    return tuple(DESCRIPTIONS)


def load(name: str, root: str | os.PathLike[str] | None = None, allow_bad: int | None = None) -> ClipStore:
    """The data set `name`, built first where it must be.

    Args:
        name: one of `names()`, or `digits:N` for about N clips.
        root: the folder of a data set that has one. None: where it was last prepared from, else `$CLAR_DATA`. With a
            root the folder is listed, and decoded anew where files have changed; without, a built store is just opened.
        allow_bad: files that may be unreadable or silent; none: 1 %.

    Raises:
        UserError: no such data set, no root is known, the data are not as they must be, or the cache folder cannot be
            written.
    """
    base, option = _parse(name)
    if base in FOLDERS:
        return _load_folder(base, root, allow_bad)
    if root is not None:
        raise UserError(f"{name} is synthesised and takes no root; leave out {os.fspath(root)}")
    path = digits_path(option)
    return _open_whole(path) or build(path, digits.source(_clips(option)), allow_bad)


def canonical(name: str) -> str:
    """The one name of the data set that `load(name)` gives: `digits:2003` and `digits:2000` are `digits`.

    Raises:
        UserError: as `load`, where the name or its option is wrong.
    """
    base, option = _parse(name)
    if base in FOLDERS:
        return base
    clips = digits.whole(_clips(option))
    return base if clips == digits.whole(digits.CLIPS) else f"{base}:{clips}"


def built(name: str) -> bool:
    """Whether `load(name)` would only open a store.

    Raises:
        UserError: as `load`, where the name is wrong or the cache folder cannot be read.
    """
    base, option = _parse(name)
    path = _pointer(base)[1] if base in FOLDERS else digits_path(option)
    with cache_errors(cache_dir()):
        return path is not None and (path / "meta.json").is_file()


def takes_root(name: str) -> bool:
    """Whether the data set is decoded from a folder of files."""
    return _parse(name)[0] in FOLDERS


def digits_path(option: str = "") -> Path:
    """Where the store of `digits:<option>` lies."""
    return cache_dir() / f"digits-{digits.whole(_clips(option))}-v{digits.VERSION}"


def _parse(name: str) -> tuple[str, str]:
    """The data set and its option, empty where there is none."""
    base, _, option = name.partition(":")
    if base not in DESCRIPTIONS:
        raise UserError(f"no data set {name!r}{near(name, names())}")
    if option and base in FOLDERS:
        raise UserError(f"{name}: {base} takes no option after a colon")
    return base, option


def _clips(option: str) -> int:
    if not option:
        return digits.CLIPS
    if not (option.isascii() and option.isdigit()):
        raise UserError(f"digits:{option}: write digits:N with a number of clips, for example digits:400")
    return int(option)


def _load_folder(name: str, root: str | os.PathLike[str] | None, allow_bad: int | None) -> ClipStore:
    if root is None:
        root, path = _pointer(name)
        store = path and _open_whole(path)
        if store:
            return store
        root = root or os.environ.get("CLAR_DATA")
        if not root:
            raise UserError(
                f"{name} is not prepared on this machine; run `python -m clar.datasets prepare {name} --root DIR` "
                "once, where DIR is the unpacked data set, or set CLAR_DATA to DIR"
            )
    folder = Path(root).expanduser().resolve()
    source = speech_commands.source(name, FOLDERS[name].words, folder)
    path = cache_dir() / f"{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    store = build(path, source, allow_bad)
    with cache_errors(cache_dir()):
        write_json(cache_dir() / f"{name}.json", {"root": str(folder), "store": path.name})
    return store


def _pointer(name: str) -> tuple[str | None, Path | None]:
    """The root that `name` was last prepared from, and its store."""
    try:
        content = json.loads((cache_dir() / f"{name}.json").read_text(encoding="utf-8"))
        return content["root"], cache_dir() / content["store"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _open_whole(path: Path) -> ClipStore | None:
    """The store at `path`, or None where it must be built; says so where it is damaged."""
    try:
        with cache_errors(path.parent):
            return ClipStore.open(path) if path.is_dir() else None
    except DamagedStore as error:
        print(f"{error}; building it again", file=sys.stderr)
        return None
