"""Small whole files of every format that Sightline reads, for the fuzzer to change."""

import base64
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

Files = dict[str, bytes]  # content by relative path

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
CAPTIONS = (
    "A red square left of a blue circle.",
    "Two dogs run, on grass.",
    'A "quoted" caption',
    "Ein Haus – größer als ein Baum",
)
NAMES = tuple(f"{number}.png" for number in range(4))


def image(number: int = 0, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """Returns an image file of 12 x 9 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def images(folder: str = "images/") -> Files:
    return {f"{folder}{name}": image(number) for number, name in enumerate(NAMES)}


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def dump_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    write: Any = np.savez_compressed if compressed else np.savez
    write(out, **arrays)
    return out.getvalue()


def zipped(files: Files, compression: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


def tarred(files: Files, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, write_page_checksum=True, **options)
    return out.getvalue()


def hdf5(chunks: bool = False, **arrays: np.ndarray) -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, array in arrays.items():
            options = {"chunks": True, "compression": "gzip"} if chunks and array.ndim else {}
            file.create_dataset(name, data=array, **options)
    return out.getvalue()


def golden(folder: str, keep: tuple[str, ...] = ("",)) -> Files:
    """Returns the files of a folder of tests/golden whose names begin like one of `keep`."""
    files = sorted(file for file in (GOLDEN / folder).rglob("*") if file.is_file())
    named = {file.relative_to(GOLDEN / folder).as_posix(): file for file in files}
    return {name: file.read_bytes() for name, file in named.items() if name.startswith(keep)}


def folder_files(folder: Path) -> Files:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# Data sources ---------------------------------------------------------------------------------------------------------------


def caption_rows(key: str = "caption") -> list[dict[str, Any]]:
    return [{"id": number, "image": f"images/{name}", key: CAPTIONS[number], "split": "train"} for number, name in enumerate(NAMES)]


def csv_files() -> list[Files]:
    rows = [f"{number},{base64.b64encode(image(number)).decode()},{CAPTIONS[number].replace(chr(34), '')!r}" for number in range(4)]
    text = "id,b64string_images,caption\n" + "\n".join(row.replace("'", '"') for row in rows) + "\n"
    paths = "id,b64string_images,caption\n" + "\n".join(f"{number},images/{name},words" for number, name in enumerate(NAMES)) + "\n"
    return [{"inputs.csv": text.encode()}, {"inputs.csv": paths.encode(), **images()}]


def tsv_files() -> list[Files]:
    rows = "\n".join(f"{number}\timages/{name}\twords of {number}" for number, name in enumerate(NAMES))
    return [{"inputs.tsv": f"id\tb64string_images\tcaption\n{rows}\n".encode(), **images()}]


def table_files() -> list[Files]:
    questions = [
        {"id": 1, "image": "images/0.png", "question": "What?", "answer": ["a", "b"], "choices": ["a", "b"]},
        {
            "id": 2,
            "image": ["images/1.png"],
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}],
        },
        {
            "id": "3",
            "image": "images/2.png",
            "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x"}],
        },
        {"id": "4", "image": "images/3.png", "texts": [{"user": "What?", "assistant": "x"}]},
        {"id": "5", "image": "images/3.png", "captions": ["a", "b"], "split": "validation"},
    ]
    return [{"rows.jsonl": dump_lines(questions), **images()}, {"rows.json": dump({"data": questions}), **images()}]


def preset_files(preset: str) -> list[Files]:
    size = {"width": 12, "height": 9}
    named: dict[str, Files] = {
        "chartqa": {"qa.jsonl": dump_lines([{"id": 1, "image": "images/0.png", "question": "What?", "answer": "4"}])},
        "docvqa": {
            "val_v1.json": dump(
                {"data": [{"questionId": 1, "image": "images/0.png", "question": "q", "answers": ["a"], "data_split": "val"}]}
            )
        },
        "nlvr": {"nlvr.jsonl": dump_lines([{"id": "a", "image": "images/0.png", "sentence": "There is.", "label": "true"}])},
        "refcocog": {
            "rows.jsonl": dump_lines([{"question_id": "1", "image": "images/0.png", "answer": ["the dog"], "bbox": [1, 2, 5, 4]}])
        },
        "scienceqa": {
            "problems.json": dump(
                {"1": {"question": "q", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "0.png", "split": "train"}}
            )
        },
        "sroie": {
            "receipts.jsonl": dump_lines(
                [
                    {
                        "id": "r",
                        "image": "images/0.png",
                        "fields": {"total": "3"},
                        "lines": [{"category": "a", "bbox_xywh_frac": [0.1, 0.2, 0.3, 0.4]}],
                        **size,
                    }
                ]
            )
        },
        "textcaps": {
            "TextCaps_0.json": dump(
                {"data": [{"image_id": "0", "caption_str": "a b", "reference_strs": ["a b", "c"], "set_name": "train"}]}
            )
        },
    }
    places = {"scienceqa": "images/train/1/", "textcaps": "images/"}
    more = {f"{places[preset]}{'0.jpg' if preset == 'textcaps' else '0.png'}": image()} if preset in places else images()
    return [{**named[preset], **more}]


def coco_files() -> list[Files]:
    photos = [{"id": number, "file_name": name, "width": 12, "height": 9, "license": 1} for number, name in enumerate(NAMES)]
    captions = {
        "info": {"year": 2014},
        "licenses": [{"id": 1, "name": "CC"}],
        "images": photos,
        "annotations": [{"id": 10 + number, "image_id": number, "caption": text} for number, text in enumerate(CAPTIONS)],
    }
    boxes = {
        "images": photos,
        "categories": [{"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 1, 4, 5.5], "iscrowd": 0, "segmentation": [[1, 2, 3]]}
        ],
    }
    lines = [
        {
            "coco_id": 1,
            "image": "images/0.png",
            "captions": list(CAPTIONS),
            "objects": [{"category": "dog", "bbox_xywh_frac": [0.1, 0.1, 0.5, 0.5]}],
        }
    ]
    return [
        {"captions_val2014.json": dump(captions), "instances_val2014.json": dump(boxes), **images("val2014/")},
        {"captions.jsonl": dump_lines(lines), **images()},
    ]


def karpathy_files() -> list[Files]:
    rows = [
        {
            "filepath": "images",
            "filename": name,
            "cocoid": number,
            "split": "restval",
            "sentids": [1],
            "sentences": [{"raw": CAPTIONS[number], "tokens": ["a"], "sentid": 1}],
        }
        for number, name in enumerate(NAMES)
    ]
    return [{"dataset_coco.json": dump({"images": rows, "dataset": "coco"}), **images()}]


def llava_files() -> list[Files]:
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes"},
    ]
    rows = [{"id": f"{number}", "image": name, "conversations": turns} for number, name in enumerate(NAMES)] + [
        {"id": "t", "conversations": [{**turns[2]}, {**turns[3]}]}
    ]
    return [
        {"chat.json": dump(rows), **images()},
        {"chat.json": dump(rows), "images.zip": zipped(images(""), zipfile.ZIP_DEFLATED)},
    ]


def flickr_files() -> list[Files]:
    tokens = "".join(f"{number}.jpg#{k}\t{text} .\n" for number in range(4) for k, text in enumerate(CAPTIONS))
    splits = {
        "Flickr_8k.trainImages.txt": b"0.jpg\n1.jpg\n",
        "Flickr_8k.devImages.txt": b"2.jpg\n",
        "Flickr_8k.testImages.txt": b"3.jpg\n",
    }
    return [
        {"Flickr8k.token.txt": tokens.encode(), **splits, **{f"images/{number}.jpg": image(number, "JPEG") for number in range(4)}}
    ]


def kaggle_files() -> list[Files]:
    rows = "".join(f'{number}.jpg,"{text.replace(chr(34), "")}"\n' for number in range(4) for text in CAPTIONS)
    return [
        {
            "captions.txt": f"image,caption\n{rows}".encode(),
            **{f"Images/{number}.jpg": image(number, "JPEG") for number in range(4)},
        }
    ]


def imagefolder_files() -> list[Files]:
    lines = dump_lines([{"file_name": name, "text": CAPTIONS[number]} for number, name in enumerate(NAMES)])
    beside = {f"{number}.txt": text.encode() for number, text in enumerate(CAPTIONS)} | {
        "0.json": dump({"caption": "x", "width": 3})
    }
    return [{"train/metadata.jsonl": lines, **images("train/")}, {**images(""), **beside}, images("dog/")]


def webdataset_files() -> list[Files]:
    members = {
        f"{number:03}.{kind}": data
        for number in range(4)
        for kind, data in (("png", image(number)), ("txt", CAPTIONS[number].encode()))
    }
    more = {"004.png": image(4), "004.json": dump({"caption": "x", "question": "q", "answer": "a"})}
    long = {"a" * 120 + ".png": image(5), "a" * 120 + ".txt": b"long"}
    forms = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    return [{"00000.tar": tarred({**members, **more, **(long if form != tarfile.USTAR_FORMAT else {})}, form)} for form in forms]


def parquet_files() -> list[Files]:
    rows = [
        {"id": number, "image": {"bytes": image(number), "path": None}, "caption": text} for number, text in enumerate(CAPTIONS)
    ]
    chats = [{"id": "a", "images": [image(1)], "texts": [{"user": "q", "assistant": "a", "source": "s"}]}]
    return [
        {"train.parquet": parquet(rows)},
        {"train.parquet": parquet(rows * 8, compression="zstd", row_group_size=4, use_dictionary=False)},
        {"data/val.parquet": parquet(chats, compression="gzip", data_page_version="2.0")},
        {"train.parquet": parquet(rows, compression="none")},
    ]


def hub_files() -> list[Files]:
    lines = dump_lines(
        [{"id": number, "image": f"images/{name}", "caption": CAPTIONS[number]} for number, name in enumerate(NAMES)]
    )
    rows = [
        {"id": number, "image": {"bytes": image(number), "path": None}, "caption": text} for number, text in enumerate(CAPTIONS)
    ]
    return [{"train.jsonl": lines, **images()}, {"train.parquet": parquet(rows)}]


def saved_files() -> list[Files]:
    """A folder that `datasets` saved: arrow files with their notes."""
    import tempfile

    import datasets

    with tempfile.TemporaryDirectory() as folder:
        found = datasets.Dataset.from_list(
            [{"id": number, "image": image(number), "caption": text} for number, text in enumerate(CAPTIONS)]
        )
        found.save_to_disk(f"{folder}/saved")
        return [folder_files(Path(folder) / "saved")]


def text_files() -> list[Files]:
    return [{"input.txt": ("\n".join(CAPTIONS * 5) + "\n\n" + "word " * 200).encode()}]


def url_files() -> list[Files]:
    rows = [
        {"url": f"https://example.org/{name}", "caption": CAPTIONS[number], "sha256": "a" * 64} for number, name in enumerate(NAMES)
    ]
    return [{"rows.jsonl": dump_lines(rows)}, {"rows.parquet": parquet(rows)}]


def zip_images() -> list[Files]:
    rows = dump_lines(
        [{"id": number, "image": name, "caption": text} for number, (name, text) in enumerate(zip(NAMES, CAPTIONS, strict=True))]
    )
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return [{"rows.jsonl": rows, "images.zip": zipped(images(""), kind)} for kind in kinds]


def tar_images() -> list[Files]:
    rows = dump_lines(
        [{"id": number, "image": name, "caption": text} for number, (name, text) in enumerate(zip(NAMES, CAPTIONS, strict=True))]
    )
    return [{"rows.jsonl": rows, "images.tar": tarred(images(""), form)} for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]


# Arrays ---------------------------------------------------------------------------------------------------------------------


def table_arrays() -> dict[str, np.ndarray]:
    """Returns features, with a scale, for every record of tests/golden/data."""
    names = [json.loads(line)["id"] for line in golden("data")["records.jsonl"].splitlines()]
    values = np.random.default_rng(0).normal(size=(len(names), 2, 5)).astype(np.float32)
    return {"names": np.array(names, dtype="S"), "values": values, "scale": np.ones(len(names), np.float32)}


def vector_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"image": draw.normal(size=(6, 4)).astype(np.float32), "text": draw.normal(size=(30, 4)).astype(np.float32)}


def safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    return save(arrays)


# Scores ---------------------------------------------------------------------------------------------------------------------


def prediction_files() -> list[Files]:
    return [
        {"predictions.json": dump([{"image_id": number, "caption": text} for number, text in enumerate(CAPTIONS)])},
        {"predictions.json": dump([{"question_id": number, "answer": text} for number, text in enumerate(CAPTIONS)])},
        {"predictions.jsonl": dump_lines([{"id": f"{number}", "text": text} for number, text in enumerate(CAPTIONS)])},
        {"predictions.jsonl": golden("run/eval/caption/data-held-step-370")["predictions.jsonl"]},
    ]


def reference_files() -> list[Files]:
    annotations = [{"image_id": number, "caption": text} for number, text in enumerate(CAPTIONS)]
    answers = [{"question_id": number, "answers": [{"answer": "a"}, "b"]} for number in range(4)]
    return [
        {"references.json": dump({"images": [{"id": number} for number in range(4)], "annotations": annotations})},
        {"references.json": dump({"annotations": answers})},
        {"references.jsonl": dump_lines([{"id": f"{number}", "references": list(CAPTIONS)} for number in range(4)])},
        {"references.jsonl": b"".join(golden("data")["records.jsonl"].splitlines(keepends=True)[:6])},
    ]


# Images ---------------------------------------------------------------------------------------------------------------------


def jpeg_files() -> list[Files]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        {"0.jpg": image(0, "JPEG", exif=exif, quality=90)},
        {"0.jpg": image(1, "JPEG", "L", progressive=True)},
        {"0.jpg": image(2, "JPEG", "CMYK")},
    ]


def png_files() -> list[Files]:
    modes = ("RGB", "RGBA", "L", "P", "1", "LA", "I;16")
    return [{"0.png": image(0, "PNG", mode)} for mode in modes] + [
        {"0.png": image(0, "PNG", "RGB", save_all=True, append_images=[Image.new("RGB", (12, 9))])}
    ]


def gif_files() -> list[Files]:
    return [
        {"0.gif": image(0, "GIF", "P")},
        {"0.gif": image(0, "GIF", "P", save_all=True, append_images=[Image.new("P", (12, 9))], loop=0)},
    ]


def webp_files() -> list[Files]:
    return [
        {"0.webp": image(0, "WEBP")},
        {"0.webp": image(0, "WEBP", "RGBA", lossless=True)},
        {"0.webp": image(0, "WEBP", save_all=True, append_images=[Image.new("RGB", (12, 9))])},
    ]


def bmp_files() -> list[Files]:
    return [{"0.bmp": image(0, "BMP")}, {"0.bmp": image(0, "BMP", "P")}, {"0.bmp": image(0, "BMP", "1")}]


def tiff_files() -> list[Files]:
    kinds = (
        ("RGB", None),
        ("RGB", "tiff_lzw"),
        ("RGB", "tiff_adobe_deflate"),
        ("L", "packbits"),
        ("1", "group4"),
        ("CMYK", None),
        ("I;16", None),
        ("F", None),
        ("LAB", None),
        ("RGB", "jpeg"),
    )
    return [{"0.tif": image(0, "TIFF", mode, **({"compression": packing} if packing else {}))} for mode, packing in kinds]
