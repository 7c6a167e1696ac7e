"""The figures: written twice alike, in grey as in colour, and drawn from odd input without a word."""

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from analysis import figures
from analysis.statistics import Agreement, Effect, kendall_tau, pareto_front

# A layout that does not fit, a missing glyph and an ignored label are all only warnings of Matplotlib.
pytestmark = pytest.mark.filterwarnings("error")

NAN = math.nan
SVG = "{http://www.w3.org/2000/svg}"
ODD_NAMES = [
    "a$b$c",
    r"$\frac{",
    "x" * 200,
    "_a_|&%#{}^~",
    "音声",
    "",
    "\x00\x1b[1mnul",
    "line\nbreak",
    "<b>&amp;",
    "🎵",
]

Draw = Callable[[Path], list[Path]]


def frame(values: object, rows: list[str], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(values, index=pd.Index(rows, name="first"), columns=pd.Index(columns, name="second"))


def shares(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.3, 0.9, (rows, columns))


class Part(NamedTuple):
    label: str
    effect: float = 0.4
    low: float = -0.2
    high: float = 1.0
    unit: str = "percentage points"
    verdict: str = "undecided"


LOSSES = ["supervised", "self_supervised", "clar"]
MEANS = frame(shares(3, 4), LOSSES, ["100 %", "20 %", "10 %", "1 %"])
FINALS = np.random.default_rng(1).uniform(0.4, 0.7, 12)
RUNGS = {epoch: [(final - 0.2 / epoch * (i % 3), final) for i, final in enumerate(FINALS)] for epoch in (1, 3, 9)}
EFFECTS = [
    Effect("fade", "first", 0.031, 0.012, 0.05, 0.01),
    Effect("fade", "second", -0.02, -0.05, 0.01, 0.3),
    Effect("time_mask", "first", 0.01, NAN, NAN, NAN),
    Effect("time_mask", "second", NAN, NAN, NAN, NAN),
    Effect("fade > time_mask", "pair", 0.2, 0.1, 0.3, 0.01),
]
PARTS = [
    Part("best pair against best single one", 3.1, 1.2, 5.0, verdict="confirmed"),
    Part("spectrogram against raw", -2.1, -4.2, -0.3, verdict="refuted"),
    Part("joint against supervised"),
    Part("one seed", 0.4, NAN, NAN),
    Part("not run", NAN, NAN, NAN),
    Part("epochs to the same accuracy", 12, 5, 22, "epochs saved", "confirmed"),
]
POINTS = [(3.0, 0.5), (1.0, 0.4), (9.0, 0.9), (50.0, 0.8), (4.0, 0.4)]

ORDINARY: dict[str, Draw] = {
    "heat_map": lambda path: figures.heat_map(MEANS, "title", path),
    "curves": lambda path: figures.curves(
        {name: {epoch: [epoch / 40, epoch / 50] for epoch in range(30)} for name in LOSSES}, "title", path, "%"
    ),
    "lines_by_column": lambda path: figures.lines_by_column(MEANS, MEANS - 0.03, MEANS + 0.03, "title", path),
    "pareto": lambda path: figures.pareto(
        POINTS, list("abcde"), pareto_front([(y, x) for x, y in POINTS]), "title", path, "seconds", "valid top-1"
    ),
    "importance": lambda path: figures.importance({"learning_rate": 0.7, "temperature": 0.3}, "title", path),
    "rung_scatter": lambda path: figures.rung_scatter(
        RUNGS, {epoch: kendall_tau(*zip(*pairs, strict=True)) for epoch, pairs in RUNGS.items()}, "title", path
    ),
    "marks": lambda path: figures.heat_map(MEANS, "title", path, None, MEANS > 0.6),
    "effects": lambda path: figures.effects(EFFECTS, "title", path),
    "claims": lambda path: figures.claims(PARTS, "title", path),
    "embedding_map": lambda path: scattered(10, path),
    "before_after": lambda path: two_sounds(path),
}


def scattered(classes: int, path: Path, title: str = "title") -> list[Path]:
    labels = np.arange(240) % classes
    places = np.random.default_rng(2).normal(size=(classes, 2)) * 9
    points = places[labels] + np.random.default_rng(3).normal(size=(240, 2))
    return figures.embedding_map(points, labels, [f"class {i}" for i in range(classes)], title, path)


def two_sounds(path: Path, samples: int = 4000, frames: int = 32, hertz: bool = True) -> list[Path]:
    rng = np.random.default_rng(4)
    waves = rng.uniform(-1, 1, (2, samples)) * np.array([[0.5], [1.2]])
    pictures = rng.uniform(-100, 20, (2, 40, frames))
    centres = np.geomspace(30, 7900, 40) if hertz else None
    return figures.before_after((waves[0], waves[1]), 16_000, (pictures[0], pictures[1]), "title", path, centres)


def texts(svg: Path) -> list[str]:
    """What a reader of the picture reads."""
    root = ElementTree.parse(svg).getroot()
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", ORDINARY.values(), ids=ORDINARY)
def test_figures_are_written_twice_alike(draw: Draw, tmp_path: Path) -> None:
    first, second = draw(tmp_path / "a" / "v1.0"), draw(tmp_path / "b" / "v1.0")
    assert [path.name for path in first] == ["v1.0.png", "v1.0.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    picture = imread(first[0])
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05
    assert "title" in texts(first[1])


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import pandas as pd, sys; from pathlib import Path; from analysis import figures; "
        "figures.heat_map(pd.DataFrame({'a': [0.5, 0.25]}), 't', Path(sys.argv[1])); "
        "figures.curves({'a': {1: [0.5]}}, 't', Path(sys.argv[2]))"
    )
    for name in "12":
        arguments = [str(tmp_path / f"heat{name}"), str(tmp_path / f"curves{name}")]
        subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], check=True)
    for name in ("heat", "curves"):
        for kind in ("png", "svg"):
            assert (tmp_path / f"{name}1.{kind}").read_bytes() == (tmp_path / f"{name}2.{kind}").read_bytes()


def test_a_cell_without_a_number_says_why(tmp_path: Path) -> None:
    means = frame([[0.5, NAN, NAN, NAN, 0.613]], ["a"], list("vwxyz"))
    states = frame([["done", "cut", "", "missing", "done"]], ["a"], list("vwxyz"))
    said = texts(figures.heat_map(means, "title", tmp_path / "map", states)[1])
    assert {"cut", "–", "50.0", "61.3"} <= set(said)
    assert "failed" not in said
    assert texts(figures.heat_map(means, "title", tmp_path / "plain")[1]).count("–") == 3


def test_cells_that_cannot_be_told_from_the_best_are_marked(tmp_path: Path) -> None:
    means = frame([[0.5, 0.61, NAN, 0.613]], ["a"], list("wxyz"))
    marks = frame([[False, True, True, False]], ["a"], list("wxyz"))
    note = "bold: best; †: cannot be told from it"
    said = texts(figures.heat_map(means, "title", tmp_path / "map", marks=marks)[1])
    assert {"50.0", "61.0†", "–", "61.3", note} <= set(said)
    assert sum("†" in one for one in said) == 2
    for nothing in (marks & False, None):
        assert "†" not in "".join(texts(figures.heat_map(means, "title", tmp_path / "plain", marks=nothing)[1]))


def test_a_row_an_augmentation_and_a_dot_a_place(tmp_path: Path) -> None:
    svg = figures.effects(EFFECTS, "title", tmp_path / "effects")[1]
    said = texts(svg)
    assert {"fade", "time_mask", "as first", "as second", "effect on test top-1, percentage points"} <= set(said)
    assert not any("pair" in one or ">" in one for one in said)
    first, second = (figures._PLACES[place] for place in ("first", "second"))
    assert first["marker"] != second["marker"]
    assert (first["markerfacecolor"], second["markerfacecolor"]) == (first["color"], "white")


def test_claims_say_their_numbers_and_units_and_differ_without_colour(tmp_path: Path) -> None:
    said = texts(figures.claims(PARTS, "title", tmp_path / "claims")[1])
    assert {"+3.1 (+1.2 to +5.0)", "−2.1 (−4.2 to −0.3)", "+12.0 (+5.0 to +22.0)", "+0.4", "–"} <= set(said)
    assert said.count("percentage points") == said.count("epochs saved") == 1
    assert {"confirmed", "refuted", "undecided", "not run"} <= set(said)
    assert "refuted" not in texts(figures.claims(PARTS[2:], "title", tmp_path / "fewer")[1])
    assert len({style["marker"] for style in figures._VERDICTS.values()}) == len(figures._VERDICTS)


def test_a_long_label_of_a_claim_is_whole(tmp_path: Path) -> None:
    label = "joint training beats pre-training followed by fine-tuning, with 1 % of the labels, on the spoken digits"
    said = " ".join(texts(figures.claims([Part(label), Part("short")], "title", tmp_path / "claims")[1]))
    assert label in said


@pytest.mark.parametrize("classes", [1, 35, 36, 60])
def test_classes_are_named_beside_the_map(classes: int, tmp_path: Path) -> None:
    said = [one.strip() for one in texts(scattered(classes, tmp_path / "map")[1])]
    named = [one for one in said if one.startswith("class ")]
    if classes <= 35:
        assert named == [f"class {i}" for i in range(classes)]
        assert "title" in said
    else:
        assert (named[0], named[-1], len(named)) == ("class 0", f"class {classes - 1}", 9)
        assert f"title (colour: the {classes} classes in their order)" in " ".join(said)


def test_a_map_keeps_its_proportions_and_leaves_out_what_is_nowhere(tmp_path: Path) -> None:
    points = np.array([[0.0, 0.0], [4.0, 1.0], [NAN, 1.0], [0.0, 1.0]])
    svg = figures.embedding_map(points, np.array([0, 0, 1, 0]), ["a", "b"], "title", tmp_path / "map")[1]
    root = ElementTree.parse(svg).getroot()
    line = next(group for group in root.iter() if group.get("id", "").startswith("line2d_"))
    places = [(float(use.get("x", "")), float(use.get("y", ""))) for use in line.iter(f"{SVG}use")]
    assert len(places) == 3
    assert places[1][0] - places[0][0] == pytest.approx(4 * (places[0][1] - places[1][1]), rel=1e-3)
    assert "b" not in texts(svg)


def test_both_clips_of_a_pair_have_the_same_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    two_sounds(tmp_path / "sounds")
    (figure,) = drawn
    before, after, picture_before, picture_after = figure.axes[:4]
    assert before.get_ylim() == after.get_ylim()
    assert before.get_ylim()[1] > 1.19
    limits = {axes.images[0].get_clim() for axes in (picture_before, picture_after)}
    ((low, high),) = limits
    assert 19 < high < 20
    assert high - low == pytest.approx(80)
    assert [axes.get_title("left") for axes in (before, after)] == ["before", "after"]


def test_the_numbers_of_the_heat_map_stand_out_from_their_cells() -> None:
    # The lightness of cividis at the switch from white to black text; WCAG asks for 3 of large or bold text.
    from matplotlib import colormaps

    for share, text in ((0.45, 1.0), (0.451, 0.0)):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colormaps["cividis"](share)[:3]]
        light = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
        assert (max(light, text) + 0.05) / (min(light, text) + 0.05) > 3.5


def test_lines_differ_without_colour() -> None:
    styles = [figures._line_style(number) for number in range(36)]
    for one, two in combinations(styles, 2):
        assert (one["linestyle"], one["marker"]) != (two["linestyle"], two["marker"])
    greys = [float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in figures._COLOURS]
    assert max(greys) < 0.75, "white paper swallows it"
    assert all(abs(a - b) > 0.1 for a, b in pairwise(greys)), "neighbours are equally light"


@pytest.mark.parametrize(
    ("columns", "logarithmic"),
    [
        (["1", "0.1", "0.01"], True),
        (["100 %", "10 %", "1 %"], True),
        (["0", "1", "10"], False),
        (["a", "b", "c"], False),
        (["1", "1.0", "10"], False),
    ],
)
def test_numeric_columns_stand_on_a_logarithmic_axis(columns: list[str], logarithmic: bool, tmp_path: Path) -> None:
    means = frame([[0.5, 0.4, 0.2]], ["row"], columns)
    svg = figures.lines_by_column(means, means * NAN, means * NAN, "title", tmp_path / "lines")[1]
    root = ElementTree.parse(svg).getroot()
    places = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("id", "").startswith("xtick_"):
            (text,) = group.iter(f"{SVG}text")
            (mark,) = group.iter(f"{SVG}use")
            places["".join(text.itertext())] = float(mark.get("x", ""))
    first, second, third = (places[name] for name in columns)
    # Evenly apart either way; the largest number is on the right where they are numbers.
    assert abs(second - first) == pytest.approx(abs(third - second), rel=0.01)
    assert (third < first) == logarithmic


def test_the_panels_say_how_far_the_rungs_agree(tmp_path: Path) -> None:
    agreements = {1: Agreement(0.43, 0.15, 0.65, 25), 3: Agreement(NAN, NAN, NAN, 0), 9: Agreement(1.0, NAN, NAN, 3)}
    said = texts(figures.rung_scatter(RUNGS, agreements, "title", tmp_path / "rungs")[1])
    assert [line for line in said if line.startswith("epoch")] == ["epoch 1", "epoch 3", "epoch 9"]
    assert {"τ = 0.43 (0.15 to 0.65), n = 25", "τ –, n = 0", "τ = 1.00, n = 3"} <= set(said)


def test_the_front_is_numbered_and_written_out(tmp_path: Path) -> None:
    said = texts(ORDINARY["pareto"](tmp_path / "front")[1])
    assert {"1  b", "2  a", "3  c", "others", "Pareto front", "seconds", "valid top-1, %"} <= {
        one.strip() for one in said
    }


def odd_frames() -> dict[str, pd.DataFrame]:
    count = len(ODD_NAMES)
    return {
        "one": frame([[0.5]], ["a"], ["b"]),
        "row": frame(shares(1, count), ["a"], ODD_NAMES),
        "column": frame(shares(count, 1), ODD_NAMES, ["b"]),
        "odd": frame(shares(count, count), ODD_NAMES, ODD_NAMES),
        "nan": frame([[NAN, NAN]], ["a"], ["1", "10"]),
        "empty": frame(np.zeros((0, 0)), [], []),
        "no rows": frame(np.zeros((0, 2)), [], ["a", "b"]),
        "equal": frame(np.full((3, 3), 0.5), list("abc"), ["0.1", "1", "10"]),
    }


@pytest.mark.parametrize("name", odd_frames())
def test_frames_of_any_kind_make_a_figure(name: str, tmp_path: Path) -> None:
    means = odd_frames()[name]
    files = [
        *figures.heat_map(means, "A $title, rather long. " * 30, tmp_path / "map"),
        *figures.lines_by_column(means, means - 0.1, means * NAN, "t" * 300, tmp_path / "lines", "$%"),
    ]
    for path in files[1::2]:
        said = texts(path)
        assert ("no result yet" in said) == (name in ("empty", "no rows") or (name == "nan" and path.stem == "lines"))
    if name == "odd":
        assert {"a$b$c", r"$\frac{", "_a_|&%#{}^~", "音声", "<b>&amp;", "line break"} <= {
            one.strip() for one in texts(files[3])
        }


@pytest.mark.slow
def test_a_hundred_rows_with_long_names_make_a_figure(tmp_path: Path) -> None:
    names = [f"a very long name of a trial that goes on and on, {i}" for i in range(100)]
    means = frame(shares(100, 4), names, ["0.01", "0.1", "0.5", "1"])
    figures.heat_map(means, "title", tmp_path / "map")
    figures.lines_by_column(means, means, means, "title", tmp_path / "lines")
    figures.curves({name: {epoch: [0.1, 0.2] for epoch in range(500)} for name in names}, "title", tmp_path / "curves")


ODD: dict[str, Draw] = {
    "curves of nothing": lambda path: figures.curves({}, "", path),
    "a curve of nothing": lambda path: figures.curves({"a": {}, "b": {1: []}, "c": {1: [NAN]}}, "", path),
    "a curve of one point": lambda path: figures.curves({"$a": {1: [0.5]}}, "", path),
    "odd curves": lambda path: figures.curves({name: {2: [0.4, 0.6], 1: [0.5]} for name in ODD_NAMES}, "", path),
    "no front": lambda path: figures.pareto([(1.0, NAN)], ["a"], [], "", path, "", ""),
    "no points": lambda path: figures.pareto([], [], [], "", path, "x", "y"),
    "one point": lambda path: figures.pareto([(1.0, 1.0)], ["a"], [0], "", path, "x", "y"),
    "odd points": lambda path: figures.pareto(
        [(0.0, i / 9) for i in range(10)], ODD_NAMES, range(10), "", path, "$", "%", (True, True)
    ),
    "no importance": lambda path: figures.importance({}, "", path),
    "unknown importance": lambda path: figures.importance({"a": NAN, "b": 0.0}, "", path),
    "odd importance": lambda path: figures.importance(dict.fromkeys(ODD_NAMES, 0.1), "", path),
    "no rungs": lambda path: figures.rung_scatter({}, {}, "", path),
    "no effects": lambda path: figures.effects([], "", path),
    "unknown effects": lambda path: figures.effects([Effect("a", "first", NAN, NAN, NAN, NAN)], "", path),
    "odd effects": lambda path: figures.effects([Effect(n, "second", 0.1, 0, 0.2, 0) for n in ODD_NAMES], "", path),
    "no claims": lambda path: figures.claims([], "", path),
    "odd claims": lambda path: figures.claims([Part(name, unit=name) for name in ODD_NAMES], "", path),
    "unknown claims": lambda path: figures.claims([Part("a", NAN, NAN, NAN)], "", path),
    "no map": lambda path: figures.embedding_map(np.zeros((0, 2)), np.zeros(0, int), ["a"], "", path),
    "a point": lambda path: figures.embedding_map(np.zeros((1, 2)), np.zeros(1, int), ["_a"], "", path),
    "odd map": lambda path: figures.embedding_map(np.eye(10)[:, :2], np.arange(10), ODD_NAMES, "", path),
    "no sound": lambda path: two_sounds(path, samples=0),
    "a short sound": lambda path: two_sounds(path, samples=5, frames=1, hertz=False),
    "silence": lambda path: figures.before_after((np.zeros(9),) * 2, 8000, (np.full((4, 2), -100.0),) * 2, "", path),
    "empty rungs": lambda path: figures.rung_scatter({i: [(0.1, NAN)] if i else [] for i in range(6)}, {}, "", path),
}


@pytest.mark.parametrize("draw", ODD.values(), ids=ODD)
def test_odd_input_makes_a_figure(draw: Draw, tmp_path: Path) -> None:
    png, svg = draw(tmp_path / "figure")
    assert imread(png).size
    assert texts(svg)
