"""Chapters as programs: what they accept, how they are executed, what is left behind."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from stub_book import PARAMETERS, ROOT, chapter_of, make_book

from glbook import begin, chapters, notebooks

# An environment in which nobody has activated anything but this Python's folder of commands.
ENVIRONMENT = os.environ | {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}


@pytest.fixture
def book(tmp_path, monkeypatch):
    root = make_book(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def stream(notebook) -> str:
    """What a notebook printed on standard output."""
    outputs = (output for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", []))
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_a_chapter_is_found_by_name(book):
    assert chapters.names() == ["training"]
    assert chapters.find("training") == book / "book" / "training.ipynb"
    with pytest.raises(ValueError, match=r"chapter='trainnig': must be one of training; did you mean 'training'\?"):
        chapters.find("trainnig")
    with pytest.raises(ValueError, match=r"chapter='\.\./training'"):
        chapters.find("../training")


def test_a_chapter_begins_in_the_folder_of_a_book_or_says_so(book, tmp_path, monkeypatch):
    """Installed apart from the book, the library does not know where it is."""
    begin()
    monkeypatch.setattr("gl_core.training.records.project_root", lambda: tmp_path)
    with pytest.raises(ValueError, match="is not in the book's folder; go there, or give papermill --cwd FOLDER"):
        begin()


def execute(source: str, given: dict, output, **options):
    """Execute a chapter that is nothing but this code below the parameters."""
    nbformat.write(chapter_of([PARAMETERS, source]), "book/training.ipynb")
    return notebooks.execute("training", given, output, progress=False, **options)


def test_execution_leaves_a_notebook_with_the_injected_cell_hidden(book, monkeypatch):
    # A kernel of the same name elsewhere must not be taken for this Python.
    shadow = book / "shadow" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "No", "language": "python"}))
    output = book / "odd {folder}" / "done.ipynb"
    source = "import os, sys; print(epochs, sys.executable, os.environ['GLBOOK_RUN'], os.getcwd(), sep='|')"
    monkeypatch.setenv("JUPYTER_PATH", str(book / "shadow"))
    assert execute(source, {"epochs": 7}, output, session="abc", stamp={"key": "k"}) == output
    assert stream(output).strip().split("|") == ["7", sys.executable, "abc", str(book)]
    injected = [cell for cell in nbformat.read(output, 4).cells if "injected-parameters" in cell.metadata.tags]
    assert len(injected) == 1 and "remove-cell" in injected[0].metadata.tags
    assert nbformat.read(output, 4).metadata["glbook"] == {"key": "k"}
    assert [path.name for path in output.parent.iterdir()] == ["done.ipynb"]


def test_a_failing_chapter_keeps_its_traceback_and_no_stamp(book):
    output = book / "failed.ipynb"
    with pytest.raises(notebooks.ChapterError) as caught:
        execute("print('before')\nraise KeyError('the reason')", {}, output, stamp={"key": "k"})
    assert (caught.value.ename, caught.value.evalue, caught.value.path) == ("KeyError", "'the reason'", output)
    assert stream(output) == "before\n" and "KeyError" in output.read_text()
    assert "glbook" not in nbformat.read(output, 4).metadata


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure_that_says_so(book):
    output = book / "died.ipynb"
    with pytest.raises(notebooks.ChapterError, match="DeadKernelError: .*enough memory"):
        execute("import os; os._exit(1)", {}, output)
    assert output.is_file()


def build() -> subprocess.CompletedProcess:
    """Build the book by its command."""
    return subprocess.run([sys.executable, "-m", "glbook", "book"], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_only_what_has_changed_is_built_again(book):
    def state() -> dict:
        return {path: path.stat().st_mtime_ns for path in (book / "_build").rglob("*") if path.is_file()}

    notebook = book / "book" / "training.ipynb"
    nbformat.write(chapter_of([PARAMETERS, "print(profile * 2)"]), notebook)
    sources = {path: path.read_bytes() for path in (book / "book").rglob("*.*")}
    done = build()
    assert done.returncode == 0 and "making pages" in done.stderr, done.stderr
    first, page = state(), book / "_build" / "html" / "training.html"
    assert "quickquick" in page.read_text() and "# Parameters" not in page.read_text()
    assert {path: path.read_bytes() for path in (book / "book").rglob("*.*")} == sources

    log = build().stderr
    assert state() == first and "training: unchanged" in log and "making pages" not in log

    # Prose alone: new pages with the outputs that were there.
    notebook.write_text(notebook.read_text().replace("# A chapter", "# A better chapter"))
    (book / "book" / "intro.md").write_text("# Introduction\n\nAnother text.\n")
    (book / "_build" / "book" / ".123-training.ipynb").write_text("left by a build that was killed")
    log = build().stderr
    assert "training: unchanged" in log and "making pages" in log
    assert "A better chapter" in page.read_text() and "quickquick" in page.read_text()
    assert "Another text" in (book / "_build" / "html" / "intro.html").read_text()

    nbformat.write(chapter_of([PARAMETERS, "print(profile * 3)"]), notebook)
    (book / "book" / "intro.md").write_text("# Introduction\n\nA broken {ref}`link`.\n")
    done = build()
    assert done.returncode == 1 and "undefined label" in done.stderr
    assert done.stderr.splitlines()[-1] == "glbook: the pages could not be made without warnings; they are listed above"
    assert "quickquickquick" in (book / "_build" / "book" / "training.ipynb").read_text()
    assert "Another text" in (book / "_build" / "html" / "intro.html").read_text(), "the last good pages stay"


@pytest.mark.slow
def test_two_builds_at_once_wait_for_each_other(book):
    nbformat.write(chapter_of([PARAMETERS, "import time; time.sleep(3)"]), book / "book" / "training.ipynb")
    command = {"args": [sys.executable, "-m", "glbook", "book"], "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(**command) as first, subprocess.Popen(**command) as second:
        said = [process.communicate(timeout=300)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    waiting = [log for log in said if "this one waits for it" in log]
    assert len(waiting) == 1 and "training: unchanged" in waiting[0]
    assert (book / "_build" / "html" / "training.html").is_file()


@pytest.mark.slow
def test_a_failing_chapter_ends_the_build_in_one_line(book):
    nbformat.write(chapter_of([PARAMETERS, "{}['key']"]), book / "book" / "training.ipynb")
    done = build()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.match("glbook: training: KeyError: 'key' .executed notebook", done.stderr.splitlines()[-1])


def code_of_the_page(language: str, holding: str) -> str:
    page = (ROOT / "book" / "cluster.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if holding in block)
    return block


# By hand: a kernel that needs not load torch starts in a second.
RECORD = """
import json, pathlib, uuid
name = f"{seed}-{temperature}-{uuid.uuid4()}"
made = {"run_id": name, "created": "2026-01-01T00:00:00+00:00", "metrics": {"R@1": 0.5}, "seed": seed}
folder = pathlib.Path("_build/results")
folder.mkdir(parents=True, exist_ok=True)
(folder / f"{name}.json").write_text(json.dumps(made | {"config": {"temperature": temperature}}))
"""


@pytest.mark.slow
def test_the_loops_of_the_page_on_runs_work(book):
    """On a chapter that only writes a record, but with the page's very words."""
    nbformat.write(chapter_of([PARAMETERS, RECORD]), book / "book" / "training.ipynb")
    run = {"check": True, "timeout": 300, "capture_output": True, "text": True, "env": ENVIRONMENT}
    subprocess.run(["sh", "-euc", code_of_the_page("sh", "papermill book/training.ipynb")], **run)
    made = [json.loads(path.read_text()) for path in (book / "_build" / "results").glob("*.json")]
    assert sorted(record["seed"] for record in made) == [0, 1, 2]

    done = subprocess.run([sys.executable, "-c", code_of_the_page("python", "papermill.execute_notebook")], **run)
    made = [json.loads(path.read_text()) for path in (book / "_build" / "results").glob("*.json")]
    assert sorted(record["config"]["temperature"] for record in made if record["config"]["temperature"]) == [5, 10, 20]
    assert re.search(r"^20\.0 +0\.5 +NaN +1$", done.stdout, re.MULTILINE)
