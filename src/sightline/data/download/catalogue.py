"""Published data sets that `data get` downloads: addresses, sizes, hashes and licences.

A hash stands here only where a source of its own states it; the others are recorded at the first download (`data/download/get.py`).
Sizes and hashes of COCO are those that TensorFlow Datasets checks (`url_checksums/coco.txt`).
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at an address.

    Attributes:
        url: where it lies.
        sha256: its hash, empty where none is published.
        size: its bytes, 0 where none are published.
        unpack: patterns of the members of a zip that are written beside it.
    """

    url: str
    sha256: str = ""
    size: int = 0
    unpack: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A published data set.

    Attributes:
        about: what it is, in a line.
        licence: of the data.
        terms: page on which the licence stands.
        read: arguments of `data prepare` that read it.
        files: files on the web.
        repository: data set on the Hub, instead of files.
        patterns: files of the repository; all by default.
        note: what a user must do besides.
    """

    about: str
    licence: str
    terms: str
    read: str
    files: tuple[WebFile, ...] = ()
    repository: str = ""
    patterns: tuple[str, ...] = ()
    note: str = ""


_COCO = "http://images.cocodataset.org"  # has no valid certificate; the hashes stand for it
_COCO_LICENCE = "annotations CC BY 4.0; the photos are under the terms of Flickr, each has its own licence"
_COCO_TERMS = "https://cocodataset.org/#termsofuse"
_ANNOTATIONS = WebFile(
    f"{_COCO}/annotations/annotations_trainval2017.zip",
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    252_907_541,
    ("annotations/captions_*.json", "annotations/instances_*.json"),
)
_CRAPE = "https://raw.githubusercontent.com/RAIVNLab/sugar-crepe/0047054b243992f0fad63d6f64f7544862daf846/data"
_NARRATIVES = "https://storage.googleapis.com/localized-narratives/annotations"
_LLAVA_HUB = "https://huggingface.co/datasets/liuhaotian"

PUBLISHED: Final = MappingProxyType(
    {
        "coco-train2017": PublishedSet(
            "118,287 photos with five captions each, and boxes",
            _COCO_LICENCE,
            _COCO_TERMS,
            "OUT/annotations/captions_train2017.json --format coco --images OUT/train2017.zip",
            (
                WebFile(
                    f"{_COCO}/zips/train2017.zip",
                    "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                    19_336_861_798,
                ),
                _ANNOTATIONS,
            ),
        ),
        "coco-val2017": PublishedSet(
            "5,000 photos with five captions each, and boxes",
            _COCO_LICENCE,
            _COCO_TERMS,
            "OUT/annotations/captions_val2017.json --format coco --images OUT/val2017.zip",
            (
                WebFile(
                    f"{_COCO}/zips/val2017.zip",
                    "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                    815_585_330,
                ),
                _ANNOTATIONS,
            ),
        ),
        "flickr8k-text": PublishedSet(
            "the captions and splits of Flickr8k; the photos are to be asked for",
            "non-commercial research and education",
            "https://hockenmaier.cs.illinois.edu/Framing_Image_Description/KCCA.html",
            "OUT/Flickr8k.token.txt --format flickr8k --images PHOTOS",
            (WebFile("https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_text.zip", unpack=("*.txt",)),),
        ),
        "llava-558k": PublishedSet(
            "LLaVA-Pretrain: 558,128 web photos with a caption as an instruction (LLaVA-1.5, stage 1)",
            "those of CC3M, LAION and SBU, and of BLIP for its captions",
            f"{_LLAVA_HUB}/LLaVA-Pretrain",
            "OUT --format llava",
            repository="liuhaotian/LLaVA-Pretrain",
            patterns=("blip_laion_cc_sbu_558k.json", "images.zip"),
        ),
        "llava-595k": PublishedSet(
            "LLaVA-CC3M-Pretrain-595K: web photos with a caption as an instruction (LLaVA, stage 1)",
            "those of CC3M, and of BLIP for its captions",
            f"{_LLAVA_HUB}/LLaVA-CC3M-Pretrain-595K",
            "OUT --format llava",
            repository="liuhaotian/LLaVA-CC3M-Pretrain-595K",
            patterns=("chat.json", "images.zip"),
        ),
        "llava-665k": PublishedSet(
            "the instructions of LLaVA-1.5, stage 2, without images",
            "CC BY 4.0; made with GPT-4, so the terms of OpenAI apply; each source of images has its own",
            f"{_LLAVA_HUB}/LLaVA-Instruct-150K",
            "OUT/llava_v1_5_mix665k.json --format llava --images IMAGES --map id=",
            repository="liuhaotian/LLaVA-Instruct-150K",
            patterns=("llava_v1_5_mix665k.json",),
            note="The images of COCO, GQA, OCR-VQA, TextVQA and Visual Genome come from their own sites.",
        ),
        "localized-narratives": PublishedSet(
            "long spoken descriptions of the photos of COCO 2017, without the photos",
            "CC BY 4.0",
            "https://google.github.io/localized-narratives",
            "OUT/coco_val_captions.jsonl --format localized_narratives --images COCO/val2017.zip",
            (WebFile(f"{_NARRATIVES}/coco_train_captions.jsonl"), WebFile(f"{_NARRATIVES}/coco_val_captions.jsonl")),
        ),
        "pixmo-cap": PublishedSet(
            "long captions of web photos, which are downloaded from their own sites",
            "ODC-By 1.0; each photo has its own",
            "https://huggingface.co/datasets/allenai/pixmo-cap",
            "OUT --format urls --max-skipped 0.5",
            repository="allenai/pixmo-cap",
        ),
        "sugarcrepe": PublishedSet(
            "right and subtly wrong captions of photos of COCO val2017, without the photos",
            "MIT",
            "https://github.com/RAIVNLab/sugar-crepe",
            "",
            (
                WebFile(f"{_CRAPE}/add_att.json"),
                WebFile(f"{_CRAPE}/add_obj.json"),
                WebFile(f"{_CRAPE}/replace_att.json"),
                WebFile(f"{_CRAPE}/replace_obj.json", "9d299600639947e9d15281a9ded1382b376cf4ea088a8d08a1314bfe76e81898"),
                WebFile(f"{_CRAPE}/replace_rel.json"),
                WebFile(f"{_CRAPE}/swap_att.json", "7a7ce04e5c4c80412b48c6f0c1347fb1a2f5d54c0be6aa429b64d390e442f8d0"),
                WebFile(f"{_CRAPE}/swap_obj.json", "073cdb8e253d053614e80710834d9773b09dbc1dd0a412f6f9492262caa1dcad"),
            ),
        ),
        "winoground": PublishedSet(
            "400 pairs of photos and captions with the same words in another order",
            "Meta Images Research License",
            "https://huggingface.co/datasets/facebook/winoground",
            "",
            repository="facebook/winoground",
            note="The Hub asks for an account that has accepted the terms: hf auth login",
        ),
    }
)
