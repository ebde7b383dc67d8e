"""Citations in plain words, and what Sphinx is given for them."""

import json

import pytest

from glbook import citations

BIB = r"""
@article{one, author = {Adams, Ann}, title = {First}, journal = {Journal}, volume = {3}, year = {2001}}
@inproceedings{two, author = {van der Berg, Bo and {\'E}tienne, C.}, title = {A {UMAP} of it},
  booktitle = {Conference}, year = {2002}}
@misc{three, author = {Cole, C. and Dorn, D. and Ebel, E.}, title = {Third}, note = {arXiv:2001.01234}, year = {2002}}
"""


@pytest.fixture
def bibliography(tmp_path):
    path = tmp_path / "references.bib"
    path.write_text(BIB)
    return path


@pytest.fixture
def known(bibliography):
    return citations.labels(bibliography)


def test_a_work_is_cited_by_its_authors_and_its_year(known):
    assert known == {"Adams, 2001": "one", "van der Berg and Étienne, 2002": "two", "Cole et al., 2002": "three"}


@pytest.mark.parametrize(
    ("words", "roles"),
    [
        ("as shown [Adams, 2001].", "as shown {cite}`one`."),
        ("[Adams, 2001; van der Berg and Étienne, 2002]", "{cite}`one,two`"),
        ("What Cole et al. [2002] show", "What {cite:t}`three` show"),
        ("See van der Berg and Étienne [2002].", "See {cite:t}`two`."),
        ("a [link, 2001](page.md), [Adams, 2001](x), x[2001]", "a [link, 2001](page.md), [Adams, 2001](x), x[2001]"),
        (
            "## References\n\n- Adams, 2001: ...",
            "## References\n\n```{bibliography}\n:filter: docname in docnames\n```",
        ),
    ],
)
def test_words_become_roles(known, words, roles):
    assert citations.to_roles(words, known) == roles


def test_what_is_cited_is_found_once_and_in_order(known):
    text = "Cole et al. [2002], and [Cole et al., 2002; Adams, 2001]; none are [0, 2001], `f [a, 2001]` and x[2001]."
    assert citations.cited(text, known) == ["one", "three"]


@pytest.mark.parametrize("wrong", ["[Adam, 2001]", "[Adams, 2001; Cole et al., 2003]", "Cole et al. [2003]"])
def test_a_citation_of_nothing_is_noticed(known, wrong):
    with pytest.raises(ValueError, match="looks like a citation"):
        citations.cited(f"As {wrong} shows", known)


def test_two_works_that_would_be_cited_alike_are_refused(tmp_path):
    path = tmp_path / "same.bib"
    path.write_text(BIB + "@book{four, author = {Adams, Bea}, title = {Fourth}, publisher = {P}, year = {2001}}")
    with pytest.raises(ValueError, match=r"one and four would both be cited as \[Adams, 2001\]"):
        citations.labels(path)


def test_the_lists_of_a_book_are_brought_up_to_date(bibliography):
    def cell(kind, text):
        return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}

    prose = "# A\nAfter Cole et al. [2002] and [van der Berg and Étienne, 2002].\n"
    cells = [cell("markdown", prose), cell("code", "x = [1, 2001]")]
    path = bibliography.parent / "a.ipynb"
    path.write_text(json.dumps({"cells": [*cells, cell("markdown", "## References\n\nold")]}))
    (bibliography.parent / "b.ipynb").write_text(json.dumps({"cells": cells}))
    assert citations.write_lists(bibliography.parent) == [path]
    assert "".join(json.loads(path.read_text())["cells"][-1]["source"]) == (
        "## References\n\n"
        "- Cole, Dorn and Ebel, 2002: *Third*. [arXiv:2001.01234](https://arxiv.org/abs/2001.01234).\n"
        "- van der Berg and Étienne, 2002: *A UMAP of it*. Conference."
    )
    assert citations.write_lists(bibliography.parent) == []
