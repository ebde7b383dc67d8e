"""Each benchmark in miniature, in the form in which its owners publish it: names, encodings, numbering, clutter."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["BUILDERS", "photograph"]

# What macOS leaves beside a file, and Windows in a folder of pictures.
CLUTTER = {"._": b"\0\5\x16\7", "Thumbs.db": b"\xd0\xcf\x11\xe0"}
FEW = 3


def photograph(value: int, *, size: tuple[int, int] = (40, 32), grey: bool = False, kind: str = "JPEG") -> bytes:
    """An image of one colour, or of one grey, as some photographs of every benchmark are; another one for each value to
    50."""
    image = Image.new("L", size, 5 * value) if grey else Image.new("RGB", size, (5 * value, 255 - 5 * value, 128))
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return content.getvalue()


def _write(folder: Path, name: str, content: bytes | str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cub(root: Path) -> Path:
    """`CUB_200_2011/`: lists numbered from 1, one image in grey a class, the box (left, top, width, height)."""
    top = root / "CUB_200_2011"
    numbers = np.repeat([1, 2, 99, 100, 101, 102, 199, 200], FEW).tolist()
    names = [f"{n:03}.Bird_{n}/Bird_{n}_{i % FEW:04}_{7 * (i % FEW)}.jpg" for i, n in enumerate(numbers)]
    for position, name in enumerate(names):
        _write(top, f"images/{name}", photograph(position, grey=position % FEW == 1))
    _write(top, f"images/{names[0].replace('/', '/._')}", CLUTTER["._"])
    for file, column in (
        ("images.txt", names),
        ("image_class_labels.txt", numbers),
        ("bounding_boxes.txt", ["4.0 2.0 20.0 10.0"] * len(names)),
    ):
        _write(top, file, "".join(f"{i} {value}\n" for i, value in enumerate(column, 1)))
    return root


def _struct(rows: list[dict]) -> np.ndarray:
    """Rows as MATLAB keeps a struct array: 1 x n, every field a matrix."""
    annotations = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        annotations[0, i] = tuple(value if isinstance(value, str) else np.array([[value]]) for value in row.values())
    return annotations


def _cars(images: int) -> list[tuple[int, dict]]:
    box = {"bbox_x1": np.uint16(5), "bbox_y1": np.uint16(3), "bbox_x2": np.uint16(24), "bbox_y2": np.uint16(12)}
    classes = (1, 2, 97, 98, 99, 100, 195, 196)
    return [(i, box | {"class": np.uint8(number)}) for number in classes for i in range(images)]


def _model_names() -> np.ndarray:
    names = np.empty((1, 196), dtype=object)
    names[0] = [f"Maker Model {number} 2012" for number in range(1, 197)]
    return names


def cars196(root: Path) -> Path:
    """`cars_annos.mat` and `car_ims/`."""
    from scipy.io import savemat

    rows = []
    for position, (i, car) in enumerate(_cars(FEW), 1):
        path = f"car_ims/{position:06}.jpg"
        _write(root, path, photograph(position, grey=i == 1))
        rows.append({"relative_im_path": path, **car, "test": np.uint8(i % 2)})
    _write(root, "car_ims/._000001.jpg", CLUTTER["._"])
    savemat(root / "cars_annos.mat", {"annotations": _struct(rows), "class_names": _model_names()})
    return root


def cars196_devkit(root: Path) -> Path:
    """`stanford_cars/` as torchvision expects it: both of its parts hold images of every class."""
    from scipy.io import savemat

    top = root / "stanford_cars"
    parts: dict[str, list[dict]] = {"cars_train": [], "cars_test": []}
    for position, (i, car) in enumerate(_cars(4), 1):
        part = ("cars_train", "cars_test")[i % 2]
        name = f"{len(parts[part]) + 1:05}.jpg"
        _write(top, f"{part}/{name}", photograph(position, grey=i == 1))
        parts[part].append(car | {"fname": name})
    (top / "devkit").mkdir()
    savemat(top / "devkit" / "cars_train_annos.mat", {"annotations": _struct(parts["cars_train"])})
    savemat(top / "devkit" / "cars_meta.mat", {"class_names": _model_names()})
    savemat(top / "cars_test_annos_withlabels.mat", {"annotations": _struct(parts["cars_test"])})
    return root


def sop(root: Path) -> Path:
    """`Stanford_Online_Products/`: images are named by the offer; the numbers of test products go on from those of
    training."""
    top, position = root / "Stanford_Online_Products", 0
    for name, products in (("Ebay_train.txt", range(1, 6)), ("Ebay_test.txt", range(6, 10))):
        rows = ["image_id class_id super_class_id path"]
        for product in products:
            for i in range(FEW):
                position += 1
                path = f"{('bicycle', 'cabinet')[product % 2]}_final/{111085122871 + product}_{i}.JPG"
                _write(top, path, photograph(position, grey=i == 1))
                rows.append(f"{position} {product} {product % 2 + 1} {path}")
        _write(top, name, "\n".join(rows) + "\n")
    _write(top, "bicycle_final/._111085122873_0.JPG", CLUTTER["._"])
    return root


def inshop(root: Path, *, nested: bool = False) -> Path:
    """The list, whose first lines say how many images there are and what the columns are, and the images."""
    rows, position = [], 0
    for item in range(1, 10):
        for part in ["train"] if item <= 5 else ["query", "gallery"]:
            for i in range(2):
                position += 1
                path = f"img/WOMEN/Blouses_Shirts/id_{item:08}/{i + 1:02}_{1 if part != 'gallery' else 2}_front.jpg"
                _write(root / "Img" if nested else root, path, photograph(position, grey=i == 1))
                rows.append(f"{path:<80}id_{item:08} {part}")
    header = [str(len(rows)), "image_name item_id evaluation_status"]
    _write(root, f"{'Eval/' if nested else ''}list_eval_partition.txt", "\n".join(header + rows) + "\n")
    return root


def _persons(top: Path, train: Sequence[int], test: Sequence[int], name: Callable[[str, int, int], str]) -> None:
    """Two images of each of two cameras; in the test the first of each camera is a query."""
    position = 0
    for persons, first, second in (
        (train, "bounding_box_train", "bounding_box_train"),
        (test, "query", "bounding_box_test"),
    ):
        for person in persons:
            for camera in (1, 2):
                for i, folder in enumerate((first, second)):
                    position += 1
                    file = name(f"{person:04}", camera, 10 * position + i)
                    kind = "PNG" if file.endswith("png") else "JPEG"
                    _write(top, f"{folder}/{file}", photograph(position, size=(16, 32), grey=i == 1, kind=kind))
    _write(top, "bounding_box_test/Thumbs.db", CLUTTER["Thumbs.db"])
    _write(top, f"query/._{name('0001', 1, 1)}", CLUTTER["._"])


def market1501(root: Path) -> Path:
    """`Market-1501-v15.09.15/` with junk (-1) and distractors (0000) in the gallery, and no `gt_bbox`."""
    top = root / "Market-1501-v15.09.15"

    def name(person: str, camera: int, frame: int) -> str:
        return f"{person}_c{camera}s1_{frame:06}_00.jpg"

    _persons(top, (2, 7, 10, 11), (1, 3, 4), name)
    for frame, person in enumerate(("-1", "-1", "0000", "0000", "0000")):
        _write(top, f"bounding_box_test/{name(person, 1 + frame % 2, frame)}", photograph(40 + frame, size=(16, 32)))
    _write(top, "readme.txt", "")
    return root


def cuhk03(root: Path) -> Path:
    """`detected/` and `labeled/` as the authors of the new protocol prepared them; the labelled gallery is smaller by
    one."""
    for kind in ("detected", "labeled"):
        _persons(root / kind, (3, 4, 8, 9), (1, 2, 5), lambda person, camera, i: f"{person}_c{camera}_{i}.png")
    (root / "labeled" / "bounding_box_test" / "0005_c2_281.png").unlink()
    return root


def cuhk03_release(root: Path) -> Path:
    """`cuhk03_release/cuhk-03.mat`, MATLAB 7.3 and so HDF5, in which cells are references and matrices are transposed,
    with the two files of the new protocol. Two pairs of cameras saw 4 and 3 persons; every cell but the last of a view
    has an image."""
    import h5py
    from scipy.io import savemat

    (root / "cuhk03_release").mkdir(parents=True)
    seen = [(pair, person) for pair, persons in ((1, 4), (2, 3)) for person in range(1, persons + 1)]
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "w", userblock_size=512) as file:
        store = file.create_group("#refs#")
        for kind in ("detected", "labeled"):
            pairs = file.create_dataset(kind, (1, 2), dtype=h5py.ref_dtype)
            for pair, persons in ((1, 4), (2, 3)):
                cells = store.create_dataset(f"{kind}{pair}", (10, persons), dtype=h5py.ref_dtype)
                for person in range(1, persons + 1):
                    for i in range(1, 11):
                        name = f"{kind}{pair}_{person}_{i}"
                        if i % 5:
                            pixels = np.zeros((32, 16, 3), dtype=np.uint8)
                            # A mark in the upper right corner: what is transposed shows.
                            pixels[0, -1] = (100 * pair + 10 * person + i, 1 if kind == "labeled" else 0, 255)
                            cell = store.create_dataset(name, data=pixels.T)
                        else:
                            cell = store.create_dataset(name, data=np.zeros(2, dtype=np.uint64))
                        cells[i - 1, person - 1] = cell.ref
                pairs[0, pair - 1] = cells.ref
        file.create_dataset("testsets", data=np.zeros((1, 2)))
    for kind in ("detected", "labeled"):
        rows = [
            (f"{pair}_{person:03}_{view}_{5 * (view - 1) + i:02}.png", number, view, i)
            for number, (pair, person) in enumerate(seen, 1)
            for view in (1, 2)
            for i in range(1, 5)
        ]
        index = np.arange(1, len(rows) + 1)
        number, first = np.array([row[1] for row in rows]), np.array([row[3] for row in rows]) == 1
        names = np.empty((len(rows), 1), dtype=object)
        names[:, 0] = [row[0] for row in rows]
        content = {
            "filelist": names,
            "labels": number[:, None].astype(np.uint16),
            "camId": np.array([row[2] for row in rows])[:, None].astype(np.uint8),
            "train_idx": index[number % 2 == 1][:, None],
            "query_idx": index[(number % 2 == 0) & first][:, None],
            "gallery_idx": index[(number % 2 == 0) & ~first][:, None],
        }
        savemat(root / f"cuhk03_new_protocol_config_{kind}.mat", content)
    return root


# Every form of every benchmark, with the name by which it is loaded.
BUILDERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "cub": ("cub", cub),
    "cars196": ("cars196", cars196),
    "cars196 devkit": ("cars196", cars196_devkit),
    "sop": ("sop", sop),
    "inshop": ("inshop", inshop),
    "inshop nested": ("inshop", partial(inshop, nested=True)),
    "market1501": ("market1501", market1501),
    "cuhk03": ("cuhk03", cuhk03),
    "cuhk03_labelled": ("cuhk03_labelled", cuhk03),
    "cuhk03 release": ("cuhk03", cuhk03_release),
    "cuhk03_labelled release": ("cuhk03_labelled", cuhk03_release),
}
