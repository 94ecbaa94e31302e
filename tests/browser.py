# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A headless Chromium through its driver, by the few commands of WebDriver (https://www.w3.org/TR/webdriver2) that the
tests need. No library: the protocol is JSON on the loopback interface.
"""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the protocol


def find_browser() -> tuple[str, str] | None:
    """The browser and its driver; `None` where one of them is not installed."""
    driver, browser = shutil.which("chromedriver"), next(filter(None, map(shutil.which, BROWSERS)), None)
    return (browser, driver) if browser and driver else None


class Browser:
    """`with Browser(new_folder, width, height) as browser:` `folder` holds its profile."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False):
        self.folder, self.size, self.dark = folder, (width, height), dark

    def __enter__(self) -> "Browser":
        browser, driver = find_browser()
        log = self.folder / "driver.log"
        self.folder.mkdir(parents=True)
        # Port 0: the driver takes a free one, and says which.
        self.process = subprocess.Popen([driver, "--port=0"], stdout=log.open("w"), stderr=subprocess.STDOUT)
        try:
            self.url = f"http://127.0.0.1:{self._port(log)}/session"
            options = {
                "binary": browser,
                "args": [
                    *FLAGS,
                    f"--user-data-dir={self.folder / 'profile'}",
                    f"--window-size={self.size[0]},{self.size[1]}",
                ],
            }
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            self.url += "/" + self._send("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            # The window of a headless browser has a least width; the view of a page has none.
            view = {"width": self.size[0], "height": self.size[1], "deviceScaleFactor": 1, "mobile": False}
            self.command("Emulation.setDeviceMetricsOverride", **view)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
            self.command("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._send("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(timeout=20)

    def _port(self, log: Path) -> str:
        for _ in range(300):
            if found := re.search(r"successfully on port (\d+)", log.read_text()):
                return found[1]
            time.sleep(0.05)
        raise RuntimeError(f"the driver did not start: {log.read_text()}")

    def _send(self, path: str, body: dict | None = None, method: str = "POST") -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        # Without proxies: it is the loopback interface.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def command(self, name: str, **parameters: Any) -> Any:
        """Of the DevTools protocol."""
        return self._send("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str) -> None:
        self._send("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """`return ...` of JavaScript."""
        return self._send("/execute/sync", {"script": script, "args": arguments})

    def click(self, selector: str) -> None:
        """As a user would: the element is scrolled into view, and must not be covered."""
        self._send(f"/element/{self._find(selector)[ELEMENT]}/click")

    def click_at(self, selector: str, right: float, down: float) -> None:
        """At a place inside the element, as shares of its width and height."""
        place = self.run(
            "arguments[0].scrollIntoView({block: 'center'}); const box = arguments[0].getBoundingClientRect();"
            "return [box.left + arguments[1] * box.width, box.top + arguments[2] * box.height]",
            self._find(selector),
            right,
            down,
        )
        move = {"type": "pointerMove", "x": round(place[0]), "y": round(place[1])}
        actions = [move, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._send("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def _find(self, selector: str) -> dict[str, str]:
        return self._send("/element", {"using": "css selector", "value": selector})

    def press(self, key: str) -> None:
        """On the element that has the focus."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._send("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def console(self) -> list[str]:
        """What the console said since the last call, errors of the network included."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._send("/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("/screenshot", method="GET")))
