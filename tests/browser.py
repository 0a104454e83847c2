"""A real headless Chromium for tests of pages, spoken to by the DevTools protocol through two pipes.

with Browser(profile) as browser:
    page = browser.open("file:///report.html", dark=True, width=360)
    page.evaluate("document.title")
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "no Chromium is installed; `apt-get install chromium` brings it"

_ANSWER_S = 60.0
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root in a container, where its sandbox cannot start
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


class Browser:
    """Chromium as a child process with a profile of its own; it ends with the `with` block.

    Chromium reads commands from its file descriptor 3 and writes answers to 4, each ended by a zero byte.
    """

    def __init__(self, profile: Path) -> None:
        if EXECUTABLE is None:
            raise RuntimeError(MISSING)
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        self._pid = os.posix_spawn(
            EXECUTABLE,
            [EXECUTABLE, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            dict(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            ],
            setpgroup=0,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._read = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str, *, width: int = 1000, height: int = 900, dark: bool = False) -> Page:
        """A page that has loaded, in a tab of its own."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", {"features": [scheme]})
        page.resize(width, height)
        page.send("Page.navigate", {"url": url})
        self._until(lambda event: event.get("method") == "Page.loadEventFired", session)
        return page

    def send(self, method: str, values: dict[str, Any] | None = None, session: str | None = None) -> Any:
        """The result of a command. Raises RuntimeError if the browser refuses it."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": values or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == number, session)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _until(self, wanted: Any, session: str | None) -> dict[str, Any]:
        """The first message that is wanted; events before it are kept."""
        deadline_s = time.monotonic() + _ANSWER_S
        while True:
            message = self._next(deadline_s)
            if "method" in message:
                self.events.append(message)
            if wanted(message) and message.get("sessionId") == session:
                return message

    def _next(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium did not answer in {_ANSWER_S:.0f} s")
            if not (data := os.read(self._in, 1 << 20)):
                raise RuntimeError("Chromium has ended")
            self._read += data
        text, _, self._read = self._read.partition(b"\0")
        return json.loads(text)


@dataclass(frozen=True)
class Page:
    """A tab."""

    browser: Browser = field(repr=False)
    session: str

    def send(self, method: str, values: dict[str, Any] | None = None) -> Any:
        """The result of a command to this tab."""
        return self.browser.send(method, values, self.session)

    def resize(self, width: int, height: int) -> None:
        """The window's size in CSS pixels; below 600 it is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", size)

    def evaluate(self, script: str) -> Any:
        """The value of an expression. Raises RuntimeError if it throws."""
        answer = self.send("Runtime.evaluate", {"expression": script, "returnByValue": True})
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']['text']}")
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Exceptions, errors and warnings of the console, and what the browser itself logged."""
        own = [event for event in self.browser.events if event.get("sessionId") == self.session]
        found = []
        for event in own:
            values = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(values["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                found.append(values["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
                found.append(str(values["args"]))
        return found

    def requests(self) -> list[str]:
        """URLs of everything the page asked for, but for data within it."""
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session
            and event["method"] == "Network.requestWillBeSent"
            and not event["params"]["request"]["url"].startswith("data:")
        ]

    def screenshot(self, path: Path) -> None:
        """A PNG of the whole page."""
        answer = self.send("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(answer["data"]))


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are above the numbers the child uses, and not inherited as they are."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
