"""Chapters as programs: what they accept, how they are executed, what is left behind."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from stub_book import PARAMETERS, ROOT, chapter_of, make_book

from glbook import notebooks

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
    assert notebooks.names() == ["training"]
    assert notebooks.find("training") == book / "book" / "training.ipynb"
    with pytest.raises(ValueError, match=r"chapter='trainnig': must be one of training; did you mean 'training'\?"):
        notebooks.find("trainnig")
    with pytest.raises(ValueError, match=r"chapter='\.\./training'"):
        notebooks.find("../training")


def test_parameters_are_read_with_type_and_default(book):
    found = notebooks.parameters("training")
    assert list(found) == re.findall(r"^(\w+):", PARAMETERS, re.MULTILINE)
    assert found["profile"] == notebooks.Parameter("profile", str, "quick")
    assert found["epochs"].type is int and not found["epochs"].optional
    assert found["data_root"].optional


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("30", "epochs", 30),
        ("1e-3", "learning_rate", 1e-3),
        ("2", "learning_rate", 2),
        ("none", "learning_rate", None),
        ("null", "data_root", None),
        ("none", "data_root", None),
        ("2011", "data_root", "2011"),
        ("1e3", "data_root", "1e3"),
        ("true", "train", True),
        ("many", "epochs", "many"),
    ],
)
def test_values_of_the_command_line(book, text, name, value):
    parsed = notebooks.parse_value(text, notebooks.parameters("training")[name])
    assert parsed == value and type(parsed) is type(value)


def test_no_augmentation_is_a_word_not_what_suits():
    augmentation = notebooks.Parameter("augmentation", str, None)
    assert notebooks.parse_value("none", augmentation) == "none"
    assert notebooks.parse_value("null", augmentation) is None


def test_values_without_a_declared_type():
    anything = notebooks.Parameter("values", notebooks._type("Sequence[int]"), ())
    assert notebooks.parse_value("[1, 2]", anything) == [1, 2]
    assert notebooks.parse_value("[1, 2", anything) == "[1, 2"
    listed = notebooks.Parameter("values", notebooks._type("list[int] | None"), None)
    assert notebooks._typed(listed, [1]) == [1] and notebooks._typed(listed, None) is None
    with pytest.raises(ValueError, match="values='a': must be list or None, not str"):
        notebooks._typed(listed, "a")


def test_good_parameters_pass_and_whole_numbers_may_stand_for_floats(book):
    checked = notebooks.check_parameters("training", {"epochs": 3, "temperature": 7, "data_root": None})
    assert checked == {"epochs": 3, "temperature": 7.0, "data_root": None}
    assert type(checked["temperature"]) is float


@pytest.mark.parametrize(
    "given, message",
    [
        ({"epoch": 3}, r"epoch: chapter 'training' has no such parameter; it has profile, .*; did you mean 'epochs'\?"),
        ({"epochs": "many"}, "epochs='many': must be int, not str"),
        ({"epochs": 2.5}, "epochs=2.5: must be int, not float"),
        ({"epochs": True}, "epochs=True: must be int, not bool"),
        ({"epochs": None}, "epochs=None: must be int, not NoneType"),
        ({"learning_rate": "fast"}, "learning_rate='fast': must be float or None, not str"),
        ({"epochs": -1}, "epochs=-1: must be a whole number, 0 or more"),
        ({"temperature": 0}, "temperature=0.0: must be above 0"),
        ({"dataset": "imagenet"}, "dataset='imagenet': must be one of .*glyphs"),
        ({"method": "tripled"}, "method='tripled': must be one of group_loss, cross_entropy"),
        ({"profile": "slow"}, "profile='slow': must be one of quick, full"),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(book, given, message):
    with pytest.raises(ValueError, match=message):
        notebooks.check_parameters("training", given)


def execute(source: str, given: dict, output, **options):
    """Execute a chapter that is nothing but this code below the parameters."""
    nbformat.write(chapter_of([PARAMETERS, source]), "book/training.ipynb")
    return notebooks.execute("training", given, output, progress=False, **options)


def test_execution_leaves_a_notebook_with_the_injected_cell_hidden(book):
    # A kernel of the same name elsewhere must not be taken for this Python.
    shadow = book / "shadow" / "kernels" / "python3"
    shadow.mkdir(parents=True)
    (shadow / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "No", "language": "python"}))
    output = book / "odd {folder}" / "done.ipynb"
    source = "import os, sys; print(epochs, sys.executable, os.environ['GLBOOK_RUN'], os.getcwd(), sep='|')"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(book / "shadow"))
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
    assert "before" in stream(output)
    assert "KeyError" in output.read_text()
    assert "glbook" not in nbformat.read(output, 4).metadata


def test_a_kernel_that_dies_is_a_failure_that_says_so(book):
    output = book / "died.ipynb"
    with pytest.raises(notebooks.ChapterError, match="DeadKernelError: .*enough memory"):
        execute("import os; os._exit(1)", {}, output)
    assert output.is_file()


def test_only_what_has_changed_is_built_again(book):
    def build() -> tuple[str, dict]:
        done = subprocess.run([sys.executable, "-m", "glbook", "book"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr, {path: path.stat().st_mtime_ns for path in (book / "_build").rglob("*") if path.is_file()}

    notebook = book / "book" / "training.ipynb"
    nbformat.write(chapter_of([PARAMETERS, "print(profile * 2)"]), notebook)
    sources = {path: path.read_bytes() for path in (book / "book").rglob("*.*")}
    log, first = build()
    assert "making pages" in log
    page = (book / "_build" / "html" / "training.html").read_text()
    assert "quickquick" in page and "# Parameters" not in page
    assert {path: path.read_bytes() for path in (book / "book").rglob("*.*")} == sources

    log, second = build()
    assert second == first and "training: unchanged" in log and "making pages" not in log

    (book / "book" / "intro.md").write_text("# Introduction\n\nAnother text.\n")
    (book / "_build" / "book" / ".123-training.ipynb").write_text("left by a build that was killed")
    log, third = build()
    assert "training: unchanged" in log and "making pages" in log
    assert "Another text" in (book / "_build" / "html" / "intro.html").read_text()

    nbformat.write(chapter_of([PARAMETERS, "print(profile * 3)"]), notebook)
    (book / "book" / "intro.md").unlink()
    (book / "book" / "intro.md").write_text("# Introduction\n\nA broken {ref}`link`.\n")
    done = subprocess.run([sys.executable, "-m", "glbook", "book"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "undefined label" in done.stderr
    assert done.stderr.splitlines()[-1] == "glbook: the pages could not be made without warnings; they are listed above"
    assert "quickquickquick" in (book / "_build" / "book" / "training.ipynb").read_text()
    assert "Another text" in (book / "_build" / "html" / "intro.html").read_text(), "the last good pages stay"


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
