"""The book as one PDF: all pages in one, printed by Chromium, so that formulas and figures are those of the screen."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gl_core.training import records
from glbook import book

__all__ = ["find_browser", "pages_of_a_folder", "print_book"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A browser that speaks to nobody but the pages' own server.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync", "--no-first-run",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
# What a page is waited for: MathJax has ended its work; pictures that are fetched when a reader comes near are there.
FORMULAS_ARE_SET = "window.MathJax?.startup?.promise?.then(() => true)"
PICTURES_ARE_THERE = (
    "[...document.images].map(image => { image.loading = 'eager'; return image.complete; }).every(Boolean)"
)
# Solutions are read on paper too; what only sets a page up stays folded, as it is on the screen.
UNFOLD = "document.querySelectorAll('.tag_solution details').forEach(folded => { folded.open = true; })"
STYLE = """
/* What fades in would be printed before it is there. */
*, *::before, *::after { animation: none !important; transition: none !important; }
.sidebar, .bd-header, .bd-sidebar-primary, .bd-sidebar-secondary, .header-article, .prev-next-area, .bd-footer,
  .copybtn, .headerlink, .toggle-details, details.hide:not([open]) { display: none !important; }
html { font-size: 13px; }
.bd-content, .bd-main, .bd-article-container, .bd-container__inner { display: block; max-width: none; padding: 0; }
span[id^="document-"] { break-before: page; display: block; }
figure, table, img, .interactive, .cell_output, .admonition { break-inside: avoid; }
h1, h2, h3 { break-after: avoid; break-inside: avoid; }
pre { white-space: pre-wrap; }
"""
FOOTER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def print_book() -> Path:
    """Build the book if needed, print it, and return `_build/book.pdf`.

    Raises:
        ChapterError, PageError: the book cannot be built.
        FileNotFoundError: there is no Chromium.
        ImportError: the package playwright is missing.
    """
    from playwright.sync_api import sync_playwright

    browser, root = find_browser(), records.project_root()
    book.build()
    paper = root / "_build" / "book.pdf"
    aside = paper.with_suffix(".tmp")
    with book.only_one(root), pages_of_a_folder(_one_page(root)) as address, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=QUIET)
        page = opened.new_page(color_scheme="light")
        page.goto(f"{address}/intro.html", timeout=300_000)
        for ready in (FORMULAS_ARE_SET, PICTURES_ARE_THERE):
            page.wait_for_function(ready, timeout=300_000)
        page.add_style_tag(content=STYLE)
        page.evaluate(UNFOLD)
        page.pdf(
            path=aside, format="A4", print_background=True, outline=True, tagged=True, display_header_footer=True,
            header_template="<span></span>", footer_template=FOOTER,
            margin={"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
        )  # fmt: skip
        opened.close()
        aside.replace(paper)
    return paper


def find_browser() -> str:
    """The path of a Chromium: CHROMIUM's, or one on PATH. Raises FileNotFoundError if there is none."""
    names = (os.environ.get("CHROMIUM"), *BROWSERS)
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if path is None:
        hint = "`make browser` installs it or says how; CHROMIUM=/path names another"
        raise FileNotFoundError(f"no Chromium is here: {hint}")
    return path


@contextmanager
def pages_of_a_folder(folder: Path) -> Iterator[str]:
    """A server for this machine alone that shows a folder; its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _one_page(root: Path) -> Path:
    """All pages of the executed book in one; the folder that holds it."""
    aside = root / "_build" / "jupyter-book-paper"
    if book.jupyter_book(root, aside, "--builder", "singlehtml"):
        raise book.PageError("the pages could not be put together; the reason is above")
    return aside / "_build" / "singlehtml"
