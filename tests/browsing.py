"""A page opened in Chromium, what went wrong on the way, and what every page must pass."""

import re

from glbook import pdf

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


class Visit:
    """A page opened in a window of its own, and all that went wrong on the way."""

    def __init__(
        self, browser, address: str, path: str, viewport: dict, scheme: str = "light", scripts: bool = True
    ) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts)
        self.page, self.faults = self.context.new_page(), []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url}"))
        self.page.on("response", self._response)
        self.page.on("request", lambda request: self._request(request.url, address))
        self.page.goto(f"{address}/{path}", wait_until="networkidle")

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text}")

    def _response(self, response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")

    def _request(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.faults.append(f"another host: {url}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_) -> None:
        self.context.close()


def read(visit: Visit) -> str:
    """The text of a page that is whole: pictures load and are described, formulas are set, markup was understood."""
    page, source = visit.page, visit.page.content()
    page.wait_for_function(pdf.PICTURES_ARE_THERE)
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    silent = page.evaluate("[...document.querySelectorAll('main img')].filter(i => !i.alt.trim()).map(i => i.src)")
    assert (broken, silent) == ([], []), "pictures that do not load, or have no text for those who cannot see them"
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container", state="attached")
        page.wait_for_function(pdf.FORMULAS_ARE_SET)
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    words = re.sub(r"<(pre|code|script|style)\b.*?</\1>|<[^>]+>", "", source, flags=re.DOTALL)
    assert not re.search(r"(?<![\\\w$])\$[^$\n]{1,80}\$", words), "a formula in what a cell displays"
    text = page.locator("article").inner_text()
    assert not re.search(r"\$\$|\\\(|\\begin\{", text), "mathematics that was not rendered"
    markup = re.search(r"\{(?:cite|ref|numref|eq|doc)\}|^:::|^```", text, re.MULTILINE)
    assert not markup, "markup that was not understood"
    assert "papermill" not in text.split("\n")[0] and "# Parameters\n" not in text, "the injected cell is hidden"
    assert "Traceback (most recent call last)" not in text
    assert page.locator("article h1").count() == 1
    assert visit.faults == []
    return text


def fits(visit: Visit) -> None:
    """Nothing is wider than the window, but for what scrolls in a box of its own."""
    if visit.page.locator(".math").count():
        visit.page.wait_for_function(pdf.FORMULAS_ARE_SET)
    wider = """[...document.querySelectorAll('article *')].filter(element => {
        if (element.getBoundingClientRect().right <= innerWidth + 1) return false
        for (let around = element.parentElement; around !== document.body; around = around.parentElement)
            if (getComputedStyle(around).overflowX !== 'visible') return false
        return true
    }).map(element => element.outerHTML.slice(0, 200)).slice(0, 5)"""
    width = visit.page.evaluate("document.scrollingElement.scrollWidth")
    window = visit.page.viewport_size["width"]
    assert width <= window, f"the page is {width} px wide: {visit.page.evaluate(wider)}"
    assert visit.faults == []


def accessible(visit: Visit) -> None:
    """axe finds nothing serious, once the page has come to rest: what fades in has little contrast meanwhile."""
    from axe_playwright_python.sync_playwright import Axe

    still = "*, *::before, *::after { animation: none !important; transition: none !important; }"
    visit.page.add_style_tag(content=still)
    if visit.page.locator(".math").count():
        visit.page.wait_for_function(pdf.FORMULAS_ARE_SET)
    found = Axe().run(visit.page).response["violations"]
    grave = [
        (violation["id"], violation["help"], violation["nodes"][0]["html"][:200])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]
    assert grave == []
