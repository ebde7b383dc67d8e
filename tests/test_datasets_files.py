"""Image files wherever they lie: every kind of store and of pixels, what is left out and said to be, versions of
data."""

import errno
import io
import os
import pickle
import re
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_trees import grey_values, png, tree, write, write_tar, write_zip
from PIL import Image
from torch.utils.data import DataLoader

from gl_core import _files, datasets
from gl_core.datasets import cache, decoding, version
from gl_core.datasets.base import RetrievalDataset
from gl_core.datasets.version import data_version


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """An empty cache of the user."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(params=["folder", "tar", "tar.gz", "tar.xz", "zip"])
def stored(request, tmp_path):
    """A function that stores named files as a folder or an archive and returns its path."""

    def store(files: dict[str, bytes]) -> Path:
        if request.param == "folder":
            return write(tmp_path / "stored", files)
        path = tmp_path / f"stored.{request.param}"
        if request.param == "zip":
            return write_zip(path, files)
        return write_tar(path, files, "w" + request.param.removeprefix("tar").replace(".", ":"))

    return store


def load(root, split="all", **options) -> RetrievalDataset:
    return datasets.load("folder", root, split, **options)


def load_warned(root, message: str) -> RetrievalDataset:
    with pytest.warns(UserWarning, match=message) as caught:
        dataset = load(root)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    return dataset


# Stores


def test_every_store_is_read_by_threads_and_forked_workers(stored):
    files = {f"c{c}/{i}.png": png(10 * c + i, size=(64, 64)) for c in range(6) for i in range(20)}
    d = load(stored(files))
    assert d.table.path.tolist() == sorted(files)
    expected = [int(10 * c + i) for c in range(6) for i in sorted(range(20), key=str)]
    copy = pickle.loads(pickle.dumps(d))
    assert grey_values(d) == grey_values(copy) == expected
    assert copy.table.equals(d.table) and copy.class_names == d.class_names
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: d[i][0].getpixel((0, 0))[0], range(len(d)))) == expected
    loader = DataLoader(d, batch_size=10, num_workers=2, collate_fn=grey_values, multiprocessing_context="fork")
    assert [value for batch in loader for value in batch] == expected


def test_a_wrapping_folder_and_clutter_are_passed_over(stored):
    files = {f"my cars/c{c}/{i}.png": png(10 * c + i) for c in range(4) for i in range(2)}
    clutter = ("my cars/README.txt", "my cars/c0/._0.png", "my cars/.cache/0.png", "__MACOSX/my cars/c0/0.png")
    d = load(stored(files | dict.fromkeys(clutter, b"")))
    assert d.table.path.tolist() == sorted(files) and d.class_names == ["c0", "c1", "c2", "c3"] and not d.left_out


def test_odd_members_of_archives_are_left_out(tmp_path):
    odd = {"../c0/outside.png": png(), "/c0/absolute.png": png()}
    tar, packed = write_tar(tmp_path / "a.tar", tree(4) | odd), write_zip(tmp_path / "a.zip", tree(4) | odd)
    links = {f"c0/link{kind.decode()}.png" for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)}
    with tarfile.open(tar, "a") as archive:
        for name in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = name[7].encode(), "/etc/passwd"
            archive.addfile(member)
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("c0/link2.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    for path, left_out in ((tar, {*odd, *links}), (packed, {*odd, "c0/link2.png"})):
        d = load_warned(
            path, f"^{path}: {len(left_out)} left out: ../c0/outside.png .its name leads out of the archive"
        )
        assert d.table.path.tolist() == sorted(tree(4)) and set(d.left_out) == left_out


def test_members_of_a_tar_that_come_later_or_are_hard_links(tmp_path):
    path = write_tar(tmp_path / "a.tar", tree(classes=2, images=2))
    write_tar(path, {"c1/0.png": png(77)}, "a")
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("c0/linked.png")
        member.type, member.linkname = tarfile.LNKTYPE, "c1/1.png"
        archive.addfile(member)
    assert grey_values(load(path)) == [0, 1, 11, 77, 11]


def test_linked_folders_are_followed_and_looked_at_once(tmp_path):
    six = write(tmp_path / "six", tree())
    (tmp_path / "linked").mkdir()
    for c in range(4):
        (tmp_path / "linked" / f"d{c}").symlink_to(six / f"c{c}")
    assert load(tmp_path / "linked").class_names == ["d0", "d1", "d2", "d3"]
    (six / "c0" / "up").symlink_to(six)
    (six / "a").symlink_to(six / "c0")
    assert load(six).table.path.tolist() == sorted(tree())


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_that_is_cut_off(kind, tmp_path):
    noise = {f"c{c}/{i}.png": np.random.default_rng(c).bytes(40_000) for c in range(3) for i in range(2)}
    whole = tmp_path / f"whole.{kind}"
    write_zip(whole, noise) if kind == "zip" else write_tar(whole, noise, "w" + kind[3:].replace(".", ":"))
    content = whole.read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=rf"cut\.{kind}: (the archive is damaged or cut off|must be a folder, a tar or a zip)"
    ):
        load(tmp_path / f"cut.{kind}")


# Pixels


def saved(image: Image.Image, kind: str, **options) -> Image.Image:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return decoding.open_image(content.getvalue())


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16B"), ("TIFF", "I")])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_integers_are_brought_to_eight_bits(kind, mode, bits):
    white = 2**bits - 1
    values = np.array([0, round(77 * white / 255), round(78 * white / 255), white])
    dtype = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (4, 1), values.astype(dtype).tobytes())
    assert np.asarray(saved(image, kind))[0, :, 0].tolist() == [0, 77, 78, 255]


def test_pixels_without_an_agreed_range_are_refused():
    with pytest.raises(ValueError, match=r"pixels from 0 to 70000: must lie in 0\.\.65535"):
        saved(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF")
    with pytest.raises(ValueError, match="pixels are floats"):
        saved(Image.new("F", (2, 2), 0.5), "TIFF")


PALETTE = Image.new("P", (2, 1))
PALETTE.putpalette([10, 20, 30, 40, 50, 60])
PALETTE.putpixel((1, 0), 1)
WHITE, RED = (255, 255, 255), (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected"),
    [
        (Image.new("L", (2, 2), 77), "PNG", {}, (77, 77, 77)),
        (Image.new("1", (2, 2), 1), "PNG", {}, WHITE),
        (Image.new("RGBA", (2, 2), (200, 0, 0, 0)), "PNG", {}, WHITE),
        (Image.new("RGBA", (2, 2), (200, 0, 0, 128)), "PNG", {}, (227, 127, 127)),
        (Image.new("LA", (2, 2), (10, 0)), "PNG", {}, WHITE),
        (Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, WHITE),
        (PALETTE, "GIF", {}, (40, 50, 60)),
        (PALETTE, "GIF", {"transparency": 1}, WHITE),
        (PALETTE, "PNG", {"transparency": bytes([255, 0])}, WHITE),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", {"quality": 95}, RED),
        (Image.new("YCbCr", (8, 8), (76, 85, 255)), "JPEG", {"quality": 95}, RED),
    ],
)
def test_colours_and_transparency(image, kind, options, expected):
    found = saved(image, kind, **options)
    assert np.allclose(found.getpixel((found.width - 1, 0)), expected, atol=2)


def test_photographs_are_turned_upright():
    image, exif = Image.new("RGB", (8, 16), "black"), Image.Exif()
    exif[0x0112] = 6
    assert saved(image, "JPEG", exif=exif).size == (16, 8) and saved(image, "JPEG").size == (8, 16)


@pytest.mark.parametrize(("suffix", "kind"), [("jfif", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("tif", "TIFF")])
def test_formats_that_are_read(tmp_path, suffix, kind):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / name / f"{i}.{suffix}", kind)
    assert np.allclose(load(tmp_path)[3][0].getpixel((9, 9)), (200, 100, 50), atol=4)


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow has Ghostscript draw what is PostScript inside, whatever its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    d = load_warned(write(tmp_path / "x", tree(2) | {"c0/eps.jpg": eps}), "eps.jpg .the image cannot be read")
    assert list(d.left_out) == ["c0/eps.jpg"] and not (tmp_path / "started").exists()


# What is left out


@pytest.mark.parametrize(
    "content", [b"no image", png()[:40], png(size=(40, 40))[:-20]], ids=["text", "header", "pixels"]
)
def test_a_broken_image_is_left_out_and_named(stored, content):
    root = stored(tree(2) | {"c0/broken.png": content})
    d = load_warned(root, f"^{root}: 1 left out: c0/broken.png .the image cannot be read: ")
    assert grey_values(d) == [0, 1, 2, 10, 11, 12]
    with pytest.raises(ValueError, match="1 left out: c0/broken.png .*; strict=True"):
        load(root, strict=True)


def test_everything_that_is_left_out_is_named(tmp_path, monkeypatch):
    odd = ("lone/0.png", "stray.png", "c0/deeper/0.png", "c0/a.heic", "shut/0.png", "shut/1.png")
    write(tmp_path, tree(3) | dict.fromkeys(odd, png()))
    os.mkfifo(tmp_path / "c0" / "pipe.png")
    (tmp_path / "c0" / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "c0" / "itself.png").symlink_to("itself.png")
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "shut":  # root, as whom tests may run, is refused nothing
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    d = load_warned(tmp_path, "8 left out: .*, 5 more$")
    assert sorted(d.table.path) == sorted(tree(3))
    assert d.left_out == {
        "c0/a.heic": "its format cannot be decoded here",
        "c0/endless.png": "it is no regular file",
        "c0/itself.png": "it is no regular file",
        "c0/pipe.png": "it is no regular file",
        "shut/": "the folder cannot be read: Permission denied",
        "c0/deeper/0.png": "it lies deeper than its class",
        "stray.png": "it is in no folder that would be its class",
        "lone/0.png": "its class lone has no other image",
    }
    assert d.split("test").left_out == d.left_out


def test_an_image_that_vanished_or_became_a_pipe_is_named(tmp_path):
    d = load(write(tmp_path, tree(2)))
    (tmp_path / "c0" / "1.png").unlink()
    with pytest.raises(ValueError, match="c0/1.png: the image cannot be read") as caught:
        d[1]
    assert caught.value.__cause__ is not None
    os.mkfifo(tmp_path / "c0" / "1.png")
    with pytest.raises(ValueError, match=r"c0/1.png: the image cannot be read \(it is no regular file\)"):
        d[1]


def test_names_of_any_bytes(tmp_path):
    root = write(tmp_path / "x", tree(2))
    for name in (b"bad\xff.png", b"new\nline.png", b"\x1b[31mred.png", "ä 🎉.png".encode()):
        with open(os.fsencode(root) + b"/c0/" + name, "wb") as file:
            file.write(png(99))
    with open(os.fsencode(root) + b"/c0/broken\xfe\n.png", "wb"):
        pass
    d = load_warned(root, re.escape("1 left out: c0/broken\\udcfe\\n.png ("))
    assert len(d) == 10 and grey_values(d).count(99) == 4
    assert data_version(d) == data_version(pickle.loads(pickle.dumps(d)))


# Versions


def test_the_version_is_that_of_content_names_labels_and_splits(stored, tmp_path):
    files = tree(4)
    of = data_version(load(stored(files)))
    # The same in every store, and on another machine.
    copy = write(tmp_path / "copy", files)
    assert of == data_version(load(copy))
    changes = {
        "content": files | {"c1/1.png": png(200)},
        "name": {name.replace("c1/1", "c1/7"): content for name, content in files.items()},
        "class": {name.replace("c1/1", "c2/1b"): content for name, content in files.items()},
        "one more": files | {"c1/3.png": png()},
    }
    found = {data_version(load(write(tmp_path / name, changed))) for name, changed in changes.items()}
    other_split = load(copy, train_classes=["c0", "c3"])
    found |= {data_version(other_split), data_version(other_split.split("train"))}
    assert len(found) == len(changes) + 2 and of not in found


def test_only_what_changed_is_read_again(tmp_path, own_cache, monkeypatch):
    d = load(write(tmp_path / "recent", tree(2)))
    first = data_version(d)
    (tmp_path / "recent" / "c0" / "0.png").write_bytes(png(0)[::-1])  # within a tick of the file system's clock
    assert data_version(d) != first
    monkeypatch.setattr(version, "TICK", 0)  # files written a moment ago are trusted
    d = load(write(tmp_path / "older", tree(2)))
    read = []
    original = type(d.images).read
    monkeypatch.setattr(type(d.images), "read", lambda self, name: read.append(name) or original(self, name))
    first = data_version(d)
    assert sorted(read) == sorted(tree(2)) and data_version(d) == first and len(read) == 6
    replaced = tmp_path / "older" / "c1" / "1.png"
    times = replaced.stat()
    replaced.write_bytes(replaced.read_bytes()[::-1])
    os.utime(replaced, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time of modification
    assert data_version(d) != first and read[6:] == ["c1/1.png"]
    for store in (own_cache / "glbook" / "files").iterdir():
        store.write_text("damaged")
    assert data_version(d) != first and len(read) == 13


def test_what_cannot_be_written_whole_is_not_written_and_named(tmp_path):
    (tmp_path / "a").write_text("as it was")
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a'"), _files.atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "as it was"


def test_without_a_cache_all_is_read_each_time(tmp_path, monkeypatch):
    root = write(tmp_path / "x", tree(2))
    expected = data_version(load(root))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/glbook")  # a user without a home
    assert cache.cache_folder() is None and data_version(load(root)) == expected
    (tmp_path / "file").touch()
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "file"))
    assert data_version(load(root)) == expected


def test_many_images_in_a_tar_take_seconds_at_most(shared, tell):
    d = datasets.load("cars196_half", shared / "data" / "cars196-crops-128.tar", "all")
    began = time.process_time()
    first = data_version(d)
    between = time.process_time()
    assert data_version(d) == first
    again = time.process_time() - between
    tell(f"version of {len(d):,} images in a tar: {between - began:.2f} s, known: {again:.2f} s")
    assert between - began < 5 and again < 1
