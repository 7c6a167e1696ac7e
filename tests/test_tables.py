"""The comparison tables, on results made by hand; Markdown and CSV are read back by parsers that are not ours."""

import csv
import io
import math
import random
import re
import subprocess
import sys
import time
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from scipy import stats

from analysis import tables
from analysis.statistics import Agreement
from analysis.tables import Entry, Grid, Listing, Objective

pytestmark = pytest.mark.filterwarnings("error")

AUGMENTATIONS = ("pitch_shift", "fade", "white_noise", "mixed_noise", "time_mask", "time_shift", "time_stretch")
HALF = 100 * 0.1 * stats.t.ppf(0.975, 2) / math.sqrt(3)
"""Half the interval, in points, of three values that are 0.1 apart."""

ODD_NAMES = (
    "a|b",
    "a_b",
    "_a_",
    "50 %",
    "a & b",
    "$x$",
    r"\n{}",
    "**a**",
    "[red]a[/]",
    ":smile:",
    "<b>&amp;",
    "",
    "~~x~~",
)


def entry(row: str, column: str, value: float | None, seed: int = 0, state: str = "done", version: str = "") -> Entry:
    return Entry(row, column, state, value, seed, version)


@pytest.fixture
def paper() -> Grid:
    """Every cell but the last, three seeds in the first; fade > time_mask is the best."""
    names = [(first, second) for first in AUGMENTATIONS for second in AUGMENTATIONS]
    entries = [entry(*cell, 0.913 if cell == ("fade", "time_mask") else 0.4) for cell in names[:-1]]
    entries += [entry(*names[0], 0.5, 1), entry(*names[0], 0.6, 2), entry(*names[-1], None, state="missing")]
    return Grid("The paper's study.", ("first", AUGMENTATIONS), ("second", AUGMENTATIONS), entries)


@pytest.fixture
def states() -> Grid:
    """One cell of each kind: column by column what became of three seeds."""
    kinds = {
        "all": [0.4, 0.5, 0.6], "two": [0.4, 0.5, "failed"], "one": [0.4, "cut", "cut"], "cut": ["cut", "cut", "cut"],
        "failed": ["failed", "missing", "cut"], "running": ["running", "missing", "cut"], "nothing": ["missing"] * 3,
        "hole": [],
    }  # fmt: skip
    entries = [
        entry("r", name, kind, seed) if isinstance(kind, float) else entry("r", name, None, seed, str(kind))
        for name, kind_list in kinds.items()
        for seed, kind in enumerate(kind_list)
    ]
    return Grid("States.", ("row", ("r",)), ("column", tuple(kinds)), entries)


def printed(table: Any, width: int, **options: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **options).print(table)
    return out.getvalue()


def parsed_markdown(text: str) -> list[list[str]]:
    """The cells' texts, as a CommonMark parser with GitHub's tables and strike-through sees them."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special", "strong_open", "strong_close"}
            rows[-1].append("".join(child.content for child in children))
    return rows


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_cells_are_mean_interval_and_count_over_seeds(paper: Grid) -> None:
    table = tables.cells(paper).set_index(["row", "column"])
    assert len(table) == 49
    first = table.loc[("pitch_shift", "pitch_shift")]
    assert first[["mean", "low", "high"]].tolist() == pytest.approx([0.5, 0.5 - HALF / 100, 0.5 + HALF / 100])
    assert first["n"] == 3
    assert table.loc[("fade", "time_mask"), ["mean", "n", "state"]].tolist() == [0.913, 1, "done"]
    assert table.loc[("fade", "time_mask"), ["low", "high"]].isna().all()
    assert table.loc[("time_mask", "fade"), "mean"] == 0.4
    assert table.loc[("time_stretch", "time_stretch"), ["n", "state"]].tolist() == [0, "missing"]
    assert pd.isna(table.loc[("time_stretch", "time_stretch"), "mean"])


def test_the_grid_has_the_papers_order(paper: Grid) -> None:
    grid = tables.grid(paper, tables.cells(paper))
    assert tuple(grid.index) == tuple(grid.columns) == AUGMENTATIONS
    assert (grid.index.name, grid.columns.name) == ("first", "second")


def test_the_order_of_the_trials_changes_no_byte(paper: Grid) -> None:
    entries = list(paper.entries)
    random.Random(0).shuffle(entries)
    other = Grid(paper.title, paper.rows, paper.columns, entries)
    assert tables.cells(paper).to_csv() == tables.cells(other).to_csv()
    assert tables.notes(paper) == tables.notes(other)


def test_names_that_only_trials_have_come_last() -> None:
    entries = [entry("new", "c", 0.3), entry("old", "c", 0.4)]
    source = Grid("", ("r", ("old",)), ("c", None), entries)
    assert list(tables.grid(source, tables.cells(source)).index) == ["old", "new"]


def test_texts_say_what_became_of_each_cell(states: Grid) -> None:
    table = tables.cells(states)
    half_of_two = 100 * 0.05 * math.sqrt(2) * stats.t.ppf(0.975, 1) / math.sqrt(2)
    assert tables.texts(states, table).loc["r"].to_dict() == {
        "all": f"50.0 ± {HALF:.1f}", "two": f"45.0 ± {half_of_two:.1f} (n=2)†", "one": "40.0 (n=1)", "cut": "cut",
        "failed": "failed", "running": "running", "nothing": "missing", "hole": "",
    }  # fmt: skip
    assert table["state"].tolist() == ["done", "done", "done", "cut", "failed", "running", "missing", ""]


def test_a_cell_with_all_its_seeds_says_nothing_of_their_number() -> None:
    entries = [
        *(entry("r", "many", 0.5, seed) for seed in range(5)),
        *(entry("r", "few", 0.5, seed) for seed in (0, 1)),
    ]
    source = Grid("", ("r", ("r",)), ("c", ("many", "few")), entries)
    assert tables.texts(source, tables.cells(source)).loc["r"].tolist() == ["50.0 ± 0.0", "50.0 ± 0.0"]
    assert tables.notes(source) == [
        "± is half the 95 % interval of the mean over the seeds, 2 to 5 a cell (Student's t)"
    ]


def test_a_trial_without_the_number_is_no_number() -> None:
    source = Grid("", ("r", ("r",)), ("c", ("c", "d")), [entry("r", "c", None), entry("r", "d", math.nan)])
    assert tables.texts(source, tables.cells(source)).loc["r"].tolist() == ["-", "-"]
    assert tables.notes(source) == ["2 trials done without this number"]


def test_markdown_and_latex_hold_the_texts(paper: Grid) -> None:
    table = tables.cells(paper)
    markdown = tables.to_markdown(paper, table).splitlines()
    assert len(markdown) == 2 + 7
    assert markdown[2].startswith(f"| pitch_shift | 50.0 ± {HALF:.1f} | 40.0 |")
    assert "| **91.3** |" in markdown[3]
    assert markdown[-1].endswith("| missing |")
    latex = tables.to_latex(paper, table)
    assert rf"pitch\_shift & 50.0 $\pm$ {HALF:.1f} & 40.0" in latex
    assert r"& \textbf{91.3} &" in latex
    assert latex.count("\\\\\n") == 8
    assert re.fullmatch(
        r"\\begin\{tabular\}\{lr{7}\}\n\\toprule\n.*\\\\\n\\midrule\n(.*\\\\\n){7}\\bottomrule\n\\end\{tabular\}\n",
        latex,
    )


def test_all_cells_with_the_best_mean_stand_out() -> None:
    # Sums of 0.1s in two orders, which differ in their last bit.
    entries = [
        *(entry("r", "a", v, i) for i, v in enumerate((0.1, 0.2, 0.3))),
        entry("r", "b", 0.2),
        entry("r", "c", 0.1),
    ]
    source = Grid("", ("r", ("r",)), ("c", ("a", "b", "c")), entries)
    assert tables.listing(source, tables.cells(source)).bold == {(0, 1), (0, 2)}


def test_the_terminal_table_fits_80_columns_and_marks_the_best(paper: Grid) -> None:
    text = printed(
        tables.to_rich(paper, tables.cells(paper)),
        80,
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
    )
    assert text.count("91.3") == 1
    assert "…" not in text
    assert "\x1b[1;7m91.3" in text


def test_intervals_in_every_cell_fit_80_columns_on_two_lines() -> None:
    entries = [
        entry(first, second, 0.5 + 0.09 * seed, seed)
        for first in AUGMENTATIONS
        for second in AUGMENTATIONS
        for seed in range(3)
    ]
    source = Grid("T", ("first", AUGMENTATIONS), ("second", AUGMENTATIONS), entries)
    table = tables.to_rich(source, tables.cells(source))
    narrow, wide = printed(table, 80), printed(table, 160)
    assert narrow.count("±22.4") == 49
    assert "│ fade           │   59.0 │" in narrow
    assert re.search(r"time_ ┃ +time_ ┃ +time_ ┃\n", narrow)
    assert wide.count("59.0 ± 22.4") == 49


def test_odd_names_come_through_everywhere() -> None:
    entries = [entry(row, column, 0.5) for row in ODD_NAMES for column in ODD_NAMES]
    source = Grid("[b]t[/b] :smile:", ("r|", ODD_NAMES), ("c", ODD_NAMES), entries)
    table = tables.cells(source)
    rows = parsed_markdown(tables.to_markdown(source, table))
    assert [row[0] for row in rows] == [r"r| \ c", *ODD_NAMES]
    assert rows[0][1:] == list(ODD_NAMES)
    text = printed(tables.to_rich(source, table), 400)
    assert "[b]t[/b] :smile:" in text
    assert "│ [red]a[/] │" in text
    assert list(csv.reader(io.StringIO(table.to_csv(index=False))))[14][:2] == ["a_b", "a|b"]
    assert unlatex(tables.to_latex(source, table))[0][1:] == list(ODD_NAMES)


def unlatex(text: str) -> list[list[str]]:
    """The cells of a tabular, read as LaTeX reads it: commands first, then separators; only what it may hold passes."""
    words = {
        "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
        "textbar": "|",
    }  # fmt: skip
    body = re.fullmatch(
        r"\\begin\{tabular\}\{[lr]+\}\n\\toprule\n(.*)\\bottomrule\n\\end\{tabular\}\n", text, re.DOTALL
    )
    assert body
    rows, cell, depth = [[""]], "", 0
    tokens = re.findall(r"\\midrule\n|\\\\\n|\\[a-z]+|\\[&%$#_{}]|\$\\(?:pm|times|tau)\$|[^\\$]", body[1])
    assert "".join(tokens) == body[1], "a bare dollar or an unknown command"
    for token in tokens:
        if token in ("&", "\\\\\n"):
            assert depth == 0, "a brace is open"
            rows[-1][-1] = cell.strip()
            rows.append([""]) if token != "&" else rows[-1].append("")
            cell = ""
        elif token.startswith("$\\"):
            cell += {"pm": "±", "times": "×", "tau": "τ"}[token[2:-1]]
        elif token in ("\\midrule\n", "\\textbf"):
            pass
        elif token[:1] == "\\" and token[1:] in words:
            cell += words[token[1:]]
        elif token[:1] == "\\":
            assert token[1:] in "&%$#_{}", f"unknown command {token}"
            cell += token[1:]
        elif token in "{}":
            depth += 1 if token == "{" else -1
            assert depth >= 0
        else:
            assert token not in '%#_~^<>|"'
            # What would be an option of the row's end before it.
            assert cell or depth or token not in "*["
            cell += token
    return rows[:-1]


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=12)


@settings(max_examples=60, deadline=None)
@example(["__0__", "a__b"], ["_c_d_"])
@given(st.lists(NAMES, min_size=1, max_size=4, unique_by=one_line), st.lists(NAMES, min_size=1, max_size=4))
def test_any_name_comes_through_markdown_and_latex(rows: list[str], columns: list[str]) -> None:
    names = [one_line(name) for name in columns]
    source = Listing("", ("corner", *columns), [(name, *("x" for _ in columns)) for name in rows], frozenset({(0, 0)}))
    markdown = parsed_markdown(source.to_markdown())
    assert markdown[0][1:] == names
    assert [row[0] for row in markdown[1:]] == [one_line(name) for name in rows]
    latex = unlatex(source.to_latex())
    written = {"±": "±", "–": "--", '"': "''"}
    assert latex[0][1:] == ["".join(written.get(c, c) for c in name) for name in names]
    assert next(csv.reader(io.StringIO(source.to_csv(), newline="")))[1:] == columns
    printed(source, 40)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Entry, st.sampled_from("ab"), st.sampled_from("xyz"),
            st.sampled_from(["done", "failed", "cut", "running", "missing"]),
            st.none() | st.floats(0, 1) | st.just(math.nan), st.integers(0, 3),
            st.sampled_from(["", "0.1+r1", "0.1+r2"]), st.just(()),
        )
    )
)  # fmt: skip
def test_any_trials_make_a_table(entries: list[Entry]) -> None:
    source = Grid("t", ("r", ("a", "b")), ("c", ("x", "y", "z")), entries)
    table = tables.cells(source)
    assert len(table) == 6
    assert table["n"].sum() + sum("without" in note for note in tables.notes(source)) <= len(entries)
    for text in (
        tables.to_markdown(source, table),
        tables.to_latex(source, table),
        printed(listing := tables.to_rich(source, table), 60),
    ):
        assert text
    known = table.dropna(subset="mean")
    assert bool(listing.bold) == bool(len(known))
    assert (table["low"].dropna() <= table["mean"][table["low"].notna()]).all()


@pytest.mark.parametrize("rows", [(), ("a",), tuple(f"row_{i}" for i in range(100))])
@pytest.mark.parametrize("columns", [(), ("a",), ("a" * 200, "b")])
@pytest.mark.parametrize("filled", [False, True])
def test_tables_of_any_size(rows: tuple[str, ...], columns: tuple[str, ...], filled: bool) -> None:
    entries = [entry(row, column, 0.5) for row in rows for column in columns if filled]
    source = Grid("t", ("r", rows), ("c", columns), entries)
    table = tables.cells(source)
    assert len(table) == len(rows) * len(columns)
    assert tables.texts(source, table).isin(["50.0"] if filled else [""]).all(axis=None)
    assert printed(tables.to_rich(source, table), 80)
    assert tables.to_markdown(source, table).count("\n") == 2 + (len(rows) if columns else 0)
    assert tables.to_latex(source, table)


def test_notes_name_mixed_versions_first_and_what_is_not_there(states: Grid) -> None:
    versions = {0: "0.1.0+r1.g1a2b3c4", 1: "0.1.0+r2.gabc-dirty", 2: "0.1.0+r10"}
    entries = [one._replace(code_version=versions[one.seed]) for one in states.entries]
    assert tables.notes(Grid("", states.rows, states.columns, entries)) == [
        "mixes results versions r1 (3 trials), r2 (2 trials) and r10 (1 trial): "
        "computed in different ways, not to be compared",
        "code versions differ: 0.1.0+r1.g1a2b3c4 (3 trials), 0.1.0+r2.gabc-dirty (2 trials), 0.1.0+r10 (1 trial)",
        "2 trials failed",
        "7 trials cut by early stopping",
        "1 trial still running",
        "5 trials missing",
        "± is half the 95 % interval of the mean over the seeds, 1 to 3 a cell (Student's t)",
    ]


def test_notes_are_silent_where_nothing_is_to_say(paper: Grid) -> None:
    assert tables.notes(Grid("", paper.rows, paper.columns, [])) == []
    assert tables.notes(Grid("", paper.rows, paper.columns, [entry("a", "b", 0.4, version="0.1.0+r2")])) == []


def test_notes_of_an_unknown_version() -> None:
    entries = [
        entry("a", "b", 0.4, 0, version="0.1.0+r2"),
        entry("a", "c", 0.4, 0),
        entry("a", "d", 0.4, 0, version="0.1"),
    ]
    notes = tables.notes(Grid("", ("r", None), ("c", None), entries))
    assert notes[0].startswith("mixes results versions r2 (1 trial) and unknown (2 trials): ")
    same = [entry("a", "b", 0.4, 0, version=f"0.1.0+r2.g{i}") for i in range(2)]
    assert tables.notes(Grid("", ("r", None), ("c", None), same))[0].startswith("code versions differ: ")


def test_csv_holds_the_numbers_unrounded(paper: Grid) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.cells(paper).to_csv(index=False))))
    assert len(rows) == 49
    assert {row["mean"] for row in rows if row["row"] == "fade" and row["column"] == "time_mask"} == {"0.913"}


def searched(accuracies: list[float | None], **more: list[Any]) -> list[dict[str, Any]]:
    columns = {"valid_top1": accuracies, **more}
    return [
        {**{name: values[i] for name, values in columns.items()}, "state": "cut" if accuracies[i] is None else "done"}
        for i in range(len(accuracies))
    ]


def test_the_best_of_a_search_come_first() -> None:
    rows = searched(
        [0.5, None, 0.7, 0.7, 0.6], lr=[0.1, 0.2, 1e-4, 0.123456, None], names=["a", "b", "c", "d", ("e", 2.0)]
    )
    table = tables.search_table(rows, title="T", top=None)
    assert table.header == ("rank", "valid_top1, %", "state", "lr", "names")
    assert table.rows == [
        ("1", "70.0", "done", "0.0001", "c"),
        ("1", "70.0", "done", "0.123", "d"),
        ("3", "60.0", "done", "", "e, 2"),
        ("4", "50.0", "done", "0.1", "a"),
        ("", "-", "cut", "0.2", "b"),
    ]
    assert table.bold == {(0, 1), (1, 1)}
    assert len(tables.search_table(rows, top=2).rows) == 2


def test_two_objectives_rank_by_fronts() -> None:
    rows = searched([0.9, 0.8, 0.7, 0.9, None], seconds=[9.0, 2.0, 3.0, 10.0, 1.0])
    table = tables.search_table(rows, (Objective("valid_top1"), Objective("seconds", maximise=False, share=False)))
    assert [row[:3] for row in table.rows] == [
        ("1", "90.0", "9"), ("1", "80.0", "2"), ("2", "90.0", "10"), ("2", "70.0", "3"), ("", "-", "1"),
    ]  # fmt: skip
    assert table.header[0] == "front"
    cheapest = tables.search_table(rows, (Objective("seconds", maximise=False, share=False),))
    assert cheapest.rows[0][1] == "1"
    with pytest.raises(ValueError, match="one or two objectives, not 0"):
        tables.search_table(rows, ())


def test_a_wide_search_table_stands_on_its_side_on_a_narrow_terminal() -> None:
    fields = {f"strength of {name}": [0.123456] * 10 for name in AUGMENTATIONS}
    table = tables.search_table(searched([i / 10 for i in range(10)], **fields), title="T")
    narrow, wide = printed(table, 80), printed(table, 250)
    assert re.search(r"T \(\d of 10 fit here\)", narrow)
    assert "│ strength of time_stretch │" in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert "90.0" in narrow
    assert "0.0 │" in wide
    assert "fit here" not in wide


@pytest.mark.parametrize("rows", [[], [{}], searched([None]), searched([math.nan, 0.5])])
def test_search_tables_of_next_to_nothing(rows: list[dict[str, Any]]) -> None:
    table = tables.search_table(rows)
    assert len(table.rows) == len(rows)
    for width in (20, 80):
        assert printed(table, width)
    assert table.to_markdown()
    assert table.to_latex()


def test_importance_and_agreement_tables() -> None:
    importance = tables.importance_table({"b": 0.25, "a": 0.25, "c": 0.5, "d": math.nan})
    assert importance.rows == [("c", "50.0"), ("a", "25.0"), ("b", "25.0"), ("d", "-")]
    nan = math.nan
    agreement = tables.agreement_table({10: Agreement(0.5, 0.25, 0.75, 20), 2: Agreement(nan, nan, nan, 0)})
    assert agreement.rows == [("2", "-", "-", "0"), ("10", "0.50", "0.25 to 0.75", "20")]
    assert agreement.to_csv() == '"rung, epoch",tau,95 % interval,trials\n2,-,-,0\n10,0.50,0.25 to 0.75,20\n'


def test_a_large_table_is_made_quickly() -> None:
    names = tuple(f"name_{i}" for i in range(70))
    entries = [entry(row, column, 0.5, seed) for row in names for column in names for seed in range(2)]
    source = Grid("t", ("r", names), ("c", names), entries)
    started = time.perf_counter()
    tables.to_markdown(source, tables.cells(source))
    assert time.perf_counter() - started < 10


def test_tables_need_neither_matplotlib_nor_scipy_stats() -> None:
    code = (
        "import sys; from analysis.tables import *; g = Grid('', ('r', None), ('c', None), "
        "[Entry('a', 'b', 'done', s / 3, s) for s in (0, 1)]); to_latex(g, cells(g)); "
        "print(*sorted({'scipy.stats', 'matplotlib', 'torch', 'ray', 'mlflow', 'clar'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
