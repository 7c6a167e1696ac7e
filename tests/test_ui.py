"""A sweep's results as people find them: a real sweep in MLflow's own UI, in a real browser.

What is read is what the page shows; what it must show comes from the storage.
"""

import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, FrameLocator, Locator, Page, expect

from clar.result import TrialFolder
from clar.tracking import Tracker
from tests import browser as browsing
from tests.browser import Watch, screenshot
from tests.running import TINY, Command
from tests.test_tracking import Runs, Server, begin, end, sweep_of, wait_for

pytestmark = pytest.mark.slow

# A fixture of this module; imported by its name it would be shadowed by the arguments below.
browser = browsing.browser

PAIRS = '''"""Three augmentations, each alone and every ordered pair."""

NAMES = ("fade", "time_shift", "time_mask")
SETTINGS = {"loss": "self_supervised"}
ROWS, COLUMNS = ("first", NAMES), ("second", NAMES)


def trials(base):
    """The base with one augmentation, or two in order."""
    return [base.but(augmentations=(a,) if a == b else (a, b)) for a in NAMES for b in NAMES]


def cell(trial):
    """Row and column of a trial in the table."""
    return trial.augmentations[0], trial.augmentations[-1]
'''
PARENT = "pairs on digits:120"
SEEDS, TRIALS = 2, 18

NAME = "attributes.`Run Name`"
FIRST, SECOND, SEED = "params.`first`", "params.`second`", "params.`seed`"
TOP1, VALID = "metrics.`test_top1`", "metrics.`valid_top1`"
COLUMNS = (NAME, FIRST, SECOND, SEED, TOP1, "metrics.`test_top5`", VALID, "metrics.`train_seconds`")

# MLflow opens panels about itself over the page of a first visit. Not in a frame: a report's has no storage.
SKIP_PANELS = """
if (self === top && location.protocol === "http:") {
    localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
    localStorage.setItem("mlflow.detectIssues.guidanceShown_v1", "true");
}
"""

# The pinned and the other cells of a row lie in different parts of MLflow's grid.
GRID = """
() => {
    const rows = {};
    for (const part of document.querySelectorAll(".ag-row[row-index]")) {
        const row = rows[part.getAttribute("row-index")] ??= {};
        for (const cell of part.querySelectorAll(".ag-cell[col-id]")) {
            row[cell.getAttribute("col-id")] = (cell.querySelector("a[href*='/runs/']") ?? cell).innerText.trim();
        }
    }
    return Object.keys(rows).sort((a, b) => a - b).map((index) => rows[index]);
}
"""

# The least between two texts of a row; the space that a text begins with belongs to it.
GAP = r"""
table => {
    const box = (cell) => {
        const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        while (walker.nextNode() && !walker.currentNode.data.trim());
        const range = document.createRange();
        range.selectNodeContents(cell);
        range.setStart(walker.currentNode, walker.currentNode.data.search(/\S/));
        return range.getBoundingClientRect();
    };
    const gaps = [...table.rows].flatMap((row) => {
        const boxes = [...row.cells].map(box);
        return boxes.slice(1).map((box, i) => box.left - boxes[i].right);
    });
    return Math.min(...gaps);
}
"""

MILLISECONDS = 60_000
"""Until a page of MLflow's must be there, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, small_cache: Path) -> Command:
    """A 3 x 3 grid of ordered pairs, two seeds, with its report."""
    command = Command(tmp_path_factory.mktemp("ui"), small_cache)
    (command.folder / "pairs.py").write_text(PAIRS)
    assert f"[{TRIALS}/{TRIALS}]" in command.sweep("pairs.py", *TINY, "--seeds", str(SEEDS), report=True)
    return command


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, swept: Command) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), swept.storage / "mlflow.db")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh profile; the test fails at its end if any page in it logged an error or asked another machine."""
    context = browser.new_context(viewport={"width": 1600, "height": 1150}, color_scheme="light")
    context.set_default_timeout(MILLISECONDS)
    context.add_init_script(SKIP_PANELS)
    watch = Watch()

    def console(message: ConsoleMessage) -> None:
        # MLflow asks who is logged in where nobody can be. Its grid's words on old names are warnings.
        nobody = message.location["url"].endswith("/ajax-api/2.0/mlflow/users/current") and " 404 " in message.text
        if message.type == "error" and not nobody:
            watch.errors.append(message.text)

    # Of the context: a page that a link opens has made requests before anybody can listen to it.
    context.on("console", console)
    context.on("weberror", lambda error: watch.errors.append(str(error.error)))
    context.on("request", lambda request: watch.requests.append(request.url))
    context.on("page", lambda page: page.on("websocket", lambda socket: watch.requests.append(socket.url)))
    yield context
    context.close()
    watch.assert_quiet()
    assert watch.requests


@pytest.fixture
def experiment(context: BrowserContext, server: Server) -> Page:
    """The sweep's experiment, as a click in the list of them opens it."""
    return open_experiment(context, server, "clar/pairs")


@pytest.fixture
def parent(experiment: Page) -> Page:
    """The sweep's own run, as a click on its name opens it."""
    experiment.get_by_role("link", name=PARENT).click()
    expect(experiment.get_by_role("heading", name=PARENT)).to_be_visible(timeout=MILLISECONDS)
    return experiment


def open_experiment(context: BrowserContext, server: Server, name: str) -> Page:
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{server.port}/#/experiments")
    tab.get_by_role("link", name=name, exact=True).click()
    tab.get_by_role("link", name="the sweep first").wait_for()
    return tab


def open_view(experiment: Page, title: str) -> Page:
    """A link of a description opens a tab of its own."""
    with experiment.context.expect_page() as opened:
        experiment.get_by_role("link", name=title, exact=True).click()
    return opened.value


def shows(tab: Page, read: Callable[[], object], expected: object) -> None:
    """The page comes to show it: the grid fills in cell by cell, and sorts once the server has answered."""
    end = time.monotonic() + MILLISECONDS / 1000
    while (found := read()) != expected and time.monotonic() < end:
        tab.wait_for_timeout(100)
    assert found == expected


def cells(tab: Page, *columns: str) -> list[tuple[str, ...]]:
    """What the grid shows in these columns, row by row; empty where it is not there yet."""
    return [tuple(row.get(column, "") for column in columns) for row in tab.evaluate(GRID)]


def top1s(tab: Page) -> list[float | None]:
    return [number(text) for (text,) in cells(tab, TOP1)]


def number(text: str) -> float | None:
    return None if text in ("", "-") else float(text)


def results(swept: Command) -> dict[str, tuple[str, str, str, float]]:
    """Name of a trial's run -> first, second, seed, test top-1."""
    found = {}
    for path in swept.storage.glob("trials/*/result.json"):
        config = TrialFolder.open(swept.storage, path.parent.name).config
        pair, seed = config.augmentations, config.seed
        top1 = json.loads(path.read_text())["test_top1"]
        found[f"{' > '.join(pair)}, seed {seed}"] = (pair[0], pair[-1], str(seed), top1)
    assert len(found) == TRIALS
    return found


def sweep_folder(swept: Command) -> Path:
    (folder,) = swept.storage.glob("sweeps/pairs-*")
    return folder


def means(swept: Command) -> dict[tuple[str, str], tuple[str, bool]]:
    """First and second augmentation -> mean in per cent, and whether it cannot be told from the best."""
    with (sweep_folder(swept) / "table.csv").open() as file:
        return {
            (row["row"], row["column"]): (f"{100 * float(row['mean']):.1f}", row["tied"] == "True")
            for row in csv.DictReader(file)
        }


def grid_in(within: Page | FrameLocator) -> Locator:
    return within.locator("table").filter(has=within.get_by_text("first \\ second", exact=True))


def means_in(grid: Locator) -> dict[tuple[str, str], tuple[str, bool]]:
    script = "table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    (_, *names), *rows = [[cell.strip() for cell in row] for row in grid.evaluate(script)]
    return {
        (row[0], name): (cell.split()[0].rstrip("†"), "†" in cell)
        for row in rows for name, cell in zip(names, row[1:], strict=True)
    }  # fmt: skip


def assert_apart(grid: Locator) -> None:
    """The texts of neighbouring cells do not touch: MLflow leaves no room between them."""
    assert grid.evaluate(GAP) >= 6  # pixels


def use(report: Page | FrameLocator, swept: Command) -> None:
    """What a reader does with the report: read its grid, sort it, play an example."""
    grid = grid_in(report)
    assert means_in(grid) == means(swept)
    first = [mean for (_, second), (mean, _) in means(swept).items() if second == "fade"]
    shown = "table => [...table.tBodies[0].rows].map(row => row.cells[1].textContent.trim().split(' ')[0])"
    button = grid.get_by_role("button", name="fade", exact=True)
    for backwards in (False, True):
        button.click()
        found = [text.rstrip("†") for text in grid.evaluate(shown)]
        assert found == sorted(first, key=float, reverse=backwards)
    sound = report.get_by_label("fade: after")
    sound.scroll_into_view_if_needed()
    assert sound.evaluate("async sound => { await sound.play(); return !sound.paused }")
    assert sound.evaluate(
        "sound => new Promise(done => { sound.ontimeupdate = () => sound.currentTime > 0.05 && done(true) })"
    )
    assert sound.evaluate("sound => sound.duration") == pytest.approx(1, abs=0.1)


def test_the_runs_are_a_table_after_one_click(experiment: Page, swept: Command) -> None:
    line = experiment.locator("main p").filter(has_text="The runs as a table")
    expect(line).to_be_in_viewport()
    assert line.get_by_role("link").all_inner_texts() == ["the sweep first", "the best trial first"]
    screenshot(experiment, "ui-experiment", full=False)

    tab = open_view(experiment, "the sweep first")
    # The sweep's own run has no value in any column.
    shows(tab, lambda: cells(tab, *COLUMNS)[:1], [(PARENT, *"-" * (len(COLUMNS) - 1))])

    def trials() -> dict[str, tuple[str, str, str, float | None]]:
        found = cells(tab, NAME, FIRST, SECOND, SEED, TOP1)[1:]
        return {name: (first, second, seed, number(top1)) for name, first, second, seed, top1 in found}

    shows(tab, trials, results(swept))
    assert "fade > time_mask, seed 0" in trials()
    for key in COLUMNS:
        head = tab.locator(f'.ag-header-cell[col-id="{key}"]')
        expect(head).to_be_in_viewport(ratio=1)
        # Its name is not cut off.
        assert head.locator("span").first.evaluate(
            "(span, head) => span.getBoundingClientRect().right <= head.getBoundingClientRect().right",
            head.element_handle(),
        )
    screenshot(tab, "ui-sweep-first", full=False)


def test_the_best_trial_comes_first_where_that_is_asked_for(experiment: Page, swept: Command) -> None:
    tab = open_view(experiment, "the best trial first")
    best = [*sorted((top1 for *_, top1 in results(swept).values()), reverse=True), None]
    shows(tab, lambda: top1s(tab), best)
    # MLflow puts last what has no value.
    assert cells(tab, NAME)[-1] == (PARENT,)
    screenshot(tab, "ui-best-first", full=False)


def test_the_table_sorts_by_a_click(experiment: Page, swept: Command) -> None:
    tab = open_view(experiment, "the sweep first")
    shows(tab, lambda: cells(tab, NAME)[:1], [(PARENT,)])
    accuracies = [top1 for *_, top1 in results(swept).values()]
    for backwards in (True, False):
        tab.locator(f'.ag-header-cell[col-id="{TOP1}"]').click()
        expected = [*sorted(accuracies, reverse=backwards), None]
        shows(tab, lambda: top1s(tab), expected)
    by_name = {name: top1 for name, (*_, top1) in results(swept).items()}
    assert [by_name[name] for (name,) in cells(tab, NAME)[:-1]] == sorted(accuracies)
    screenshot(tab, "ui-sorted", full=False)


def test_the_description_holds_the_result(experiment: Page, swept: Command) -> None:
    last = grid_in(experiment).locator("tr").last
    expect(last).not_to_be_in_viewport()
    experiment.locator("[data-component-id='mlflow.experiment.metadata_editor.expand_button']").click()
    expect(last).to_be_in_viewport()
    assert means_in(grid_in(experiment)) == means(swept)
    assert_apart(grid_in(experiment))
    screenshot(experiment, "ui-description", full=False)


def test_the_sweeps_run_says_what_was_found(parent: Page, swept: Command) -> None:
    last = grid_in(parent).locator("tr").last
    expect(last).not_to_be_in_viewport()
    parent.get_by_text("Show more").first.click()
    expect(last).to_be_in_viewport()
    claim = parent.get_by_role("listitem").filter(has_text="The best composition of two augmentations beats the best")
    expect(claim).to_be_in_viewport()
    assert means_in(grid_in(parent)) == means(swept)
    assert_apart(grid_in(parent))
    expect(parent.get_by_text("Finished", exact=True)).to_be_visible()
    screenshot(parent, "ui-run", full=False)


def test_the_report_opens_beside_the_sweeps_run(parent: Page, swept: Command) -> None:
    parent.get_by_role("tab", name="Artifacts").click()
    parent.get_by_text("report.html", exact=True).click()
    report = parent.frame_locator("iframe.mlflow-html-iframe")
    expect(report.get_by_role("heading", name=PARENT)).to_be_visible(timeout=MILLISECONDS)
    screenshot(parent, "ui-report", full=False)
    use(report, swept)
    screenshot(parent, "ui-report-example", full=False)
    grid_in(report).scroll_into_view_if_needed()
    screenshot(parent, "ui-report-grid", full=False)


def test_the_report_opens_from_the_disk(context: BrowserContext, swept: Command) -> None:
    tab = context.new_page()
    tab.goto((sweep_folder(swept) / "report.html").as_uri())
    expect(tab.get_by_role("heading", name=PARENT)).to_be_visible()
    use(tab, swept)
    screenshot(tab, "ui-report-file")


def test_a_sweep_that_runs_is_shown_as_far_as_it_is(context: BrowserContext, server: Server, tmp_path: Path) -> None:
    folders = [end(begin(tmp_path, 0)), begin(tmp_path, 1, epochs=2)]
    axes = {folder.identity: {"first": "fade", "second": "time_mask"} for folder in folders}
    sweep = sweep_of(folders, state="running", name="running", axes=axes, note="", files=[], clock={})
    with sweep.driver(), Tracker(f"http://127.0.0.1:{server.port}", sweep, print) as tracker:
        tracker.begin()
        for folder in folders:
            tracker.trial(folder)
        there = {"key": ["RUNNING"], folders[0].identity: ["FINISHED"], folders[1].identity: ["RUNNING"]}
        wait_for(lambda: Runs(server.database).all().items() >= there.items())
        tab = open_view(open_experiment(context, server, "clar/running"), "the sweep first")
        expected = [
            ("running on digits", "-", "-", "-"), ("seed 0", "fade", "0.5", "0.8"), ("seed 1", "fade", "-", "0.2")
        ]  # fmt: skip
        shows(tab, lambda: cells(tab, NAME)[:1], [("running on digits",)])
        shows(tab, lambda: sorted(cells(tab, NAME, FIRST, TOP1, VALID)), expected)
        screenshot(tab, "ui-running", full=False)
        tab.get_by_role("link", name="running on digits").click()
        expect(tab.get_by_text("Running", exact=True)).to_be_visible(timeout=MILLISECONDS)
