"""A book of one small chapter, built and read in a browser: the machinery of the book, in half a minute."""

import subprocess
import sys

import nbformat
import pytest
from browsing import DESKTOP, PHONE, Visit, accessible, fits, read
from stub_book import make_book

from glbook import pdf

pytestmark = pytest.mark.slow

PROSE = """## A formula, a table and a citation

$$ x_i \\leftarrow \\frac{x_i (Wx)_i}{x^\\top W x} $$

| symbol | meaning |
|---|---|
| $W$ | similarities |

The dynamics are those of Nobody [2020].
"""
FIGURE = """from glbook import plots
plots.use_book_style()
figure, ax = plots.panels()
ax.plot([0, 1], [0, 1])
figure"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where a server shows the pages of the small book."""
    root = make_book(tmp_path_factory.mktemp("stub") / "project")
    path = root / "book" / "training.ipynb"
    notebook = nbformat.read(path, 4)
    figure = nbformat.v4.new_code_cell(FIGURE, id="figure")
    figure.metadata["mystnb"] = {"figure": {"caption": "A line.", "name": "fig-line"}, "image": {"alt": "A line."}}
    references = nbformat.v4.new_markdown_cell("## References\n\n- Nobody, 2020: *Nothing*. No one.", id="references")
    notebook.cells += [nbformat.v4.new_markdown_cell(PROSE, id="prose"), figure, references]
    nbformat.write(notebook, path)
    done = subprocess.run([sys.executable, "-m", "glbook", "book"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pdf.pages_of_a_folder(root / "_build" / "html") as found:
        yield found


@pytest.mark.parametrize("name", ["intro", "training"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_whole_and_can_be_used_by_everyone(browser, address, name, scheme):
    with Visit(browser, address, f"{name}.html", DESKTOP, scheme) as visit:
        text = read(visit)
        accessible(visit)
        if name == "training":
            assert "profile=quick" in text and "Nobody" in text
            assert (
                visit.page.locator("article img[alt='A line.']").count() == 1
                and visit.page.locator("a.reference").count() >= 1
            )


@pytest.mark.parametrize("name", ["intro", "training"])
def test_a_page_fits_a_phone(browser, address, name):
    with Visit(browser, address, f"{name}.html", PHONE) as visit:
        fits(visit)


def test_search_finds_a_word(browser, address):
    with Visit(browser, address, "search.html?q=replicator", DESKTOP) as visit:
        visit.page.locator("#search-results li a").first.wait_for()
        assert visit.faults == []
