"""The comparison table and its picture, on results made by hand."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread
from rich.console import Console

from analysis import figures, tables
from clar import space
from clar.config import AUGMENTATIONS, TrialConfig
from clar.result import TrialResult


def result(top1: float) -> TrialResult:
    return TrialResult(
        test_top1=top1, test_top5=1.0, valid_top1=0.5, probe_l2=0.1, knn_test_top1=0.4, head_test_top1=None,
        train_seconds=1.0, gpu_seconds=0.0, epochs=(),
    )  # fmt: skip


@pytest.fixture
def finished() -> list[tables.Finished]:
    """Every cell but the last, three seeds in the first cell, one elsewhere; fade > time_mask is the best."""
    configs = space.load("augmentations").plan(TrialConfig(), seeds=1)[:-1]
    values = {("fade", "time_mask"): 0.913}
    done = [(config, result(values.get(config.augmentations, 0.4))) for config in configs]
    first = configs[0]
    return [*done, (first.but(seed=1), result(0.5)), (first.but(seed=2), result(0.6))]


def test_cells_are_mean_spread_and_count_over_seeds(finished: list[tables.Finished]) -> None:
    table = tables.cells(space.load("augmentations"), finished).set_index(["row", "column"])
    assert len(table) == 49
    assert table.loc[("pitch_shift", "pitch_shift")].tolist() == pytest.approx([0.5, 0.1, 3])
    assert table.loc[("fade", "time_mask"), "mean"] == 0.913
    assert table.loc[("time_mask", "fade"), "mean"] == 0.4
    assert table.loc[("time_stretch", "time_stretch"), "n"] == 0
    assert pd.isna(table.loc[("time_stretch", "time_stretch"), "mean"])


def test_the_grid_has_the_papers_order(finished: list[tables.Finished]) -> None:
    grid = tables.grid(space.load("augmentations"), tables.cells(space.load("augmentations"), finished))
    assert tuple(grid.index) == tuple(grid.columns) == AUGMENTATIONS
    assert (grid.index.name, grid.columns.name) == ("first", "second")


def test_texts_show_per_cent_spread_and_gaps(finished: list[tables.Finished]) -> None:
    sweep = space.load("augmentations")
    table = tables.cells(sweep, finished)
    markdown = tables.to_markdown(sweep, table).splitlines()
    assert len(markdown) == 2 + 7
    assert markdown[2].startswith("| pitch_shift | 50.0 ± 10.0 | 40.0 |")
    assert markdown[-1].endswith("| - |")
    latex = tables.to_latex(sweep, table)
    assert r"pitch\_shift & 50.0 $\pm$ 10.0 & 40.0" in latex
    assert latex.count(r"\\") == 8
    assert r"\toprule" in latex


def test_the_terminal_table_fits_80_columns_and_marks_the_best() -> None:
    sweep = space.load("augmentations")
    done = [
        (config, result(0.9 if config.augmentations == ("fade",) else 0.1))
        for config in sweep.plan(TrialConfig(), seeds=1)
    ]
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="standard").print(
        tables.to_rich(sweep, tables.cells(sweep, done), "title")
    )
    text = out.getvalue()
    assert text.count("90.0") == 1
    assert "…" not in text
    assert "\x1b[1;7m90.0" in text


def test_no_result_at_all_still_gives_a_table_and_a_picture(tmp_path: Path) -> None:
    sweep = space.load("augmentations")
    table = tables.cells(sweep, [])
    assert tables.texts(sweep, table).eq("-").all().all()
    figures.heat_map(tables.grid(sweep, table), "nothing yet", tmp_path / "empty")


def test_heat_map_is_written_twice_alike(finished: list[tables.Finished], tmp_path: Path) -> None:
    sweep = space.load("augmentations")
    grid = tables.grid(sweep, tables.cells(sweep, finished))
    first = figures.heat_map(grid, "title", tmp_path / "a" / "map")
    second = figures.heat_map(grid, "title", tmp_path / "b" / "map")
    assert [path.suffix for path in first] == [".png", ".svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    picture = imread(first[0])
    assert picture.shape[0] > 400
    assert picture[..., :3].std() > 0.1
    assert "91.3" in first[1].read_text()


def test_csv_holds_the_numbers_unrounded(finished: list[tables.Finished]) -> None:
    text = tables.cells(space.load("augmentations"), finished).to_csv(index=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 49
    assert {row["mean"] for row in rows if row["row"] == "fade" and row["column"] == "time_mask"} == {"0.913"}
