"""The report's page: its bytes, and what a reader sees and does in a real browser."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, BrowserContext, Locator, expect
from playwright.sync_api import Page as Tab

from analysis.page import Example, Folded, Page, Part, Picture, Section, Sound, Verdict, render
from analysis.tables import Listing
from tests import browser as browsing
from tests.browser import Watch, screenshot, watched

# A fixture of this module; imported by its name it would be shadowed by the arguments below.
browser = browsing.browser

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"&amp;'{{ 7 * 7 }}"
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="400pt" height="200pt" viewBox="0 0 400 200"><style>*{stroke:none}'
    '</style><rect width="400" height="200" style="fill: #ffffff"/><circle cx="100" cy="100" r="80" style="fill: '
    '#0072B2"/></svg>'
)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe0def46b8"
    "0000000049454e44ae426082"
)

MIXED = Listing(
    "Every kind of cell.",
    ("trial", "top-1, %", "state", "note"),
    [
        ("t10", "61.0 ± 2.3 †", "done", "b10"),
        ("t9", "missing", "missing", "b9"),
        ("t1", "-1.2", "failed", "missing"),
        ("t2", "1,234", "done", "-"),
        ("t3", "running", "running", "B2"),
        ("t4", "1.2e-05", "done", "5-10"),
        ("t5", "-", "cut", ""),
        ("t6", "61.0 (n=1)", "stopped", "a"),
        ("t7", "", "done", "1.2.3"),
        ("t8", "−40", "done", "b10"),
    ],
    bold=frozenset({(3, 1)}),
    left=frozenset({2, 3}),
)
LONG = Listing(
    "More rows than a screen has.",
    ("trial", "loss", "top-1, %"),
    [(f"trial {i}", ("clar", "supervised")[i % 2], f"{i * 37 % 120}.5") for i in range(120)],
    left=frozenset({1}),
)
WIDE = Listing(
    "Wider than any screen. " + "Its sentence is long, and has to stay in sight whichever columns are. " * 3,
    ("rank", *(f"augmentation_{j}" for j in range(30))),
    [(f"a_very_long_name_of_a_trial_{i}", *(f"{i + j}.0 ± 1.5" for j in range(30))) for i in range(3)],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figures and sounds."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "figure.v2.svg").write_text(SVG)
    (folder / "both.svg").write_text(SVG)
    (folder / "both.png").write_bytes(PNG)
    (folder / "only.png").write_bytes(PNG)
    for name, hertz in (("before", 300), ("after", 450), ("other", 600)):
        wave = 0.2 * np.sin(2 * np.pi * hertz * np.arange(48_000) / 16_000)
        soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), 16_000, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Page:
    picture = Picture(folder / "figure.v2", "A blue disc.", "What the disc shows.")
    listing = Listing("A folded table.", ("field", "importance, %"), [("temperature", "20.5"), ("learning_rate", "7")])
    return Page(
        "Augmentations on tones",
        "One pair is best, by more than the interval of its mean.",
        (("Data set", "tones"), ("Trials", "49 done, 2 failed"), ("Code", "0.1.0+r2.g" + "1a2b3c4d" * 5)),
        (
            Section(
                "Verdicts",
                (
                    "What is claimed.\nAnd what was found.",
                    Verdict("Masking helps most.", "confirmed", "By 4.2 points."),
                    Verdict("Raw audio is better.", "refuted", "It is 12 points behind."),
                    Verdict("Order matters.", "undecided", ""),
                ),
            ),
            Section("Tables", (MIXED, LONG, WIDE)),
            Section("Figures", (picture, Picture(folder / "only", "A point."), f"A trial named {EVIL} failed.")),
            Section(
                "Examples",
                (
                    Example(
                        "pitch_shift",
                        "Two semitones up.",
                        (Sound("Before", folder / "before.wav"), Sound("After", folder / "after.wav")),
                        picture,
                    ),
                    Example("fade", "", (Sound("Faded", folder / "other.wav"),), Picture(folder / "both", "Again.")),
                ),
            ),
            Section("Tables", (Folded("Every setting", ("What each field explains.", listing)),)),
        ),
    )


@pytest.fixture(scope="module")
def text(report: Page) -> str:
    return render(report)


@pytest.fixture(scope="module")
def address(text: str, folder: Path) -> str:
    (folder / "report.html").write_text(text)
    return (folder / "report.html").as_uri()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def watch(context: BrowserContext, address: str) -> Iterator[tuple[Tab, Watch]]:
    tab = context.new_page()
    watch = watched(tab)
    tab.goto(address)
    yield tab, watch
    watch.assert_quiet()


@pytest.fixture
def tab(watch: tuple[Tab, Watch]) -> Tab:
    """The report in a browser; the test fails at its end if it logged an error or asked for anything."""
    return watch[0]


def one(*parts: Part, title: str = "title") -> Page:
    return Page(title, "summary", (), (Section("section", parts),))


class Tags(HTMLParser):
    """Start tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# The text.


def test_the_same_page_gives_the_same_bytes(report: Page, text: str) -> None:
    assert render(report) == text
    assert not re.search(r"\b20[2-9]\d-\d\d|/tmp/", text)


def test_everything_is_in_it(report: Page, text: str) -> None:
    said = " ".join(" ".join(Tags(text).texts).split())

    def strings(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple | list):
            for inner in value:
                yield from strings(inner)
        elif isinstance(value, Verdict):
            yield from (value.statement, value.verdict.capitalize(), value.text)
        elif isinstance(value, Picture):
            yield value.caption
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from strings(getattr(value, field.name))

    for string in strings(report):
        assert " ".join(string.split()) in said
    assert "Table 4. A folded table." in said
    assert "Figure 2. What the disc shows." in said


def test_nothing_is_loaded(text: str) -> None:
    # What is embedded is not text; of the rest no address, not even a relative one.
    outer = re.sub(r'"data:[^"]*"', '"data:"', text)
    assert "http:" not in outer
    assert "https:" not in outer
    assert "url(" not in outer
    assert "@import" not in outer
    for _, attributes in Tags(outer).tags:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("#", "data:")), value
    policy = next(attributes["content"] for tag, attributes in Tags(outer).tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:;")


@pytest.mark.parametrize(
    "make",
    [
        lambda picture, sound: one(EVIL),
        lambda picture, sound: one(title=EVIL),
        lambda picture, sound: Page("title", EVIL, ((EVIL, EVIL),), (Section(EVIL, ()),)),
        lambda picture, sound: one(Listing(EVIL, (EVIL, EVIL), [(EVIL, EVIL)] * 2, frozenset({(0, 0), (1, 1)}))),
        lambda picture, sound: one(Listing("", ("a",), [(EVIL,)] * 60)),
        lambda picture, sound: one(dataclasses.replace(picture, alt=EVIL, caption=EVIL)),
        lambda picture, sound: one(Example(EVIL, EVIL, (dataclasses.replace(sound, label=EVIL),), picture)),
        lambda picture, sound: one(Verdict(EVIL, "refuted", EVIL)),
        lambda picture, sound: one(Folded(EVIL, (EVIL,))),
    ],
)
def test_names_are_text(make: Callable[[Picture, Sound], Page], folder: Path) -> None:
    text = render(make(Picture(folder / "both", "alt"), Sound("label", folder / "after.wav")))
    tags = Tags(text)
    assert sum(tag == "script" for tag, _ in tags.tags) == 1
    assert not any("onerror" in attributes for _, attributes in tags.tags)
    attributes = [value for _, attributes in tags.tags for value in attributes.values() if value]
    assert any(EVIL in string for string in (*attributes, "".join(tags.texts)))


def test_a_section_keeps_its_link(text: str) -> None:
    ids = [str(attributes["id"]) for _, attributes in Tags(text).tags if "id" in attributes]
    links = [str(attributes["href"])[1:] for tag, attributes in Tags(text).tags if tag == "a"]
    assert links == ["main", "verdicts", "tables", "figures", "examples", "tables-2"]
    assert len(set(ids)) == len(ids)
    assert set(links) <= set(ids)
    odd = Page("", "", (), tuple(Section(title, ()) for title in ("main", "Main", "音声", "", "Said!", "main 2")))
    found = [attributes.get("id") for tag, attributes in Tags(render(odd)).tags if tag == "h2"]
    assert found == ["contents", "main-2", "main-3", "section", "section-2", "said-2", "main-2-2"]


def test_the_vector_picture_is_taken_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    both, only = (render(one(Picture(folder / name, "alt"))) for name in ("both", "only"))
    assert "data:image/svg+xml;base64," in both
    assert "data:image/png" not in both
    assert "data:image/png;base64," in only
    with pytest.raises(OSError, match=r"nothing\.png"):
        render(one(Picture(tmp_path / "nothing", "alt")))


def test_headings_have_no_gaps(text: str) -> None:
    levels = [int(tag[1]) for tag, _ in Tags(text).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_small_pages() -> None:
    assert "<table>" in render(one(Listing("", ("a", "b"), [])))
    assert "<h1></h1>" in render(Page("", "", (), ()))
    assert "controls" not in render(one(Listing("", ("a",), [("1",)] * 50))).partition("<body")[2]
    assert "controls" in render(one(Listing("", ("a",), [("1",)] * 51))).partition("<body")[2]


# In a browser.


def table(tab: Tab, number: int) -> Locator:
    return tab.locator("table").nth(number - 1)


def column(tab: Tab, number: int, place: int) -> list[str]:
    """The texts of a column as they are shown."""
    script = "(table, i) => [...table.tBodies[0].rows].filter(r => r.offsetHeight).map(r => r.cells[i].textContent)"
    return list(table(tab, number).evaluate(script, place))


def head(tab: Tab, number: int, name: str) -> Locator:
    return table(tab, number).get_by_role("button", name=name, exact=True)


def aria_sort(tab: Tab, number: int) -> list[str | None]:
    script = "table => [...table.tHead.rows[0].cells].map(cell => cell.getAttribute('aria-sort'))"
    return list(table(tab, number).evaluate(script))


def test_numbers_sort_and_what_is_none_comes_last(tab: Tab) -> None:
    original = column(tab, 1, 1)
    none = ["missing", "running", "-", ""]
    button = head(tab, 1, "top-1, %")
    button.click()
    assert column(tab, 1, 1) == ["−40", "-1.2", "1.2e-05", "61.0 ± 2.3 †", "61.0 (n=1)", "1,234", *none]
    assert aria_sort(tab, 1) == [None, "ascending", None, None]
    expect(tab.get_by_role("status")).to_have_text("Table 1 sorted by top-1, %, ascending")
    button.click()
    assert column(tab, 1, 1) == ["1,234", "61.0 ± 2.3 †", "61.0 (n=1)", "1.2e-05", "-1.2", "−40", *none]
    assert aria_sort(tab, 1) == [None, "descending", None, None]
    button.click()
    assert column(tab, 1, 1) == original
    assert aria_sort(tab, 1) == [None] * 4
    expect(tab.get_by_role("status")).to_have_text("Table 1 in its original order")
    assert table(tab, 1).locator("strong").all_inner_texts() == ["1,234"]


def test_texts_sort_as_people_count(tab: Tab) -> None:
    head(tab, 1, "trial").click()
    assert column(tab, 1, 0) == [f"t{i}" for i in range(1, 11)]
    head(tab, 1, "note").click()
    assert aria_sort(tab, 1) == [None, None, None, "ascending"]
    # Equal ones and gaps keep the order in which they were shown.
    assert column(tab, 1, 3) == ["1.2.3", "5-10", "a", "B2", "b9", "b10", "b10", "missing", "-", ""]
    assert column(tab, 1, 0) == ["t7", "t4", "t6", "t3", "t9", "t8", "t10", "t1", "t2", "t5"]
    # In a column of states they are the values.
    head(tab, 1, "state").click()
    assert column(tab, 1, 2) == ["cut", *["done"] * 5, "failed", "missing", "running", "stopped"]
    assert table(tab, 1).locator(".state").count() == 8


def test_a_long_table_is_filtered_and_shown_whole(tab: Tab) -> None:
    everything = LONG.rows
    assert column(tab, 2, 0) == [row[0] for row in everything[:50]]
    controls = tab.locator(".controls")
    assert controls.count() == 1
    expect(controls.locator(".count")).to_have_text("50 of 120 rows")
    # What is sorted is all rows, not those in sight.
    head(tab, 2, "top-1, %").click()
    assert column(tab, 2, 2) == [f"{i}.5" for i in range(50)]
    tab.get_by_label("Filter Table 2").fill("  CLAR 1 ")
    matching = sorted(
        (row for row in everything if row[1] == "clar" and "1" in "".join(row)), key=lambda row: float(row[2])
    )
    assert column(tab, 2, 0) == [row[0] for row in matching]
    expect(tab.get_by_role("status")).to_have_text(f"{len(matching)} of 120 rows match")
    expect(controls.locator(".count")).to_have_text(f"{len(matching)} matching rows")
    expect(controls.get_by_role("button")).to_be_hidden()
    tab.get_by_label("Filter Table 2").fill("nothing such")
    assert column(tab, 2, 0) == []
    tab.get_by_label("Filter Table 2").fill("")
    controls.get_by_role("button", name="Show all 120 rows").click()
    assert len(column(tab, 2, 0)) == 120
    controls.get_by_role("button", name="Show the first 50 rows").click()
    assert len(column(tab, 2, 0)) == 50


@pytest.mark.slow
def test_five_thousand_rows_are_usable(context: BrowserContext, folder: Path) -> None:
    rows = [(f"trial {i}", *(f"{i * 7919 % 5000 + j}" for j in range(10))) for i in range(5000)]
    listing = Listing("All trials.", ("trial", *(f"column {j}" for j in range(10))), rows)
    (folder / "big.html").write_text(render(one(listing)))
    tab = context.new_page()
    watch = watched(tab)
    tab.goto((folder / "big.html").as_uri())
    assert len(column(tab, 1, 0)) == 50
    for whole in (False, True):
        if whole:
            tab.get_by_role("button", name="Show all 5,000 rows").click()
        button = head(tab, 1, "column 0")
        button.click()
        expect(table(tab, 1)).not_to_have_class("cut") if whole else expect(table(tab, 1)).to_have_class("cut")
        assert column(tab, 1, 1) == [str(i) for i in range(5000 if whole else 50)]
        button.click()
        expect(table(tab, 1)).not_to_have_class("cut") if whole else expect(table(tab, 1)).to_have_class("cut")
        assert column(tab, 1, 1)[:3] == ["4999", "4998", "4997"]
        button.click()
        assert column(tab, 1, 0)[:3] == ["trial 0", "trial 1", "trial 2"]
    tab.get_by_label("Filter Table 1").fill("trial 4999 0")
    assert column(tab, 1, 0) == [row[0] for row in rows if any("4999" in cell for cell in row) and "0" in "".join(row)]
    watch.assert_quiet()


def test_one_example_plays_at_a_time(tab: Tab) -> None:
    before, after = (tab.get_by_label(f"pitch_shift: {name}") for name in ("Before", "After"))
    boxes = [sound.bounding_box() for sound in (before, after)]
    assert all(boxes)
    assert boxes[0]["y"] == boxes[1]["y"]  # type: ignore[index]
    started = "async sound => { await sound.play(); return !sound.paused }"
    heard = "sound => new Promise(done => { sound.ontimeupdate = () => sound.currentTime > 0.05 && done(true) })"
    assert before.evaluate(started)
    assert before.evaluate(heard)
    assert before.evaluate("sound => sound.duration") == pytest.approx(3)
    assert after.evaluate(started)
    assert after.evaluate(heard)
    assert before.evaluate("sound => sound.paused")
    # Neither is loaded before it is wanted.
    assert tab.get_by_label("fade: Faded").evaluate("sound => sound.readyState") == 0


def test_pictures_are_drawn(tab: Tab) -> None:
    images = tab.get_by_role("img")
    assert images.count() == 4
    assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    alts = images.evaluate_all("all => all.map(one => one.alt)")
    assert alts == ["A blue disc.", "A point.", "A blue disc.", "Again."]
    # The policy of the page does not reach the styles within a picture: the disc is blue.
    pixel = images.first.evaluate(
        """image => {
            const pen = document.createElement("canvas").getContext("2d");
            pen.drawImage(image, 0, 0);
            return [...pen.getImageData(image.naturalWidth / 4, image.naturalHeight / 2, 1, 1).data];
        }"""
    )
    assert pixel == [0, 0x72, 0xB2, 255]


CONTRAST = """
() => {
    const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (colour) => {
        const [r, g, b] = colour.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const colour = rgba(getComputedStyle(one).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.offsetHeight) continue;
        const ink = rgba(getComputedStyle(element).color);
        const pair = [luminance(ink), luminance(behind(element))].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        const name = `${element.tagName.toLowerCase()}.${element.className} ${ink}`;
        found[name] = Math.min(found[name] ?? Infinity, ratio);
    }
    return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_dark(tab: Tab, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    tab.locator("details").evaluate("one => { one.open = true }")
    found = tab.evaluate(CONTRAST)
    assert len(found) > 15
    assert {name: round(ratio, 1) for name, ratio in found.items() if ratio < 4.5} == {}
    dark = scheme == "dark"
    assert tab.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == (
        "rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)"
    )
    assert tab.locator(".card").first.evaluate("card => getComputedStyle(card).backgroundColor") == "rgb(255, 255, 255)"
    screenshot(tab, f"page-{scheme}")


def test_the_theme_is_chosen_and_remembered(tab: Tab) -> None:
    def paper() -> str:
        return str(tab.locator("body").evaluate("body => getComputedStyle(body).backgroundColor"))

    white, black = "rgb(255, 255, 255)", "rgb(21, 24, 28)"
    button = tab.locator("#theme")
    expect(button).to_have_text("Colours: auto")
    assert paper() == white
    button.click()
    expect(button).to_have_text("Colours: light")
    tab.emulate_media(color_scheme="dark")
    assert paper() == white
    button.click()
    tab.emulate_media(color_scheme="light")
    assert paper() == black
    tab.reload()
    expect(button).to_have_text("Colours: dark")
    assert paper() == black
    tab.emulate_media(media="print")
    assert paper() == white
    tab.emulate_media(media="screen")
    button.click()
    expect(button).to_have_text("Colours: auto")
    assert paper() == white


def test_verdicts_differ_by_sign_and_word(tab: Tab) -> None:
    said = tab.locator(".verdict h3").all_inner_texts()
    assert [" ".join(text.split()[:2]) for text in said] == ["✓ Confirmed", "✗ Refuted", "? Undecided"]


@pytest.mark.parametrize("width", [320, 360, 800, 1280])
def test_the_page_never_moves_sideways(tab: Tab, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 740})
    tab.locator("details").evaluate("one => { one.open = true }")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    region = tab.get_by_role("region", name="Table 3")
    region.evaluate("one => { one.scrollLeft = 600 }")
    left = region.evaluate("one => one.getBoundingClientRect().left")
    # The first column and the caption stay in sight.
    assert table(tab, 3).locator("tbody th").first.evaluate("one => one.getBoundingClientRect().left") == left
    caption = table(tab, 3).locator(".stick > span").bounding_box()
    assert caption is not None
    assert caption["x"] == left
    assert caption["x"] + caption["width"] <= width
    if width == 360:
        screenshot(tab, "page-phone")


def test_the_head_stays_in_sight(tab: Tab) -> None:
    tab.get_by_role("button", name="Show all 120 rows").click()
    region = tab.get_by_role("region", name="Table 2")
    region.evaluate("one => { one.scrollTop = 900 }")
    top = region.evaluate("one => one.getBoundingClientRect().top")
    assert table(tab, 2).locator("thead th").first.evaluate("one => one.getBoundingClientRect().top") == top


def test_on_paper(tab: Tab, tmp_path: Path) -> None:
    tab.emulate_media(media="print", color_scheme="dark")
    for gone in ("#theme", ".controls", "nav", "audio >> nth=0", ".skip"):
        expect(tab.locator(gone)).to_be_hidden()
    folded = tab.get_by_text("What each field explains.")
    expect(folded).to_be_visible()
    assert len(column(tab, 2, 0)) == 50
    tab.emulate_media(media="screen")
    expect(folded).to_be_hidden()
    # Where the style sheet cannot open what is folded, the script does.
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(folded).to_be_visible()
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(folded).to_be_hidden()
    paper = tab.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    assert paper.startswith(b"%PDF")


def focus(tab: Tab) -> str:
    return str(tab.evaluate("document.activeElement.textContent.trim() || document.activeElement.tagName"))


def test_by_keyboard_alone(tab: Tab) -> None:
    tab.keyboard.press("Tab")
    assert focus(tab) == "Skip to the report"
    expect(tab.locator(".skip")).to_be_in_viewport()
    assert tab.locator(".skip").evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(80):
        tab.keyboard.press("Tab")
        reached.append(focus(tab))
        if reached[-1] == "trial":
            break
    assert reached[-1] == "trial"
    tab.keyboard.press("Enter")
    assert aria_sort(tab, 1)[0] == "ascending"
    tab.keyboard.press("Space")
    assert aria_sort(tab, 1)[0] == "descending"
    # The button is still the one in focus.
    assert focus(tab) == "trial"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    everything = set(reached)
    for _ in range(120):
        tab.keyboard.press("Tab")
        everything.add(focus(tab))
        if focus(tab) == "Every setting":
            break
    assert {"INPUT", "Show all 120 rows", "AUDIO", "Every setting"} <= everything
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("What each field explains.")).to_be_visible()


def test_what_a_screen_reader_is_told(tab: Tab) -> None:
    assert tab.locator("html").get_attribute("lang") == "en"
    for role in ("banner", "main", "contentinfo"):
        assert tab.get_by_role(role).count() == 1  # type: ignore[arg-type]
    assert tab.get_by_role("navigation", name="Contents").get_by_role("link").count() == 5
    assert tab.get_by_role("table", name="Table 1. Every kind of cell.").count() == 1
    assert tab.get_by_role("columnheader").count() == 4 + 3 + 31
    assert table(tab, 1).get_by_role("rowheader").count() == 10
    assert tab.get_by_role("heading", name="Confirmed Masking helps most.").count() == 1
    assert tab.locator("audio:not([aria-label])").count() == 0
    assert tab.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize("inline", [False, True])
def test_in_a_sandboxed_frame(context: BrowserContext, address: str, text: str, folder: Path, inline: bool) -> None:
    (folder / "frame.html").write_text(
        f'<!DOCTYPE html><link rel="icon" href="data:,"><iframe sandbox="allow-scripts" width="900" height="700" '
        f'src="{"about:blank" if inline else address}"></iframe>'
    )
    tab = context.new_page()
    watch = watched(tab)
    tab.goto((folder / "frame.html").as_uri())
    if inline:
        tab.locator("iframe").evaluate("(frame, text) => { frame.srcdoc = text }", text)
    frame = tab.frame_locator("iframe")
    frame.get_by_role("button", name="top-1, %").first.click()
    expect(frame.locator("th[aria-sort]")).to_have_attribute("aria-sort", "ascending")
    for theme in ("light", "dark", "auto"):
        frame.locator("#theme").click()
        expect(frame.locator("#theme")).to_have_text(f"Colours: {theme}")
    frame.get_by_role("link", name="Examples").click()
    expect(frame.get_by_role("heading", name="Examples")).to_be_in_viewport()
    # The frame still has the report, and no page around it.
    expect(frame.locator("iframe")).to_have_count(0)
    watch.assert_quiet()


def test_without_javascript(browser: Browser, address: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        watch = watched(tab)
        tab.goto(address)
        for said in ("Masking helps most.", "61.0 ± 2.3 †", "trial 119", "What the disc shows.", "Two semitones up."):
            expect(tab.get_by_text(said).first).to_be_visible()
        # A button that would do nothing is none.
        expect(tab.locator("button:enabled:visible")).to_have_count(0)
        expect(tab.get_by_label("pitch_shift: Before")).to_be_visible()
        tab.get_by_text("Every setting").click()
        expect(tab.get_by_text("What each field explains.")).to_be_visible()
        watch.assert_quiet()


def test_only_the_page_s_own_script_runs(context: BrowserContext, text: str, folder: Path) -> None:
    """Should a name ever get through as markup, it neither runs nor reaches another machine."""
    broken = text.replace("One pair is best", '<script>window.ran = 1</script><img src="http://192.0.2.1/x.png">', 1)
    assert broken != text
    (folder / "broken.html").write_text(broken)
    tab = context.new_page()
    watch = watched(tab)
    failed: list[str] = []
    tab.on("requestfailed", lambda request: failed.append(f"{request.url} {request.failure}"))
    tab.goto((folder / "broken.html").as_uri())
    expect(tab.locator("#theme")).to_be_visible()
    assert tab.evaluate("window.ran") is None
    assert len([error for error in watch.errors if "Content Security Policy" in error]) == 2
    assert all("csp" in line for line in failed)
    with pytest.raises(AssertionError):
        watch.assert_quiet()
