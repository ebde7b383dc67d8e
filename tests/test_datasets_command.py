"""`glbook data`: fetching over a faulty network, unpacking, checking, packing."""

import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import cub, market1501
from stub_book import ROOT

from gl_core import datasets
from gl_core.datasets import catalogue, download, packed
from gl_core.datasets.store import ImageStore
from gl_core.datasets.unpack import unpack
from glbook.cli import main

CONTENT = bytes(range(256)) * 1000
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server():
    """Serves `content`; each answer ends after the next number of bytes of `cuts`. `ranges`: whether it can go on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked += 1
            start = 0
            if served.ranges and (wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                start = int(wanted[1])
            if start and start >= len(served.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(served.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            rest = served.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: served.cuts.pop(0) if served.cuts else None])

        def log_message(self, *arguments):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{served.server_port}/a.zip"
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def calm(server, monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.content, server.cuts, server.ranges, server.asked = CONTENT, [], True, 0


@given(st.lists(st.integers(0, len(CONTENT)), max_size=4))
def test_a_download_cut_anywhere_goes_on(server, tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("cut") / "a.zip"
    server.cuts = list(cuts)
    download.fetch(server.url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == ["a.zip"]


def test_a_server_that_cannot_go_on_sends_all_again(server, tmp_path):
    server.ranges, server.cuts = False, [1000, 5000]
    download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT and server.asked == 3


def test_a_part_from_another_day_is_used(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_begins_anew(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT + b"more")
    download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_wrong_file_is_put_aside(server, tmp_path):
    server.content = CONTENT[:-1]
    with pytest.raises(ValueError, match=rf"but {CHECKSUM} is expected: .* put aside as {tmp_path}/a.zip.wrong"):
        download.fetch(server.url, tmp_path / "a.zip", CHECKSUM)
    assert os.listdir(tmp_path) == ["a.zip.wrong"]


def test_two_processes_fetch_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    two = [context.Process(target=download.fetch, args=(server.url, tmp_path / "a.zip", CHECKSUM)) for _ in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0] and server.asked == 1
    assert os.listdir(tmp_path) == ["a.zip"] and (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_full_disk_is_one_line(server, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_whole", full)
    assert main(["data", "fetch", "cub", "--root", str(tmp_path)]) == 1
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("glbook:")]
    assert len(line) == 1 and "CUB_200_2011.tgz.part: No space left on device; what arrived is kept" in line[0]


def test_no_permission_is_one_line(tmp_path, monkeypatch, capsys):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data"))

    monkeypatch.setattr("pathlib.Path.mkdir", refused)  # the tests may run as root, who may write anywhere
    assert main(["data", "fetch", "cub", "--root", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"glbook: Permission denied: '{tmp_path}/data'"


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
        ("../out.txt", tarfile.REGTYPE, b"x"),
        ("top/../../out.txt", tarfile.REGTYPE, b"x"),
        ("/out.txt", tarfile.REGTYPE, b"x"),
        ("top/link", tarfile.SYMTYPE, b""),
        ("top/link", tarfile.LNKTYPE, b""),
        ("top/pipe", tarfile.FIFOTYPE, b""),
        ("top/large", tarfile.REGTYPE, b"x" * 2000),
    ],
)
def test_bad_archives_are_refused(tmp_path, member):
    archive = tar(tmp_path / "a.tgz", ("top/good.txt", tarfile.REGTYPE, b"good"), member)
    with pytest.raises(ValueError, match="the archive is refused"):
        unpack(archive, tmp_path / "inside" / "out", 1000)
    assert os.listdir(tmp_path / "inside") == ["out"] and os.listdir(tmp_path / "inside" / "out") == []


def test_bad_zips_are_refused(tmp_path):
    for number, (name, mode) in enumerate([("../out.txt", 0), ("/out.txt", 0), ("C:\\out.txt", 0), ("l", 0o120777)]):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as file:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            file.writestr(member, "x")
        with pytest.raises(ValueError, match="the archive is refused"):
            unpack(path, tmp_path / "out", 1000)
    assert os.listdir(tmp_path / "out") == []


def test_fetch_unpacks_what_can_be_checked(server, tmp_path, monkeypatch, capsys):
    cub(tmp_path / "made")
    with tarfile.open(tmp_path / "cub.tgz", "w:gz") as file:
        file.add(tmp_path / "made" / "CUB_200_2011", "CUB_200_2011")
    server.content, root = (tmp_path / "cub.tgz").read_bytes(), tmp_path / "data"
    entry = catalogue.CATALOGUE["cub"]
    archive = catalogue.Archive(server.url, "cub.tgz", hashlib.md5(server.content).hexdigest())
    counts = {part: (12, 4) for part in ("train", "query", "gallery")}
    small = catalogue.Entry(entry.title, entry.licence, entry.expected, counts, archive)
    monkeypatch.setitem(catalogue.CATALOGUE, "cub", small)
    for _ in range(2):
        assert main(["data", "fetch", "cub", "--root", str(root)]) == 0
    assert server.asked == 1 and sorted(os.listdir(root)) == ["CUB_200_2011", "cub.tgz"]
    assert main(["data", "check", "cub", "--root", str(root)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "cub: whole"


def test_check_names_what_is_wrong(tmp_path, capsys):
    images = sorted((cub(tmp_path) / "CUB_200_2011" / "images").glob("*/Bird*.jpg"))
    for path in images[:11]:
        path.unlink()
    images[20].write_bytes(images[20].read_bytes()[:-100])
    assert main(["data", "check", "cub", "--root", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train         12 images of 4 classes, must be 5,864 of 100"
    assert [line for line in lines if line.startswith("missing")] == [
        *(f"missing: {path}" for path in images[:10]),
        "missing: ... 11 in all",
    ]
    assert [line.startswith(f"unreadable: {images[20]} (") for line in lines].count(True) == 1
    assert lines[-1] == "cub: NOT whole: 11 missing, 1 unreadable, other counts of train, query, gallery"


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
def test_a_pack_holds_what_training_reads(tmp_path, name, build, size, capsys):
    build(tmp_path)
    shape = (24, 24) if size == "24" else (64, 32)
    settings = {"size": shape, "keep_aspect": size == "24"}

    def pixels():
        dataset = datasets.load(name, tmp_path, "test")
        ((images, labels),) = ImageStore(dataset, **settings).batches([list(range(len(dataset)))])
        return dataset, images.numpy(), labels.numpy()

    _, before, labels = pixels()
    assert main(["data", "pack", name, "--root", str(tmp_path), "--size", size]) == 2, "nobody to ask"
    assert main(["data", "pack", name, "--root", str(tmp_path), "--size", size, "--yes"]) == 0
    assert "GB for" in capsys.readouterr().out
    path = tmp_path / f"{name}-{shape[0]}x{shape[1]}.pack"
    packed.verify(path)
    # What is packed is what is read, even if the images are gone.
    for image in tmp_path.glob("*/**/*.jpg"):
        image.write_bytes(b"")
    dataset, after, same = pixels()
    assert np.array_equal(before, after) and np.array_equal(labels, same)
    opened = dataset.packed[shape]
    assert isinstance(opened.array, np.memmap) and len(pickle.dumps(opened)) < 1000
    assert opened.table.equals(datasets.load(name, tmp_path, "all").table)

    content = bytearray(path.read_bytes())
    content[packed.HEADER] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        packed.verify(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="holds .* bytes: write it again"):
        datasets.load(name, tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no pack of images"):
        datasets.load(name, tmp_path)


def test_nothing_is_unpickled():
    for path in [*(ROOT / "gl_core").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        text = path.read_text()
        assert not re.search(r"\bpickle\.loads?\(|allow_pickle=True|weights_only=False|\bread_pickle\(", text), path
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        assert not re.search(r"\.extractall\(|shutil\.unpack_archive", text), path
