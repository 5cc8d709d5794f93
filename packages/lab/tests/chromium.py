"""A headless Chromium that tests drive by the DevTools protocol, without a driver program or a library for it."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "a": ("KeyA", 65, "a"),
    "b": ("KeyB", 66, "b"),
    "t": ("KeyT", 84, "t"),
}
SHIFT = 8
CONTROLS = {"button", "textbox", "combobox", "spinbutton", "link"}


class Page:
    """One tab. Every call waits for the browser's answer."""

    def __init__(self, loop, socket):
        self._loop, self._socket, self._number = loop, socket, 0
        self.complaints = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of one DevTools command."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), 30))

    async def _call(self, method, parameters):
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(message["params"])
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def open(self, url, width=1100, height=760, dark=False, touch=False):
        """Loads a page at a size, in light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def script(self, expression):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, condition, seconds=20.0):
        """Until a JavaScript condition holds."""
        deadline = time.monotonic() + seconds
        while not self.script(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"{condition} does not hold: {self.script('document.body.innerText')}"
            time.sleep(0.03)

    def type(self, text):
        """Puts text in where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key, shift=False):
        """One key down and up."""
        code, number, text = KEYS[key]
        parameters = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def focused(self):
        """Id or text of the element that has the focus."""
        return self.script("document.activeElement.id || document.activeElement.textContent")

    def unnamed(self):
        """Roles of the controls that have no name a screen reader could say."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        controls = [n for n in nodes if not n["ignored"] and n["role"]["value"] in CONTROLS]
        assert controls
        return [n["role"]["value"] for n in controls if not n.get("name", {}).get("value")]

    def picture(self, path):
        """What is seen, as a PNG file."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser():
    """A `Page` of a browser that ends with the block; skips the test where there is no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)})")
    with tempfile.TemporaryDirectory() as profile:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        arguments += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = asyncio.new_event_loop()
        session = None
        try:
            session, socket = loop.run_until_complete(_connected(Path(profile) / "DevToolsActivePort", process))
            yield Page(loop, socket)
        finally:
            if session:
                loop.run_until_complete(session.close())
            loop.close()
            process.terminate()
            process.wait(timeout=20)
            time.sleep(0.2)  # its children still write to the profile


async def _connected(port_file, process):
    for _ in range(600):
        if port_file.exists() and (lines := port_file.read_text().split()):
            break
        assert process.poll() is None, "Chromium ended at once"
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("Chromium did not open its port")
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{lines[0]}/json/list") as response:
        tab = next(tab for tab in await response.json() if tab["type"] == "page")
    return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=1 << 26)
