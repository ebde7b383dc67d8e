"""An extension of Sphinx for the book's pages: citations, formulas in docstrings, HTML as browsers and ARIA want it."""

import json
import re
from pathlib import Path
from typing import Any

from glbook import citations

__all__ = ["setup"]


def _set_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An indented block between blank lines of a docstring is a formula, and set as it stands."""
    written, inside = [], False
    for line in lines:
        indented = line.startswith("    ")
        # The lines of a section such as "Args:" follow its title without a blank line.
        if indented and not inside and written and not written[-1]:
            written += [".. code-block:: text", ""]
            inside = True
        elif line and not indented:
            inside = False
        # In prose a bar is the sign of a length, not of a substitution.
        written.append(line if inside or line.lstrip().startswith(">>>") else line.replace("|", "\\|"))
    lines[:] = written


def _repair_html(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """What docutils writes, as browsers and ARIA want it."""
    if "body" in context:
        # It calls the references a list whose entries are no list items.
        body = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        body = re.sub(r' role="doc-(?:biblioentry|backlink)"', "", body)
        # No line ends within "84.0 ± 0.2", in narrow tables above all.
        context["body"] = re.sub(r"(?<=\d) ± (?=\d)", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}", body)


def _link_citations(app: Any, docname: str, source: list[str]) -> None:
    """Notebooks cite in plain words, so that they read well elsewhere."""
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    known = citations.labels(Path(app.srcdir) / "references.bib")
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = citations.to_roles("".join(cell["source"]), known)
    source[0] = json.dumps(notebook)


def _open_previews_with_text(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The preview of a link shows the first words of a page, which are to be neither the budget nor the links."""
    from docutils import nodes

    # The page itself is rendered by now.
    for paragraph in list(doctree.findall(nodes.paragraph)) if doctree is not None else ():
        if paragraph.astext().startswith(("Budget ·", "Open in Colab ·")):
            paragraph.parent.remove(paragraph)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", _link_citations)
    # Before napoleon, which turns sections into fields.
    app.connect("autodoc-process-docstring", _set_formulas, priority=400)
    app.connect("html-page-context", _repair_html)
    app.connect("html-page-context", _open_previews_with_text, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
