"""`glbook data`: fetching over a faulty network, unpacking, checking, packing."""

import dataclasses
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import re
import shutil
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import cub, market1501
from stub_book import ROOT

from gl_core import datasets
from gl_core.datasets import catalogue, download, omniglot, packed
from gl_core.datasets.cache import locked
from gl_core.datasets.store import ImageStore
from gl_core.datasets.unpack import unpack
from glbook.cli import main

CONTENT = bytes(range(256)) * 1000
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server():
    """Serves `content` at every address, or `files` at theirs; each answer ends after the next number of bytes of
    `cuts`. `ranges`: whether it can go on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked += 1
            start, content = 0, served.files.get(self.path) if served.files else served.content
            if content is None:
                self.send_error(404)
                return
            if served.ranges and (wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                start = int(wanted[1])
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: served.cuts.pop(0) if served.cuts else None])

        def log_message(self, *arguments):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.root = f"http://127.0.0.1:{served.server_port}"
    served.url = f"{served.root}/a.zip"
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def calm(server, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.content, server.files, server.cuts, server.ranges, server.asked = CONTENT, {}, [], True, 0


def files_in(folder):
    """But for those that are hidden: lock files stay."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


# Fetching


@settings(max_examples=30)
@given(st.lists(st.integers(0, len(CONTENT)), max_size=4), st.booleans())
def test_a_download_cut_anywhere_goes_on_or_begins_again(server, tmp_path_factory, cuts, ranges):
    path = tmp_path_factory.mktemp("cut") / "new" / "a.zip"
    server.cuts, server.ranges = list(cuts), ranges
    download.fetch(server.url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT and files_in(path.parent) == ["a.zip"]


def test_a_download_is_as_readable_as_any_new_file_and_shows_a_bar(server, tmp_path, capsys):
    (tmp_path / "other").touch()
    for _ in range(2):
        download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert (tmp_path / "a.zip").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert "a.zip: 100%" in capsys.readouterr().err and server.asked == 1


@pytest.mark.parametrize("left", [CONTENT[:1000], CONTENT, CONTENT + b"more"], ids=["some", "all", "too much"])
def test_a_part_from_another_day_is_used(server, tmp_path, left):
    (tmp_path / "a.zip.part").write_bytes(left)
    download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT and files_in(tmp_path) == ["a.zip"]


def test_a_download_that_breaks_off_is_kept_apart(server, tmp_path):
    server.cuts = [100_000, *[0] * download.ATTEMPTS]
    with pytest.raises(ConnectionError, match=f"/a.zip: .*part holds what arrived.* put it at {tmp_path}/a.zip"):
        download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert files_in(tmp_path) == ["a.zip.part"]
    download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert files_in(tmp_path) == ["a.zip"]


def test_another_file_is_refused_and_replaces_nothing(server, tmp_path):
    server.content = CONTENT[:-1]
    (tmp_path / "a.zip").write_text("as it was")
    with pytest.raises(ValueError, match=f"/a.zip: is not the published file; .* put it at {tmp_path}/a.zip"):
        download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert files_in(tmp_path) == ["a.zip"] and (tmp_path / "a.zip").read_text() == "as it was"


def test_a_download_that_is_not_there(server, tmp_path):
    server.files = {"/b.zip": b""}
    for url in (server.url, "http://127.0.0.1:9/a.zip"):
        with pytest.raises(
            ConnectionError, match="could not be downloaded .*, or download .* by other means and put it"
        ):
            download.fetch(url, tmp_path / "a.zip", CHECKSUM)
    assert files_in(tmp_path) == [] and server.asked == 1


def test_two_processes_fetch_once(server, tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as two:
        two.starmap(download.fetch, [(server.url, tmp_path / "a.zip", CHECKSUM)] * 2, chunksize=1)
    assert server.asked == 1
    assert files_in(tmp_path) == ["a.zip"] and (tmp_path / "a.zip").read_bytes() == CONTENT


def test_who_waits_for_a_lock_says_so(tmp_path):
    said = []

    def wait():
        with locked(tmp_path / "lock", waiting=lambda: said.append("waiting")):
            said.append("mine")

    with locked(tmp_path / "lock"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not said:
            time.sleep(0.01)
        assert said == ["waiting"]
    waiter.join()
    assert said == ["waiting", "mine"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download._Download, "_rest", Mock(side_effect=OSError(errno.ENOSPC, "No space")))
    assert main(["data", "fetch", "cub", "--root", str(tmp_path)]) == 1
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("glbook:")]
    assert len(line) == 1
    assert re.search("No space left on device; what arrived is kept: '.*CUB_200_2011.tgz.part'", line[0])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty book, whose downloads go to `data`."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_omniglot_is_downloaded_once(server, project, shared, monkeypatch):
    monkeypatch.setattr(omniglot, "URL", f"{server.root}/python")
    for part in omniglot.SHA256:
        server.files[f"/python/{part}.zip"] = (shared / "data" / "omniglot" / f"{part}.zip").read_bytes()
    assert len(datasets.load("omniglot", split="test")) == 2120
    assert files_in(project / "data" / "omniglot") == sorted(f"{part}.zip" for part in omniglot.SHA256)
    assert len(datasets.load("omniglot")) == 2720 and server.asked == 2


def test_downloads_go_to_the_cache_without_a_book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "__file__", str(tmp_path / "site-packages" / "gl_core" / "datasets" / "download.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert download.downloads_folder() == tmp_path / "cache" / "glbook" / "data"


# Unpacking


def tar(path, *members):
    with tarfile.open(path, "w:gz") as file:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "member",
    [
        ("top/../../out.txt", tarfile.REGTYPE, b"x"),
        ("/out.txt", tarfile.REGTYPE, b"x"),
        ("top/link", tarfile.SYMTYPE, b""),
        ("top/link", tarfile.LNKTYPE, b""),
        ("top/pipe", tarfile.FIFOTYPE, b""),
        ("top/large", tarfile.REGTYPE, b"x" * 2000),
    ],
)
def test_bad_tars_are_refused(tmp_path, member):
    archive = tar(tmp_path / "a.tgz", ("top/good.txt", tarfile.REGTYPE, b"good"), member)
    with pytest.raises(ValueError, match="is refused"):
        unpack(archive, tmp_path / "inside" / "out", 1000)
    assert os.listdir(tmp_path / "inside") == ["out"] and os.listdir(tmp_path / "inside" / "out") == []


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [("../out.txt", 0, 1), ("/out.txt", 0, 1), ("C:\\out.txt", 0, 1), ("l", 0o120777, 1), ("large", 0, 2000)],
)
def test_bad_zips_are_refused(tmp_path, name, mode, size):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        file.writestr(member, "x" * size)
    with pytest.raises(ValueError, match="is refused"):
        unpack(tmp_path / "a.zip", tmp_path / "out", 1000)
    assert os.listdir(tmp_path / "out") == []


def test_what_is_there_already_is_not_replaced(tmp_path):
    archive = tar(tmp_path / "a.tgz", ("new", tarfile.REGTYPE, b"1"), ("top/good.txt", tarfile.REGTYPE, b"2"))
    (tmp_path / "out" / "top").mkdir(parents=True)
    (tmp_path / "out" / "top" / "mine.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match=f"{tmp_path}/out/top: is there already, and in .*a.tgz too: move it away"
    ):
        unpack(archive, tmp_path / "out", 1000)
    assert os.listdir(tmp_path / "out") == ["top"] and os.listdir(tmp_path / "out" / "top") == ["mine.txt"]
    shutil.rmtree(tmp_path / "out" / "top")
    unpack(archive, tmp_path / "out", 1000)
    assert sorted(os.listdir(tmp_path / "out")) == ["new", "top"]


def test_fetch_unpacks_what_can_be_checked(server, tmp_path, monkeypatch, capsys):
    cub(tmp_path / "made")
    with tarfile.open(tmp_path / "cub.tgz", "w:gz") as file:
        file.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    server.content, root = (tmp_path / "cub.tgz").read_bytes(), tmp_path / "data"
    archive = catalogue.Archive(server.url, "cub.tgz", hashlib.md5(server.content).hexdigest())
    counts = dict.fromkeys(("train", "query", "gallery"), (12, 4))
    small = dataclasses.replace(catalogue.CATALOGUE["cub"], counts=counts, archive=archive)
    monkeypatch.setitem(catalogue.CATALOGUE, "cub", small)
    for _ in range(2):
        assert main(["data", "fetch", "cub", "--root", str(root)]) == 0
    assert server.asked == 1 and files_in(root) == ["CUB_200_2011", "cub.tgz"]
    assert main(["data", "check", "cub", "--root", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "cub: whole"


# Checking and packing


def test_check_names_what_is_wrong(tmp_path, capsys):
    images = sorted((cub(tmp_path) / "CUB_200_2011" / "images").glob("*/Bird*.jpg"))
    for path in images[:11]:
        path.unlink()
    images[20].write_bytes(images[20].read_bytes()[:-100])
    (tmp_path / "cub-24x24.pack").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="1 left out"):
        assert main(["data", "check", "cub", "--root", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train         12 images of 4 classes, must be 5,864 of 100"
    assert [line for line in lines if line.startswith("missing")] == [
        *(f"missing: {path}" for path in images[:10]),
        "missing: ... 11 in all",
    ]
    assert [line.startswith(f"unreadable: {images[20]} (") for line in lines].count(True) == 1
    assert lines[-2].startswith("left out: cub-24x24.pack (is not used: ")
    assert lines[-1] == "cub: NOT whole: 11 missing, 1 unreadable, 1 left out, other counts of train, query, gallery"


def test_list_and_steps(tmp_path, capsys):
    assert main(["data", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(catalogue.CATALOGUE)
    assert sorted(catalogue.CATALOGUE) == sorted(datasets.names())
    for name, entry in catalogue.CATALOGUE.items():
        if entry.archive is None:
            assert main(["data", "fetch", name, "--root", str(tmp_path)]) == 0
            out = capsys.readouterr().out
            assert entry.expected in out and str(tmp_path) in out
    assert main(["data", "fetch", "imagenet"]) == 2


@pytest.mark.parametrize(("name", "build", "size"), [("cub", cub, "24"), ("market1501", market1501, "64x32")])
def test_a_pack_holds_what_training_reads(tmp_path, name, build, size, capsys, monkeypatch):
    build(tmp_path)
    shape = (24, 24) if size == "24" else (64, 32)

    def pixels(dataset):
        store = ImageStore(dataset, shape, keep_aspect=size == "24")
        ((images, labels),) = store.batches([list(range(len(dataset)))])
        return images.tolist(), labels.tolist()

    before = pixels(datasets.load(name, tmp_path, "test"))
    assert main(["data", "pack", name, "--root", str(tmp_path), "--size", size]) == 2, "nobody to ask"
    assert main(["data", "pack", name, "--root", str(tmp_path), "--size", size, "--yes"]) == 0
    assert "GB for" in capsys.readouterr().out
    path = tmp_path / f"{name}-{shape[0]}x{shape[1]}.pack"
    packed.verify(path)
    dataset = datasets.load(name, tmp_path, "test")
    opened = dataset.packed[shape]
    assert isinstance(opened.array, np.memmap) and len(pickle.dumps(opened)) < 1000
    monkeypatch.setattr(dataset.images, "open", None)  # what is packed is what is read
    assert pixels(dataset) == before

    content = bytearray(path.read_bytes())
    content[packed.HEADER] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        packed.verify(path)
    for damaged, message in ((content[:-1], "holds .* bytes: write it again"), (b"else", "is no pack of images")):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=message):
            assert not datasets.load(name, tmp_path).packed


def test_a_pack_of_other_images_is_not_used(tmp_path):
    """Images replaced by others of the same names."""
    cub(tmp_path)
    assert main(["data", "pack", "cub", "--root", str(tmp_path), "--size", "24", "--yes"]) == 0
    assert datasets.load("cub", tmp_path, "all").packed
    images = sorted(tmp_path.glob("*/images/*/Bird*.jpg"))
    images[0].write_bytes(images[-1].read_bytes())
    with pytest.warns(UserWarning, match="1 left out: cub-24x24.pack .is not used: it was made from other images"):
        assert not datasets.load("cub", tmp_path, "all").packed


def test_nothing_is_unpickled():
    for path in [*(ROOT / "gl_core").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(r"\bpickle\.loads?\(|allow_pickle=True|weights_only=False|\bread_pickle\(", text), path
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        assert not re.search(r"\.extractall\(|shutil\.unpack_archive", text), path
