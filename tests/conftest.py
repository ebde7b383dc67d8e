"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# As `glbook` does it: threads that wait without spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Programs started in the background ignore Ctrl-C, and so would the commands that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A shared machine is slow at times, and a test that fails must fail again.
settings.register_profile("book", deadline=None, derandomize=True, database=None)
settings.load_profile("book")

ROOT = Path(__file__).resolve().parents[1]
# Modules that tests share say what they compared, too.
pytest.register_assert_rewrite("browsing", "image_trees", "made_records", "miniatures")
MEASURED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def tell(request):
    """A function whose argument, a line, stands at the end of the tests' report: what was measured."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(MEASURED, []):
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` with reference arrays and images that are not part of the repository.

    A reader's machine does not have it, so the tests that need it skip there; on the project's own CI its
    absence would hide a gap.
    """
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        message = "../shared (reference arrays and image sets) is not on this machine"
        if os.environ.get("CI") == "true" and "GITHUB_ACTIONS" not in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    from glbook import pdf

    try:
        path = pdf.find_browser()
    except FileNotFoundError as missing:
        pytest.fail(f"the pages are tested in Chromium: {missing}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=pdf.QUIET)
        yield opened
        opened.close()
