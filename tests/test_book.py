"""The book as its readers meet it: built, then every page opened in a real browser."""

import gzip
import html
import json
import re
import subprocess
import sys
import unicodedata
import urllib.parse

import pytest
import torch
import yaml
from browsing import DESKTOP, PHONE, Visit, accessible, fits, read
from stub_book import ROOT

from gl_core.propagation import replicator_dynamics
from glbook import pdf

HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
PAGES = [TOC["root"], *(entry["file"] for entry in TOC["chapters"])]
NOTEBOOKS = [name for name in PAGES if (ROOT / "book" / f"{name}.ipynb").is_file()]

pytestmark = pytest.mark.book


@pytest.fixture(scope="session")
def built():
    """The book, built by the command that readers use; its own process, as its packages' warnings are not ours."""
    before = tracked_state()
    done = subprocess.run([sys.executable, "-m", "glbook", "book"], cwd=ROOT, timeout=1500)
    if done.returncode:
        pytest.fail("the book could not be built; the reason is above", pytrace=False)
    assert tracked_state() == before, "building the book changed files that are in git"
    return HTML


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_figure_has_a_caption(built, name):
    for cell in json.loads((ROOT / "_build" / "book" / f"{name}.ipynb").read_text())["cells"]:
        for output in cell.get("outputs", []):
            found = output.get("data", {})
            if "image/png" in found or "image/svg+xml" in found:
                assert cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption"), "".join(cell["source"])
            if 'class="interactive' in "".join(found.get("text/html", "")):
                assert re.search("<figcaption>.{30,}</figcaption>", "".join(found["text/html"]))


def test_chapters_take_no_longer_than_a_reader_waits(built, tell):
    """On two cores that nobody else uses 35 s on average and 90 s at most; twice that where others use them too."""
    seconds = {}
    for name in NOTEBOOKS:
        chapter = json.loads((ROOT / "_build" / "book" / f"{name}.ipynb").read_text())
        seconds[name] = chapter["metadata"]["papermill"]["duration"]
    longest, average = max(seconds, key=seconds.get), sum(seconds.values()) / len(seconds)
    tell(f"a chapter takes {average:.1f} s on average, the longest, {longest}, {seconds[longest]:.0f} s")
    assert average < 70 and seconds[longest] < 180, seconds


def tracked_state() -> str:
    """Which files differ from the index, and how; a checkout without git has none."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", ROOT, "diff", "--stat"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def address(built):
    """Where a server on this machine shows the pages."""

    with pdf.pages_of_a_folder(built) as found:
        yield found


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(browser, address, name):
    with Visit(browser, address, f"{name}.html", DESKTOP) as visit:
        text = read(visit)
        assert name not in NOTEBOOKS or re.search("(?:Live|Recorded) result", text), "where the results come from"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(browser, address, name):
    with Visit(browser, address, f"{name}.html", PHONE) as visit:
        fits(visit)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_used_by_everyone(browser, address, name, scheme):
    with Visit(browser, address, f"{name}.html", DESKTOP, scheme) as visit:
        accessible(visit)


def test_the_playground_computes_what_the_library_does(browser, address):
    with Visit(browser, address, "propagation.html", DESKTOP) as visit:
        figure = visit.page.locator(".interactive.simplex")
        state = json.loads(figure.get_attribute("data-simplex"))
        W = torch.tensor(state["similarity"], dtype=torch.float64)
        X = torch.tensor([image["start"] for image in state["images"]], dtype=torch.float64)
        moves = [i for i, image in enumerate(state["images"]) if not image["anchor"]]

        def shown():
            return [[float(cell) for cell in row.split()[-3:]] for row in figure.locator("tbody tr").all_inner_texts()]

        def expected(T):
            return replicator_dynamics(W, X, T)[moves].tolist()

        assert shown() == [pytest.approx(row, abs=6e-4) for row in expected(3)]
        figure.get_by_role("button", name="Step").click()
        assert shown() == [pytest.approx(row, abs=6e-4) for row in expected(4)]
        figure.get_by_role("button", name="Reset").click()

        similarity = figure.locator("fieldset input").first
        similarity.fill("0.05")
        W[moves[0], 0] = W[0, moves[0]] = 0.05
        assert shown() == [pytest.approx(row, abs=6e-4) for row in expected(3)]

        ring = figure.locator(".handle").first
        before = ring.bounding_box()
        ring.hover()
        visit.page.mouse.down()
        visit.page.mouse.move(before["x"] + 40, before["y"] - 30)
        visit.page.mouse.up()
        assert ring.bounding_box()["x"] > before["x"] + 20
        ring.press("ArrowLeft")
        assert sum(
            float(share.split()[-1]) for share in ring.get_attribute("aria-valuetext").split(",")
        ) == pytest.approx(1, abs=0.02)
        assert visit.faults == []


def test_the_explorer_shows_an_image_and_its_neighbours(browser, address):
    with Visit(browser, address, "embedding.html", DESKTOP) as visit:
        figure = visit.page.locator(".interactive.explorer")
        state = json.loads(figure.get_attribute("data-explorer"))
        last, first = list(state["maps"])[-1], list(state["maps"])[0]
        chosen = 17
        figure.locator(".point").nth(chosen).dispatch_event("pointerenter")

        def right(name):
            near = state["maps"][name]["neighbours"][chosen]
            return f"{sum(state['labels'][j] == state['labels'][chosen] for j in near)} of {len(near)}"

        panel = figure.locator(".shown")
        assert state["names"][state["labels"][chosen]] in panel.inner_text() and right(last) in panel.inner_text()
        assert figure.locator(".tie").count() == len(state["maps"][last]["neighbours"][chosen])
        place = figure.locator(".point").nth(chosen).bounding_box()
        figure.get_by_role("button", name=first).click()
        assert right(first) in panel.inner_text()
        assert figure.locator(".point").nth(chosen).bounding_box() != place
        figure.locator("select").select_option(index=1)
        assert figure.locator(".point.apart").count() == sum(label != 0 for label in state["labels"])
        figure.locator("svg").press("ArrowRight")
        assert state["names"][state["labels"][chosen + 1]] in panel.inner_text()
        assert visit.faults == []


def test_the_film_is_played_and_moved_through(browser, address):
    with Visit(browser, address, "embedding.html", DESKTOP) as visit:
        figure = visit.page.locator(".interactive.film")
        state = json.loads(figure.get_attribute("data-film"))
        last = len(state["titles"]) - 1
        slider, output, button = (figure.locator(name) for name in ("input", "output", "button.play"))

        def drawn():
            return figure.locator("canvas").evaluate("canvas => canvas.toDataURL()")

        assert last >= 4 and output.inner_text() == state["titles"][-1]
        end = drawn()
        slider.fill("0")
        start = drawn()
        assert output.inner_text() == state["titles"][0] and start != end
        slider.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == state["titles"][1] and drawn() not in (start, end)
        figure.locator("select").select_option(index=1)
        assert drawn() != start
        figure.locator("select").select_option(index=0)
        button.click()
        assert button.inner_text() == "pause"
        visit.page.wait_for_function(
            "title => document.querySelector('.interactive.film output').textContent === title", arg=state["titles"][-1]
        )
        visit.page.wait_for_function("document.querySelector('.interactive.film .play').textContent === 'play'")
        assert drawn() == end
        assert visit.faults == []


@pytest.mark.parametrize(("name", "figures"), [("propagation", 1), ("embedding", 2)])
def test_interactive_figures_are_pictures_without_scripts(browser, address, name, figures):
    with Visit(browser, address, f"{name}.html", DESKTOP, scripts=False) as visit:
        stills = visit.page.locator(".interactive img.still").all()
        assert len(stills) == figures
        for still in stills:
            assert still.is_visible() and still.bounding_box()["width"] > 200


@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("name", ["propagation", "embedding"])
def test_interactive_figures_have_the_ground_of_the_page(browser, address, name, scheme, bright):
    ground = """figure => {
        for (let node = figure; node; node = node.parentElement) {
            const [red, green, blue, alpha = 1] = getComputedStyle(node).backgroundColor.match(/[\\d.]+/g).map(Number);
            if (alpha > 0) return (red + green + blue) / 3;
        }
    }"""
    with Visit(browser, address, f"{name}.html", DESKTOP, scheme) as visit:
        for figure in visit.page.locator(".interactive").all():
            assert (figure.evaluate(ground) > 128) == bright


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_photographed(browser, address, scheme):
    folder = ROOT / "_build" / "screenshots"
    folder.mkdir(exist_ok=True)
    backgrounds = set()
    for name in PAGES:
        with Visit(browser, address, f"{name}.html", DESKTOP, scheme) as visit:
            visit.page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)
            backgrounds.add(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    (colour,) = backgrounds
    lightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert lightness > 200 if scheme == "light" else lightness < 80


def test_search_finds_the_replicator(browser, address):
    with Visit(browser, address, "search.html?q=replicator", DESKTOP) as visit:
        results = visit.page.locator("#search-results li a")
        results.first.wait_for()
        assert any("propagation.html" in result.get_attribute("href") for result in results.all())
        assert visit.faults == []


def test_search_engines_and_previews_find_every_page(built):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    base, sitemap = config["html_baseurl"], (built / "sitemap.xml").read_text()
    for name in PAGES:
        assert f"<loc>{base}{name}.html</loc>" in sitemap
        page = (built / f"{name}.html").read_text()
        assert f'<meta property="og:image" content="{base}{config["ogp_image"]}" />' in page
        words = re.search(r'<meta property="og:description" content="([^"]*)"', page)[1]
        assert len(words) > 60 and "Budget" not in words and "Colab" not in words, name
    assert (built / config["ogp_image"]).is_file()


def test_a_page_weighs_little(browser, address, built):
    """What a first visit loads, compressed as GitHub Pages sends it: less than 3 MB, the embedding explorer apart."""

    def weight(url: str) -> int:
        content = (built / urllib.parse.urlsplit(url).path.lstrip("/")).read_bytes()
        return min(len(content), len(gzip.compress(content)))

    for name in PAGES:
        with Visit(browser, address, f"{name}.html", DESKTOP) as visit:
            sent = "performance.getEntries().filter(entry => entry.encodedBodySize).map(entry => entry.name)"
            loaded = set(visit.page.evaluate(sent))
            assert f"{address}/{name}.html" in loaded and len(loaded) > 10
            assert sum(map(weight, loaded)) < (6e6 if name == "embedding" else 3e6), name


def test_links_inside_the_book_lead_somewhere(built):
    anchors = {path.name: set(re.findall(r'\bid="([^"]+)"', path.read_text())) for path in built.glob("*.html")}
    for name in PAGES:
        article = re.search(r"<article.*?</article>", (built / f"{name}.html").read_text(), re.DOTALL)[0]
        for link in re.findall(r'<a [^>]*href="([^"]+)"', article):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            target = target or f"{name}.html"
            assert (built / target).is_file(), f"{name}: {link}"
            assert not anchor or target not in anchors or anchor in anchors[target], f"{name}: {link}"


def test_an_unchanged_book_is_not_built_again(built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-m", "glbook", "book"], cwd=ROOT, check=True, timeout=300, capture_output=True, text=True
    )
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before
    assert "making pages" not in done.stderr and "_build/html/index.html" in done.stdout


def test_the_book_is_printed(built):
    """Every chapter is in it, with formulas, pictures and solutions; the outline has their titles."""
    from pypdf import PdfReader

    done = subprocess.run(
        [sys.executable, "-m", "glbook", "pdf"], cwd=ROOT, timeout=800, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reader = PdfReader(ROOT / "_build" / "book.pdf")

    def letters(words: str) -> str:
        # Without spaces, which a line that breaks loses, and without ligatures.
        return re.sub(r"\s", "", unicodedata.normalize("NFKC", words))

    def titles(outline) -> list[str]:
        return [
            title
            for entry in outline
            for title in (titles(entry) if isinstance(entry, list) else [letters(str(entry.title))])
        ]

    found, text = titles(reader.outline), "\n".join(page.extract_text() for page in reader.pages)
    for name in PAGES:
        page = (built / f"{name}.html").read_text()
        title = letters(
            html.unescape(re.sub(r"<a .*?</a>|<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)[1]))
        )
        assert title in found, name
    assert len(reader.pages) > 60 and "Solution to exercise 1" in text
