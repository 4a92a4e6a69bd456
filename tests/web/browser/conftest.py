"""The server on a real port and Debian's Chromium."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: collects what the policy refuses, before the page's own scripts run
_LISTEN = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


class _Server(uvicorn.Server):
    """Tells when it listens; leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.listens.set()


@dataclass
class RunningServer:
    """A server that a test can take away and bring back on the same port."""

    app: FastAPI
    port: int = 0
    _server: _Server | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=self.port, log_level="error", timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        assert self._server.listens.wait(30), "the server did not start within 30 s"
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(30)
        self._server = self._thread = None


@pytest.fixture
def database_backend() -> str:
    """One database is enough here: the pages are tested on both without a browser."""
    return "sqlite"


@pytest.fixture
def server(app: FastAPI) -> Iterator[RunningServer]:
    running = RunningServer(app)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page and everything that went wrong in it."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """No console message, no script error, no policy violation, no failed request."""
        assert self.problems + self.page.evaluate("() => window.violations") == []


@pytest.fixture
def open_tab(browser: Browser, server: RunningServer) -> Iterator[Callable[..., Tab]]:
    """Opens a path in a new browser profile; checked for problems at the end unless the test took that over."""
    contexts = []

    def open_(path: str, *, theme: str = "light", width: int = 1280) -> Tab:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if theme == "dark" else "light"
        )
        contexts.append(context)
        context.add_init_script(_LISTEN)
        tab = Tab(context.new_page())
        tab.page.on("console", lambda message: tab.problems.append(f"{message.type}: {message.text}"))
        tab.page.on("pageerror", lambda error: tab.problems.append(f"script error: {error}"))
        tab.page.goto(server.url + path)
        return tab

    yield open_
    for context in contexts:
        context.close()
