"""The command `glbook` as a user meets it: what it prints, how it ends, and what a failure leaves behind."""

import contextlib
import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from stub_book import GLBOOK, make_book, make_images

from gl_core.training import checkpoints
from glbook import cli

TRAIN = ["run", "training", "-p", "dataset", "folder", "-p", "device", "cpu", "-p", "data_root"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture
def book(tmp_path):
    return make_book(tmp_path / "project", ("task", "training"))


def glbook(book, *arguments, **options) -> subprocess.CompletedProcess:
    options = {"cwd": book, "capture_output": True, "text": True, "timeout": 300} | options
    return subprocess.run([GLBOOK, *map(str, arguments)], **options)


def left_behind(book) -> set[str]:
    """Files that a command added to the book, hidden ones included."""
    return {path.relative_to(book).as_posix() for path in (book / "_build").rglob("*") if path.is_file()}


def test_the_command_answers_at_once():
    """That is, without loading torch, which takes seconds on a busy machine."""
    code = "import sys; from glbook import cli; print(sorted({'torch', 'pandas', 'papermill'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_version(capsys):
    for arguments, text in [(["--help"], "run"), (["run", "--help"], "--keep"), (["--version"], "glbook 0.")]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0 and text in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_prints_metrics_and_where_notebook_and_record_are(book, images):
    """Started below the project, with a path seen from there, and of two runs at once each finds its own record."""
    below = book / "book"
    root = os.path.relpath(images, below)
    command = [GLBOOK, *TRAIN, root, "-p", "temperature", "7", "--output", "../runs of today", "-p", "seed"]
    options = {"cwd": below, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "1"], **options) as first, subprocess.Popen([*command, "2"], **options) as second:
        outputs = [process.communicate(timeout=300) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    for seed, (output, errors) in enumerate(outputs, 1):
        (path,) = re.findall(r"^record:   (.*)$", output, re.MULTILINE)
        record = json.loads((below / path).read_text())
        assert record["seed"] == seed and record["config"]["temperature"] == 7 and record["chapter"] == "training"
        (notebook,) = re.findall(r"^notebook: (.*)$", output, re.MULTILINE)
        assert (below / notebook).is_file() and (below / notebook).resolve().parent == book / "runs of today"
        assert record["session"] == (below / notebook).stem
        assert f"{record['metrics']['R@1']:.3f}" in output and f"{record['metrics']['MAP@R']:.3f}" in output
        assert "100%" in errors
        (network,) = re.findall(r"^network:  (.*)$", output, re.MULTILINE)
        assert checkpoints.read_card(below / network)["run_id"] == record["run_id"]
    assert not (book / "data").exists()

    listed = glbook(book, "results", "--dataset", "folder")
    assert len(listed.stdout.splitlines()) == 3 and "trial" in listed.stdout
    table = list(csv.DictReader(io.StringIO(glbook(book, "results", "--format", "csv").stdout)))
    assert sorted(row["seed"] for row in table) == ["1", "2"]
    assert {row["config.temperature"] for row in table} == {"7.0"}
    assert glbook(book, "results", "--method", "cross_entropy").stdout == "no records\n"


@pytest.mark.slow
def test_kept_runs_go_to_the_tracked_folder(book, images):
    done = glbook(book, *TRAIN, images, "--keep", "tuning", "-p", "epochs", "0")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^record:   data/results/.*\.json$", done.stdout, re.MULTILINE)
    assert "tuning" in glbook(book, "results", "--root", "data/results").stdout


RUN = ["run", "training", "-p"]
BAD = {
    "an unknown command": (["trian"], r"invalid choice: 'trian'"),
    "an unknown chapter": (["run", "trainnig"], r"'trainnig': must be one of task, training; did you mean 'training'"),
    "an unknown parameter": ([*RUN, "epoch", "3"], r"epoch: chapter 'training' has no such parameter"),
    "a parameter given twice": ([*RUN, "seed", "1", "-p", "seed", "2"], r"-p seed: is given twice"),
    "a value out of range": ([*RUN, "temperature", "-1"], r"temperature=-1(\.0)?: must be a number above 0"),
    "data that are not there": ([*TRAIN, "nowhere"], r"root=nowhere: nothing is there"),
    "an empty folder": ([*TRAIN, "empty"], r"empty.*"),
    "no data at all": ([*RUN, "dataset", "folder"], r"data_root"),
    "a GPU that is not there": ([*RUN, "device", "cuda:99"], r"device='cuda:99': there is no such device"),
    "records that are not there": (["results", "--root", "nowhere"], r"--root nowhere: there is no such folder"),
    "an empty folder's name": (["results", "--root", ""], r"argument --root: must not be empty"),
    "a book that is not built": (["serve"], r"_build/html: there is no book yet"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_bad_input_gives_one_line_and_leaves_nothing(book, monkeypatch, capfd, arguments, message):
    """In this process, which has torch loaded; the same through the real command is the next test."""
    (book / "empty").mkdir()
    monkeypatch.chdir(book)
    try:
        status = cli.main(arguments)
    except SystemExit as ended:
        status = ended.code
    output, errors = capfd.readouterr()
    assert status == 2 and output == ""
    assert len(errors.splitlines()) == 1 and errors.startswith("glbook: ") and re.search(message, errors)
    assert left_behind(book) == set()


@pytest.mark.slow
def test_bad_input_to_the_real_command(book):
    done = glbook(book, "run", "training", "-p", "epochs", "many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "glbook: epochs='many': must be a whole number\n"


FULL = "import errno, os\ndef full(*_): raise OSError(errno.ENOSPC, 'No space left on device')\nos.link = full"
FAULTS = {
    "fewer classes than a batch asks for": (["-p", "classes_per_batch", "50"], r"classes_per_batch=50"),
    "a full disk": (["-p", "before", FULL], r"training: the record could not be written \(No space left on device\)"),
    "an error that nobody foresaw": (["-p", "before", "{}['key']"], r"training: KeyError: 'key'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_in_a_chapter_is_one_line_and_a_traceback_in_the_notebook(book, tmp_path, fault):
    arguments, message = FAULTS[fault]
    done = glbook(book, *TRAIN, make_images(tmp_path / "set"), *arguments)
    last = done.stderr.splitlines()[-1]
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr + done.stdout and done.stdout == ""
    assert last.startswith("glbook: ") and re.search(message, last), last
    assert len([line for line in done.stderr.splitlines() if line.startswith("glbook: ")]) == 1
    left = {path for path in left_behind(book) if not path.startswith("_build/checkpoints/")}
    if done.returncode == 1:
        (path,) = re.findall(r"\(executed notebook with the traceback: (.*)\)$", last)
        assert left == {os.path.relpath(book / path, book)} and "Traceback" in (book / path).read_text()
    else:
        assert left == set()


@pytest.mark.slow
def test_one_broken_photo_and_a_lone_one_are_left_out_and_named(book, tmp_path):
    folder = make_images(tmp_path / "set", classes=5)
    (folder / "class0" / "2.png").write_bytes(b"this is no image")
    for image in sorted((folder / "class1").iterdir())[1:]:
        image.unlink()
    done = glbook(book, *TRAIN, folder)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("glbook: "))
    assert "2 left out" in line and "class0/2.png" in line and "class1/0.png" in line


def interrupted(book, arguments, begun) -> tuple[str, str]:
    """What a command says that hears Ctrl-C when `begun()` is true."""
    with subprocess.Popen(
        [GLBOOK, *arguments], cwd=book, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 240
        while not begun():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    return output, errors.splitlines()[-1]


@pytest.mark.slow
def test_an_interrupted_training_says_so_and_goes_on(book, images):
    command = [*TRAIN, images, "-p", "epochs", "100"]
    said = interrupted(book, command, lambda: list((book / "_build" / "checkpoints").glob("*/final.pt")))
    assert said == ("", "glbook: interrupted; the same command goes on after the last finished epoch")
    assert {path.split("/")[1] for path in left_behind(book)} == {"checkpoints"}, "no notebook and no record"

    done = glbook(book, *command)
    assert done.returncode == 0, done.stderr
    first = re.search(r"\| (\d+)/\d+ \[[^]]*batch", done.stderr)
    assert int(first[1]) > 0, "the second command begins where the first stopped"
    (path,) = re.findall(r"^record:   (.*)$", done.stdout, re.MULTILINE)
    assert len(json.loads((book / path).read_text())["history"]) == 100


@pytest.mark.slow
def test_the_interrupted_kernel_is_gone(book):
    """A chapter that would sleep for an hour does not outlive the command."""
    sleep = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(3600)"
    pid = book / "pid"
    interrupted(book, [*RUN, "before", sleep], lambda: pid.is_file() and pid.read_text())
    kernel = int(pid.read_text())
    for _ in range(100):
        try:
            os.kill(kernel, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the kernel still runs")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(book):
    done = subprocess.run(f"'{GLBOOK}' results | true", shell=True, cwd=book, capture_output=True, text=True)
    assert done.stderr == ""


def test_the_built_book_is_served(book):
    html = book / "_build" / "html"
    html.mkdir(parents=True)
    (html / "index.html").write_text("the first page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    shown = []

    def served() -> bool:
        with contextlib.suppress(urllib.error.URLError):
            shown.append(urllib.request.urlopen(address, timeout=10).read())
        return bool(shown)

    output, last = interrupted(book, ["serve", "--port", str(port)], served)
    assert shown == [b"the first page"] and f"http://localhost:{port}" in output and last == "glbook: ended"
