"""The page in a browser, in both languages: used by mouse and by keyboard alone, compared by pixels.

Needs Playwright (pip) and Chromium (Debian's will do); skipped without.
"""

from __future__ import annotations

import io
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

for _name in ("fastapi", "multipart", "prometheus_client", "uvicorn", "playwright.sync_api"):
    pytest.importorskip(_name)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

import uvicorn  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

from restort.imaging.encode import write  # noqa: E402
from restort.imaging.picture import Picture  # noqa: E402
from restort.inference.model import Model  # noqa: E402
from restort.inference.resolve import RunOptions  # noqa: E402
from restort.serve.app import PAGE, Settings, make_app  # noqa: E402
from restort.serve.model_pool import ModelPool  # noqa: E402
from restort.weights.checkpoint import load_weights  # noqa: E402
from tests.fakes.fake_backend import ELAN, RESTORMER, FakeRunner, write_weights  # noqa: E402


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose denoiser inverts pictures, so that before and after cannot be confused."""
    folder = tmp_path_factory.mktemp("page")
    files = {
        1: write_weights(folder / "x1.safetensors", RESTORMER),
        4: write_weights(folder / "x4.safetensors", ELAN[4]),
    }

    def load(name: str, options: RunOptions) -> Model:
        weights = load_weights(files[4 if "x4" in name else 1])
        return Model(weights, FakeRunner(weights.spec, "fp32"), name=name, asked=("auto", "auto"))

    app = make_app(ModelPool(RunOptions(), load=load), Settings(folder / "work"))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(params=["en-GB", "zh-CN"])
def page(request: pytest.FixtureRequest, address: str) -> Iterator[Page]:
    """An opened page that asks nobody else and logs no error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            locale=request.param, viewport={"width": 1000, "height": 900}, accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        wrong: list[str] = []
        page.on(
            "console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "blob:", "data:")) else wrong.append(r.url),
        )
        page.goto(address)
        page.locator("#model option").nth(1).wait_for(state="attached")
        page.chinese = request.param == "zh-CN"  # type: ignore[attr-defined]
        yield page
        refused = page.locator("#list .bad").count()  # Chromium itself logs an answer that is no success
        wrong = [line for line in wrong if not (refused and "422" in line)]
        assert not wrong, wrong
        browser.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "dark.png"
    write(path, Picture(np.full((120, 200, 3), 30, np.uint8)))
    return path


def halves(page: Page) -> tuple[float, float]:
    """Mean brightness near the left and the right edge of the picture that is compared."""
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L"), float)
    rows = image[image.shape[0] // 2 - 20 : image.shape[0] // 2 + 20]
    width = rows.shape[1]
    return float(rows[:, width // 4 : width // 4 + 20].mean()), float(
        rows[:, 3 * width // 4 : 3 * width // 4 + 20].mean()
    )


def test_left_is_before_and_right_is_after(page: Page, picture: Path) -> None:
    assert page.locator("html").get_attribute("lang") == ("zh-CN" if page.chinese else "en")  # type: ignore[attr-defined]
    assert page.locator("#start").inner_text() == ("开始复原" if page.chinese else "Restore")  # type: ignore[attr-defined]
    page.locator("#files").set_input_files([picture])
    page.locator("#start").click()
    page.locator("#view").wait_for(state="visible")
    left, right = halves(page)
    assert abs(left - 30) < 6 and abs(right - 225) < 6
    page.locator("#slider").fill("100")
    left, right = halves(page)
    assert abs(left - 30) < 6 and abs(right - 30) < 6
    page.locator("#full").click()
    page.locator("#slider").fill("0")
    left, right = halves(page)
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "dark_restored.png"
    from restort.imaging.decode import read

    assert (read(download.value.path()).pixels == 225).all()


def test_the_keyboard_is_enough(page: Page, picture: Path) -> None:
    page.locator("#files").set_input_files([picture])  # the dialogue of the system cannot be driven
    page.keyboard.press("Tab")
    for _ in range(40):
        focused = page.evaluate("document.activeElement.id || document.activeElement.name")
        if focused == "task":
            page.keyboard.press("ArrowDown")
            assert page.evaluate("document.querySelector('input[name=task]:checked').value") == "dejpeg"
        if focused == "start":
            break
        page.keyboard.press("Tab")
    assert focused == "start"
    page.keyboard.press("Enter")
    page.locator("#view").wait_for(state="visible")
    for _ in range(40):
        if page.evaluate("document.activeElement.id") == "slider":
            break
        page.keyboard.press("Tab")
    before = page.locator("#slider").input_value()
    page.keyboard.press("ArrowRight")
    assert page.locator("#slider").input_value() != before


def test_sixteen_bit_tiff_is_shown_and_a_bad_file_is_told(page: Page, tmp_path: Path) -> None:
    write(tmp_path / "deep.tif", Picture(np.full((40, 60, 3), 9000, np.uint16)))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.locator("#files").set_input_files([tmp_path / "deep.tif", tmp_path / "broken.png"])
    page.locator("#start").click()
    page.locator("#view").wait_for(state="visible")
    assert page.evaluate("document.querySelector('#before').naturalWidth") == 60
    bad = page.locator("#list .bad")
    bad.wait_for()
    assert "broken.png" in bad.inner_text() and str(tmp_path) not in bad.inner_text()


def test_the_middle_first_and_another_language(page: Page, picture: Path) -> None:
    page.locator("#files").set_input_files([picture])
    page.locator("#try").click()
    page.locator("#view").wait_for(state="visible")
    assert page.locator("#list li").count() == 2
    page.locator("#language").select_option("en" if page.chinese else "zh")  # type: ignore[attr-defined]
    assert page.locator("#save").inner_text() == ("Save" if page.chinese else "保存")  # type: ignore[attr-defined]
    page.locator("#list li button").last.click()
    page.locator("#list li").nth(1).wait_for(state="detached")


def test_every_text_is_in_both_languages() -> None:
    import re

    script = (PAGE / "page.js").read_text("utf-8")
    parts = re.search(r"en: \{(.*?)\n  \},\n  zh: \{(.*?)\n  \},", script, re.S)
    assert parts is not None
    english, chinese = (set(re.findall(r"(\w+): \"", part)) for part in parts.groups())
    used = set(re.findall(r"data-t=\"(\w+)\"", (PAGE / "index.html").read_text("utf-8")))
    assert english == chinese and used <= english


def test_the_policy_of_the_page(address: str) -> None:
    import httpx

    answer = httpx.get(address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    text = answer.text
    assert "style=" not in text and "onclick" not in text and "http://" not in text and "https://" not in text
