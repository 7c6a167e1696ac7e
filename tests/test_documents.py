"""What the documents name is there: files, headings, modules, options."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def anchors(document: Path) -> set[str]:
    """The headings of a document, as links name them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options(*apps: typer.Typer) -> set[str]:
    """All options of commands."""
    found = {"--help"}
    for app in apps:
        command = typer.main.get_command(app)
        for one in [command, *getattr(command, "commands", {}).values()]:
            for parameter in one.params:
                found |= {*parameter.opts, *parameter.secondary_opts}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    assert links or document.name in ("CHANGELOG.md", "EXPERIMENTS.md", "scale.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_are_named_exist(document: Path) -> None:
    for module in set(re.findall(r"python -m ((?:clar|analysis|benchmarks)[\w.]*\w)", document.read_text())):
        assert find_spec(module), module
    for benchmark in set(re.findall(r"python -m benchmarks ([a-z]+)", document.read_text())):
        assert (ROOT / "benchmarks" / f"{benchmark}.py").exists(), benchmark


def test_the_readme_names_every_module_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^((?:clar|analysis)/\w+\.py) ", text, re.MULTILINE))
    there = {
        str(path.relative_to(ROOT)) for folder in ("clar", "analysis") for path in (ROOT / folder).glob("*.py")
        if not path.name.startswith("__init__")
    }  # fmt: skip
    assert named == there


def test_options_that_are_named_exist() -> None:
    from analysis import report
    from clar import preemption, sweep, tracking, train
    from clar.datasets import __main__ as data

    known = options(sweep.app, train.app, data.app, report.app, tracking.app, preemption.app)
    for line in re.findall(r"^.*python -m (?:clar|analysis).*$", (ROOT / "README.md").read_text(), re.MULTILINE):
        ours = re.split(r"python -m (?=clar|analysis)", line, maxsplit=1)[1].partition("#")[0].partition("`")[0]
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", ours):
            assert option in known, line
    table = re.findall(r"^\| (`--.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(table) > 20
    for cell in table:
        for option in re.findall(r"--[a-z][a-z-]*", cell):
            assert option in known, cell
