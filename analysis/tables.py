"""A sweep's results as the paper's comparison table: a pandas frame, and that frame as text of several kinds."""

from collections.abc import Iterable

import pandas as pd
from rich.table import Table

from clar.config import TrialConfig
from clar.result import TrialResult
from clar.space import Space

Finished = tuple[TrialConfig, TrialResult]

CELL = ("mean", "spread", "n")


def cells(space: Space, finished: Iterable[Finished], metric: str = "test_top1") -> pd.DataFrame:
    """One row a cell of the table: `row`, `column`, and over the seeds `mean`, `spread` (standard deviation) and `n`.

    Cells without a finished trial are there with n = 0 and no number.
    """
    values = pd.DataFrame(
        [(*space.cell(config), getattr(result, metric)) for config, result in finished],
        columns=["row", "column", "value"],
    )
    found = values.groupby(["row", "column"])["value"].agg(mean="mean", spread="std", n="count")
    every = pd.MultiIndex.from_product([space.rows[1], space.columns[1]], names=["row", "column"])
    table = found.reindex(every)
    table["n"] = table["n"].fillna(0).astype(int)
    return table.reset_index()


def grid(space: Space, table: pd.DataFrame, what: str = "mean") -> pd.DataFrame:
    """One of `mean`, `spread` and `n` as a rows x columns frame, in the sweep's own order."""
    frame = table.pivot(index="row", columns="column", values=what)
    frame = frame.loc[list(space.rows[1]), list(space.columns[1])]
    return frame.rename_axis(index=space.rows[0], columns=space.columns[0])


def texts(space: Space, table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: per cent, with the spread where there are several seeds, `-` where nothing is."""

    def text(mean: float, spread: float, n: int) -> str:
        if n == 0:
            return "-"
        return f"{100 * mean:.1f}" if n == 1 else f"{100 * mean:.1f} ± {100 * spread:.1f}"

    written = [text(*row) for row in table[list(CELL)].itertuples(index=False)]
    return grid(space, table.assign(text=written), "text")


def to_rich(space: Space, table: pd.DataFrame, title: str) -> Table:
    """The table for a terminal; the best cell stands out."""
    frame = texts(space, table)
    best = table["mean"].idxmax() if table["n"].any() else None
    best_cell = None if best is None else (table.at[best, "row"], table.at[best, "column"])
    out = Table(title=title, title_justify="left", header_style="")
    out.add_column(f"{space.rows[0]} \\ {space.columns[0]}", no_wrap=True)
    for column in frame.columns:
        # Long names take two lines, so that the paper's table fits 80 columns.
        out.add_column(str(column).replace("_", "_\n"), justify="right")
    for row, values in frame.iterrows():
        marked = [
            f"[bold reverse]{value}[/]" if (row, column) == best_cell else str(value)
            for column, value in values.items()
        ]
        out.add_row(str(row), *marked)
    return out


def to_markdown(space: Space, table: pd.DataFrame) -> str:
    """The table in Markdown's pipe syntax."""
    frame = texts(space, table)
    lines = [
        [f"{space.rows[0]} \\ {space.columns[0]}", *map(str, frame.columns)],
        ["---", *("---:" for _ in frame.columns)],
        *([str(row), *map(str, values)] for row, values in frame.iterrows()),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(space: Space, table: pd.DataFrame) -> str:
    """The table in LaTeX; needs the package booktabs."""
    frame = texts(space, table).rename_axis(index=None, columns=None)
    plain = {str(name): str(name).replace("_", r"\_") for name in [*frame.index, *frame.columns]}
    frame = frame.rename(index=plain, columns=plain).map(lambda text: text.replace("±", r"$\pm$"))
    head = " & ".join([f"{space.rows[0]} $\\backslash$ {space.columns[0]}", *map(str, frame.columns)])
    body = "".join(f"{row} & {' & '.join(values)} \\\\\n" for row, values in frame.iterrows())
    columns = "l" + "r" * len(frame.columns)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
