"""What is known of each data set beside its images: licence, source, layout on disk, numbers of images and classes."""

from dataclasses import dataclass

__all__ = ["CATALOGUE", "Archive", "Entry"]


@dataclass(frozen=True)
class Archive:
    """A file to download; `md5` is that which public loaders of the set verify."""

    url: str
    file: str
    md5: str
    # No archive of these is larger once it is unpacked.
    most_bytes: int = 16 * 2**30


@dataclass(frozen=True)
class Entry:
    """A data set. `counts` are images and classes of the training split, the queries and the gallery."""

    title: str
    licence: str
    expected: str
    counts: dict[str, tuple[int, int]] | None = None
    archive: Archive | None = None
    steps: str = ""


def _searching_itself(train: tuple[int, int], test: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {"train": train, "query": test, "gallery": test}


_RESEARCH = "non-commercial research"
_DRAWN = ("free, drawn by this library", "nothing: it is drawn")
_CUHK03 = (
    "1. Ask for CUHK03 by the form at https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html and unpack\n"
    "   cuhk03_release.zip.\n"
    "2. Take cuhk03_new_protocol_config_detected.mat and cuhk03_new_protocol_config_labeled.mat from\n"
    "   https://github.com/zhunzhong07/person-re-ranking (evaluation/data/CUHK03).\n"
    "   Or take the prepared folders detected/ and labeled/, which CUHK03-NP there leads to, in place of both."
)
_CUHK03_EXPECTED = "cuhk03_release/cuhk-03.mat with the two .mat files beside that folder, or detected/ and labeled/"

CATALOGUE: dict[str, Entry] = {
    "glyphs": Entry("Glyphs", *_DRAWN),
    "omniglot": Entry("Omniglot, small sets", "MIT", "nothing: it is downloaded when first used"),
    "cars196_half": Entry(
        "Cars196-half (128 px crops)", _RESEARCH, "cars196-crops-128.tar",
        steps="It is not public; the full benchmark, cars196, is.",
    ),
    "folder": Entry(
        "Images of your own", "yours", "class/image", steps="Put the images of each class into a folder of its own."
    ),
    "cub": Entry(
        "CUB-200-2011", _RESEARCH, "CUB_200_2011/",
        _searching_itself((5864, 100), (5924, 100)),
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", "CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    ),
    "cars196": Entry(
        "Cars196", _RESEARCH, "cars_annos.mat and car_ims/, or stanford_cars/",
        _searching_itself((8054, 98), (8131, 98)),
        steps="The authors' page (ai.stanford.edu/~jkrause/cars/car_dataset.html) no longer gives the files.\n"
        "What is left:\n1. Follow the documentation of torchvision.datasets.StanfordCars and the issue it names\n"
        "   (https://github.com/pytorch/vision/issues/7545) to copies of the images and of the annotations.\n"
        "2. Arrange them as stanford_cars/cars_train/, cars_test/, cars_test_annos_withlabels.mat and\n"
        "   devkit/cars_train_annos.mat (and devkit/cars_meta.mat, for the names of the models).",
    ),
    "sop": Entry(
        "Stanford Online Products", _RESEARCH, "Stanford_Online_Products/",
        _searching_itself((59551, 11318), (60502, 11316)),
        Archive(
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip", "Stanford_Online_Products.zip",
            "7f73d41a2f44250d4779881525aea32e",
        ),
    ),
    "inshop": Entry(
        "In-Shop Clothes Retrieval", _RESEARCH, "list_eval_partition.txt and img/, or Eval/ and Img/",
        {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
        steps="1. Agree to the terms at https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html, which\n"
        "   lead to a folder of files and the password of its archives.\n"
        "2. Take Eval/list_eval_partition.txt and Img/img.zip, and unpack the latter where it is.",
    ),
    "glyphs_half": Entry("Glyphs, half of them", *_DRAWN),
    "glyphs_reid": Entry("Glyphs, typefaces as cameras", *_DRAWN),
    "glyphs_reid_half": Entry("Glyphs, typefaces as cameras, half to train on", *_DRAWN),
    "market1501": Entry(
        "Market-1501", _RESEARCH, "Market-1501-v15.09.15/",
        {"train": (12936, 751), "query": (3368, 750), "gallery": (19732, 751)},
        steps="1. Follow the links of the authors' page, https://zheng-lab-anu.github.io/Project/project_reid.html,\n"
        "   to Market-1501-v15.09.15.zip.\n"
        "2. Unpack it.",
    ),
    "cuhk03": Entry(
        "CUHK03, new protocol, detected", _RESEARCH, _CUHK03_EXPECTED,
        {"train": (7365, 767), "query": (1400, 700), "gallery": (5332, 700)},
        steps=_CUHK03,
    ),
    "cuhk03_labelled": Entry(
        "CUHK03, new protocol, labelled", _RESEARCH, _CUHK03_EXPECTED,
        {"train": (7368, 767), "query": (1400, 700), "gallery": (5328, 700)},
        steps=_CUHK03,
    ),
}  # fmt: skip
