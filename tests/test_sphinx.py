"""Docstrings and references on the pages."""

from glbook.sphinx_extension import _repair_html, _set_formulas


def processed(docstring: str) -> list[str]:
    lines = docstring.splitlines()
    _set_formulas(None, "function", "f", None, None, lines)
    return lines


def test_an_indented_block_is_a_formula():
    assert processed("Length.\n\n    s = |q|\n\n    t = s\n\nOf |q|.") == [
        *("Length.", "", ".. code-block:: text", "", "    s = |q|", "", "    t = s", "", "Of \\|q\\|."),
    ]


def test_sections_and_examples_stay_as_they_are():
    docstring = "Adds.\n\nArgs:\n    a: one.\n        More of it.\n    b: two.\n\n>>> a | b\n3"
    assert processed(docstring) == docstring.splitlines()


def test_references_are_no_list_without_items_and_no_line_ends_between_a_mean_and_its_spread():
    context = {"body": '<div role="list" class="citation-list"><div role="doc-biblioentry">84.0 ± 0.2</div></div>" ± "'}
    _repair_html(None, "page", "page.html", context, None)
    assert context["body"] == '<div class="citation-list"><div>84.0\xa0±\xa00.2</div></div>" ± "'
