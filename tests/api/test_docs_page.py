"""The page of /docs in a real browser: each main call works with only a photo chosen."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.services import build_services
from app.settings import Settings
from tests.api.conftest import run_server

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome, ChromeOptions, ChromeService  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.slow

# Nothing that asks the network by itself.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_S = 60


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"))
    with run_server(build_services(settings)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium-driver)")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    with Chrome(options=options, service=ChromeService(driver)) as browser:
        yield browser


def test_each_call_with_only_a_photo_chosen(service: str, browser: Chrome, photos: Path) -> None:
    # In this order: verification needs somebody enrolled under the id that the page suggests.
    for call in ("detect", "embed", "enroll", "verify", "identify"):
        browser.get("about:blank")
        browser.get(f"{service}/docs")
        assert try_out(browser, f"/v1/{call}", photos / "obama.jpg") == "200", call


def try_out(browser: Chrome, path: str, photo: Path) -> str:
    """Choose a photo for a call, send it, and read the status that the page shows."""
    wait = WebDriverWait(browser, WAIT_S)
    selector = f'.opblock-summary-path[data-path="{path}"]'
    summary = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, selector))
    block = summary.find_element(By.XPATH, "./ancestor::div[contains(@class,'opblock-post')]")
    summary.click()
    click(wait, block, ".try-out__btn")
    file_fields = wait.until(lambda _: block.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    image = next(field for field in file_fields if "image" in row_of(field))
    image.send_keys(str(photo))
    click(wait, block, ".execute")
    status = ".live-responses-table tbody .response-col_status"
    return wait.until(lambda _: block.find_elements(By.CSS_SELECTOR, status))[0].text


def click(wait: WebDriverWait[Chrome], block: WebElement, selector: str) -> None:
    wait.until(lambda _: block.find_elements(By.CSS_SELECTOR, selector))[0].click()


def row_of(field: WebElement) -> str:
    """The name of a form field, as its row shows it."""
    return field.find_element(By.XPATH, "./ancestor::tr[1]").text
