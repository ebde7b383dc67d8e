"""An extension of Sphinx for the book's pages: formulas in docstrings, and lists of references that ARIA accepts."""

import re
from typing import Any

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


def _repair_roles(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """docutils calls the references a list whose entries are no list items."""
    if "body" in context:
        body = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')
        context["body"] = re.sub(r' role="doc-(?:biblioentry|backlink)"', "", body)


def setup(app: Any) -> dict[str, bool]:
    # Before napoleon, which turns sections into fields.
    app.connect("autodoc-process-docstring", _set_formulas, priority=400)
    app.connect("html-page-context", _repair_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
