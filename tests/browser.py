"""A real browser for the tests of pages: Debian's Chromium through Playwright, and a record of what a page does."""

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

OUTPUT = Path(__file__).parent / "output"
"""Where screenshots go."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_INSTALL_SECONDS = 300
_LOCAL_SCHEMES = {"file", "data", "blob", "about"}
_LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1"}


# Of a module, not of the session: as long as Playwright runs, asyncio.run fails in this thread, in all tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; where there is none, Debian's is installed, or the tests that need it are skipped."""
    path, reason = _chromium()
    if path is None:
        pytest.skip(f"no Chromium: {reason}")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=[*_FLAGS])
        yield launched
        launched.close()


# Once a session: nobody waits twice for an installation that fails.
@functools.cache
def _chromium() -> tuple[str | None, str]:
    """Path of the browser, or None and why there is none."""
    if found := _found():
        return found, ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None, f"none of {', '.join(_NAMES)} is there, and only root with apt-get can install it"
    end = time.monotonic() + _INSTALL_SECONDS
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        said = " ".join(["apt-get", *command])
        try:
            done = subprocess.run(
                ["apt-get", *command], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True,
                text=True, stdin=subprocess.DEVNULL, timeout=max(1, end - time.monotonic()), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None, f"{said} took more than {_INSTALL_SECONDS} s"
        if done.returncode:
            return None, f"{said} failed: {(done.stderr or done.stdout).strip()[-500:]}"
    return _found(), "apt-get installed one that is not on the path"


def _found() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass
class Watch:
    """What a page has done since it is watched.

    Attributes:
        errors: of the console and uncaught ones, also of the frames in it.
        requests: the address of each.
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def assert_quiet(self) -> None:
        """No error, and nothing asked of another machine."""
        assert self.errors == []
        assert [url[:200] for url in self.requests if not _is_local(url)] == []


def watched(page: Page) -> Watch:
    """Record from now on; call it before the page is opened."""
    watch = Watch()

    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            watch.errors.append(message.text)

    def uncaught(error: Error) -> None:
        watch.errors.append(str(error))

    page.on("console", console)
    page.on("pageerror", uncaught)
    page.on("request", lambda request: watch.requests.append(request.url))
    page.on("websocket", lambda socket: watch.requests.append(socket.url))
    return watch


def _is_local(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in _LOCAL_SCHEMES or parts.hostname in _LOCAL_HOSTS


def screenshot(page: Page, name: str, full: bool = True) -> Path:
    """A picture of the page below `tests/output`; nothing compares it, people look at it."""
    path = OUTPUT / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    return path
