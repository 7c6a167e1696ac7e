"""A sweep's report as one HTML file that needs nothing else: no network, no other file, no JavaScript to be read.

A `Page` says what stands in it; `render` fills the template `page.html`, which has the looks and what moves.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.tables import Listing
from clar.files import read_bytes

ROWS_SHOWN = 50
"""Rows of a table that are shown at first; a longer one has a filter and a button that shows all."""

STATES = frozenset({"missing", "running", "failed", "cut", "stopped"})
"""Cells that say why there is no number."""

_IDS = ("top", "main", "contents", "theme", "said")
"""Of the template's own elements."""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        path: without suffix, as `analysis.figures` takes it; the `.svg` is embedded, the `.png` where there is none.
        alt: what it shows, for those who do not see it.
        caption: the sentence below it. A figure with one is numbered.
    """

    path: Path
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Sound:
    """Something to listen to.

    Attributes:
        label: such as `before`.
        path: of a WAV file.
    """

    label: str
    path: Path


@dataclass(frozen=True)
class Example:
    """What an augmentation does to a clip, to be heard and seen.

    Attributes:
        name: its heading.
        text: a paragraph, or nothing.
        sounds: side by side, such as before and after.
        picture: below them.
    """

    name: str
    text: str
    sounds: tuple[Sound, ...]
    picture: Picture


@dataclass(frozen=True)
class Verdict:
    """What the results say about a claim.

    Attributes:
        statement: the claim, a sentence.
        verdict: told by a sign and a word, never by colour alone.
        text: the evidence, a paragraph, or nothing.
    """

    statement: str
    verdict: Literal["confirmed", "refuted", "undecided"]
    text: str


@dataclass(frozen=True)
class Folded:
    """What only some readers want: closed on the screen until they open it, open in print.

    Attributes:
        title: says what is inside.
        parts: of it.
    """

    title: str
    parts: "tuple[Part, ...]"


Part = str | Listing | Picture | Example | Verdict | Folded
"""A piece of a section. A string is a paragraph: plain text, in which a line's end is one. A `Listing`'s title is its
caption."""


@dataclass(frozen=True)
class Section:
    """A heading, which is in the table of contents, and what stands below it."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """The report.

    Attributes:
        title: its heading, and the window's.
        summary: the paragraph below it: what was found.
        facts: (name, value): data set, preset, trials, versions.
        sections: in order.
    """

    title: str
    summary: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def render(page: Page) -> str:
    """The whole file. The same page and files give the same text; all names are shown as text, whatever is in them.

    Raises:
        OSError: a picture or a sound cannot be read; it names the file.
    """
    return _TEMPLATE.render(
        page=page, sections=_with_ids(page.sections), rows_shown=ROWS_SHOWN, states=STATES, marks=_MARKS
    )


def _with_ids(sections: Iterable[Section]) -> list[tuple[str, Section]]:
    """Each section's id from its title, so that a link to it stays right when another one comes before it."""
    taken, named = set(_IDS), []
    for section in sections:
        stem = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name)
        named.append((name, section))
    return named


def _embedded(picture: Picture) -> str:
    """A picture as a `data:` URI."""
    # Not with_suffix: a name may have dots.
    vector = picture.path.with_name(f"{picture.path.name}.svg")
    if vector.exists():
        return _data_uri(vector, "image/svg+xml")
    return _data_uri(picture.path.with_name(f"{picture.path.name}.png"), "image/png")


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(read_bytes(path)).decode()}"


def _wave(sound: Sound) -> str:
    return _data_uri(sound.path, "audio/wav")


def _strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


def _fingerprint(script: Markup) -> str:
    """A script as a content security policy names it: no other one runs."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _template() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"embedded": _embedded, "wave": _wave, "strong": _strong, "fingerprint": _fingerprint}
    for kind in (Listing, Picture, Example, Verdict, Folded):
        environment.tests[kind.__name__.lower()] = lambda part, kind=kind: isinstance(part, kind)
    return environment


_MARKS = {"confirmed": "✓", "refuted": "✗", "undecided": "?"}
_TEMPLATE = _template().get_template("page.html")
