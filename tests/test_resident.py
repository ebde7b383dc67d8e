"""A second search is carried out by a process that is ready, as if it had been started for it; without one nothing is different."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from stub_book import ROOT
from test_gallery import draw
from test_photos import network

from gl_core import checkpoints, gallery, resident

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")


class Searches:
    """Runs `glbook search`; the runtime folder, and with it the process that waits, is this test's own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "run").mkdir()
        self.environment = os.environ | {"XDG_RUNTIME_DIR": str(folder / "run"), "GLBOOK_RESIDENT": "5"}
        self.waiting = None

    def start(self):
        self.waiting = subprocess.Popen([sys.executable, "-m", "gl_core.resident"], cwd=ROOT, env=self.environment)
        for _ in range(600):
            if list((self.folder / "run").rglob("*.socket")):
                return
            time.sleep(0.1)
        raise AssertionError("the process that waits does not come up")

    def begin(self, *arguments, minutes="5", **options):
        line = [sys.executable, "-m", "gl_core", "search", "net", *map(str, arguments)]
        environment = self.environment | {"GLBOOK_RESIDENT": minutes, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            line, cwd=self.folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def __call__(self, *arguments, text="", **options):
        with self.begin(*arguments, **options) as process:
            output, errors = process.communicate(text, timeout=120)
        return process.returncode, output, errors


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A network, an album of eight images, and a process that waits."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    network(tmp_path / "net")
    for i in range(8):
        draw(tmp_path / "album" / f"{i}.png", i)
    search = Searches(tmp_path)
    search.start()
    yield search
    if search.waiting is not None:
        search.waiting.kill()
        search.waiting.wait()


def forks(process):
    """The processes that a process has started and that live."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        return children.read().split()


def test_it_is_the_same_search(search):
    command = ["--gallery", "album", "-k", "3", "album/2.png"]
    alone = search(*command, minutes="0")
    assert alone[0] == 0 and "8 images; 8 new or changed" in alone[2] and len(alone[1].splitlines()) == 5
    began = time.monotonic()
    assert search(*command) == (0, alone[1], "")
    took = time.monotonic() - began

    # The index follows the files, queries come from the input, and bad input has its message and status.
    draw(search.folder / "album" / "8.png", 88)
    status, output, errors = search("--gallery", "album", "-k", "8", "-", text="album/2.png\nnothing.png\n")
    assert status == 0 and "9 images; 1 new or changed, 0 gone" in errors
    assert len(output.splitlines()) == 10 and "  album/8.png\n" in output
    assert "nothing.png: there is no such file" in errors or "nothing.png: the query cannot be read" in errors
    status, output, errors = search("--gallery", "nowhere", "album/2.png")
    assert (status, output, errors) == (2, "", "glbook: nowhere: there is no such folder\n")
    status, _, errors = search(*command, minutes="many")
    assert status == 2 and errors == "glbook: GLBOOK_RESIDENT='many': must be a number of minutes, 0 for none\n"

    # Many at once, each with its own answer.
    several = [search.begin("--gallery", "album", "-k", "1", f"album/{i}.png") for i in range(4)]
    for i, process in enumerate(several):
        with process:
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and output.startswith(f"album/{i}.png\n") and len(output.splitlines()) == 3, (
            errors
        )
    # Nothing of all this took the time of loading PyTorch, which the clients would have done for themselves.
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert took < time.monotonic() - began


def test_who_asked_and_went_is_not_worked_for(search):
    with search.begin("--gallery", "album", "-") as process:
        process.stdin.write("album/1.png\n")
        process.stdin.flush()
        assert process.stdout.readline() == "album/1.png\n"
        assert forks(search.waiting)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "interrupted" in errors
    for _ in range(100):
        if not forks(search.waiting):
            break
        time.sleep(0.1)
    assert not forks(search.waiting) and search.waiting.poll() is None


def test_without_it_the_command_does_it_alone(search):
    command = ["--gallery", "album", "-k", "2", "album/0.png"]
    status, expected, _ = search(*command)
    assert status == 0
    # Killed, it leaves its socket behind, at which nobody answers; the search leaves a new one that waits.
    search.waiting.kill()
    search.waiting.wait()
    search.waiting = None
    assert search(*command) == (0, expected, "")
    for _ in range(300):
        found = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and waits_here(pid, search.folder)]
        if found:
            break
        time.sleep(0.1)
    assert len(found) == 1
    os.kill(found[0], signal.SIGKILL)


def waits_here(pid, folder):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            return b"gl_core.resident" in line.read() and str(folder).encode() in environ.read()
    return False


def test_a_folder_that_others_can_enter_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("GLBOOK_RESIDENT", "5")
    assert resident._socket().parent == tmp_path / f"glbook-{os.getuid()}"
    resident._socket().parent.chmod(0o755)
    assert resident._socket() is None and resident.ask(["search"]) is None
    resident_folder = tmp_path / f"glbook-{os.getuid()}"
    resident_folder.rmdir()
    resident_folder.symlink_to(tmp_path)
    assert resident._socket() is None


def test_other_code_and_other_settings_ask_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    here = resident._socket()
    assert resident._socket() == here
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert resident._socket() != here
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(resident, "PACKAGE", ROOT / "tests")
    assert resident._socket() != here


def test_a_second_search_of_ten_thousand_images_takes_less_than_a_second(search):
    model, card = checkpoints.load(search.folder / "net")
    root, states = search.folder / "large", {}
    root.mkdir()
    for i in range(10_000):
        (root / f"{i:05}.png").touch()
        states[f"{i:05}.png"] = gallery._look(root / f"{i:05}.png").state
    vectors = np.random.default_rng(0).normal(size=(10_000, model.embedding_size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, _ = gallery.index_folder(root, card)
    parts = gallery._Parts(index, model.embedding_size)
    parts.add(list(states), vectors, {}, states, dict.fromkeys(states, ""))
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        status, output, errors = search("--gallery", root, "-k", "5", "album/3.png")
        seconds.append(time.monotonic() - began)
        assert status == 0 and len(output.splitlines()) == 7 and errors == ""
    print(f"seconds: {', '.join(f'{second:.2f}' for second in seconds)}")
    assert min(seconds) < 1
