"""The pages in docs/formats: every format has one, and every command on them works on files as the page draws them."""

import base64
import json
import re
import shlex
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import datasets
import httpcore
import pytest
import webdataset

from sightline.cli import main
from sightline.data.dataset import open_dataset
from sightline.data.download import gate
from sightline.data.download.addresses import Address
from sightline.data.readers import FORMATS
from tests.data.download.server import serving
from tests.data.pictures import picture, put

DOCS = Path(__file__).parents[3] / "docs"
SOURCES = Path(__file__).parents[3] / "src/sightline"


def page_commands(name: str) -> list[str]:
    """The commands in the `sh` blocks of a page."""
    text = (DOCS / f"{name}.md").read_text("utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines() if line.strip()]


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(path)


def image(seed: int) -> dict[str, Any]:
    return {"bytes": picture(seed), "path": None}


# The files that each page draws ---------------------------------------------------------------------------------------------


def flickr8k_jsonl(here: Path, name: str) -> None:
    rows = []
    for index in range(3):
        put(here / name / f"images/{index}.jpg", picture(index, "JPEG"))
        rows.append({"image": f"images/{index}.jpg", "split": ["train", "val"][index % 2], "captions": [f"caption {index}"] * 5})
    put(here / name / "captions.jsonl", rows)
    put(here / name / "captions_without_images.jsonl", [{"image": "9.jpg", "captions": ["more text"]}])


def data(here: Path) -> None:
    flickr8k_jsonl(here, "data/flickr8k")


def records(here: Path) -> None:
    lines = re.findall(r"^\{.*\}$", (DOCS / "formats/records.md").read_text("utf-8"), re.MULTILINE)
    assert len(lines) == 3
    put(here / "mine/records.jsonl", "\n".join(lines))
    put(here / "mine/photos/1.jpg", picture(1, "JPEG"))


def flickr8k(here: Path) -> None:
    put(here / "flickr8k/Flickr8k.token.txt", "1.jpg#0\tA dog .\n1.jpg#1\tA brown dog .\n2.jpg#0\tA cat .\n3.jpg#0\tA bird .\n")
    for split, name in [("train", "1.jpg"), ("dev", "2.jpg"), ("test", "3.jpg")]:
        put(here / f"flickr8k/Flickr_8k.{split}Images.txt", f"{name}\n")
        put(here / "flickr8k/Flicker8k_Dataset" / name, picture(int(name[0]), "JPEG"))
    flickr8k_jsonl(here, "flickr8k-jsonl")
    put(
        here / "flickr8k-kaggle/captions.txt",
        "image,caption\n" + "".join(f"{n}.jpg,caption {k}\n" for n in range(9) for k in range(5)),
    )
    for n in range(9):
        put(here / f"flickr8k-kaggle/Images/{n}.jpg", picture(n, "JPEG"))
    put(here / "flickr30k/results_20130124.token", "1000092795.jpg#0\tTwo young guys .\n")
    put(here / "flickr30k/flickr30k-images/1000092795.jpg", picture(1, "JPEG"))


def coco(here: Path) -> None:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 9, "height": 7, "license": 1} for n in (9, 25)]
    captions = [{"id": n, "image_id": n, "caption": f"caption {n}"} for n in (9, 25)]
    boxes = [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 1, 3, 3], "iscrowd": 0, "area": 9, "segmentation": []}]
    licences = [{"id": 1, "name": "CC BY 2.0"}]
    put(here / "coco/annotations/captions_val2017.json", {"images": images, "annotations": captions, "licenses": licences})
    instances = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "car"}]}
    put(here / "coco/annotations/instances_val2017.json", instances)
    rows = []
    for n in (9, 25):
        put(here / f"coco/val2017/{n:012d}.jpg", picture(n, "JPEG"))
        sentences = [{"raw": f"caption {n}", "tokens": []}]
        split = {9: "restval", 25: "val"}[n]
        rows.append({"filepath": "val2017", "filename": f"{n:012d}.jpg", "cocoid": n, "split": split, "sentences": sentences})
    put(here / "karpathy/dataset_coco.json", {"images": rows, "dataset": "coco"})
    jsonl = []
    for n in range(8):
        put(here / f"coco-jsonl/images/{n}.jpg", picture(n, "JPEG"))
        objects = [{"category": "dog", "bbox_xywh_frac": [0.1, 0.1, 0.5, 0.5], "crowd": 0}]
        jsonl.append({"image": f"images/{n}.jpg", "coco_id": n, "captions": ["a", "b"], "objects": objects, "license": "CC"})
    put(here / "coco-jsonl/captions.jsonl", jsonl)


def llava(here: Path) -> None:
    import zipfile

    row = json.loads(re.findall(r"```json\n(.*?)```", (DOCS / "formats/llava.md").read_text("utf-8"), re.DOTALL)[0])
    put(here / "LLaVA-CC3M-Pretrain-595K/chat.json", row)
    with zipfile.ZipFile(here / "LLaVA-CC3M-Pretrain-595K/images.zip", "w") as file:
        file.writestr("GCC_train_002582585.jpg", picture(1, "JPEG"))
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "That."}]
    rows = [{"id": "same", "image": f"{n:012d}.jpg", "conversations": turns} for n in range(10)]
    put(here / "llava_instruct_150k.json", rows)
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    put(here / "trl-set/train.jsonl", [{"images": ["1.png"], "messages": chat}])
    put(here / "trl-set/1.png", picture(1))
    for n in range(10):
        put(here / f"coco/train2017/{n:012d}.jpg", picture(n, "JPEG"))


def csv(here: Path) -> None:
    rows = [f"{base64.b64encode(picture(n % 3)).decode()},caption {n % 3}" for n in range(9)]
    put(here / "inputs.csv", "b64string_images,caption\n" + "\n".join(rows))
    put(here / "questions.csv", "key,file,ask,reply\nk1,1.png,How many?,3\n")
    put(here / "1.png", picture(1))


def plain_text(here: Path) -> None:
    put(here / "input.txt", "".join(f"SPEAKER {n}:\nA line of some words, number {n}.\n\n" for n in range(60)))


def cauldron(here: Path) -> None:
    rows = [{"images": [image(n)], "texts": [{"user": "Q", "assistant": "A", "source": "s"}]} for n in range(4)]
    parquet(here / "the_cauldron/ai2d/train-00000-of-00001.parquet", rows[:1])
    parquet(here / "the_cauldron/localized_narratives/train-00000-of-00002.parquet", rows[1:])


def photos(here: Path) -> None:
    parquet(here / "photos/train-00000-of-00001.parquet", [{"photo": image(1), "description": "a dog", "other": 1}])


def wds(here: Path) -> None:
    (here / "cc12m").mkdir()
    with webdataset.TarWriter(str(here / "cc12m/00000.tar")) as writer:
        for n in range(3):
            writer.write({"__key__": f"{n:09d}", "jpg": picture(n, "JPEG"), "txt": "text", "json": {"alt": f"alt {n}", "url": "u"}})


def imagefolder(here: Path) -> None:
    for split in ("train", "test"):
        put(here / f"pets/{split}/metadata.jsonl", [{"file_name": "1.png", "text": "a dog on a sofa"}])
        put(here / f"pets/{split}/1.png", picture(len(split)))
    for suffix, content in ((".jpg", picture(1, "JPEG")), (".txt", b"a caption"), (".json", b"{}")):
        put((here / "shots/00000/000000000").with_suffix(suffix), content)
    for index in range(20):
        put(here / f"animals/{['cat', 'dog'][index % 2]}/{index}.png", picture(index))


def saved(here: Path) -> None:
    datasets.Dataset.from_list([{"photo": image(1), "said": "a dog"}]).save_to_disk(here / "saved")


def questions(here: Path) -> None:
    row = {"question": "Q", "image_id": "a1", "question_id": 7, "answers": ["x", "y", "y"], "set_name": "train"}
    put(here / "textvqa/TextVQA_0.5.1_train.json", {"data": [row]})
    put(here / "textvqa/train_images/a1.jpg", picture(1, "JPEG"))
    put(
        here / "docvqa/val_v1.0.json",
        {"data": [{"questionId": 1, "question": "Q", "image": "documents/d.png", "answers": ["a"], "data_split": "val"}]},
    )
    put(here / "docvqa/documents/d.png", picture(2))
    put(here / "chartqa/train/train_human.json", [{"imgname": "1.png", "query": "Q", "label": "3"}])
    put(here / "chartqa/train/png/1.png", picture(3))
    problem = {"question": "Q", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "image.png", "split": "train"}
    put(here / "scienceqa/problems.json", {"1": problem, "2": {**problem, "image": None}})
    put(here / "scienceqa/images/train/1/image.png", picture(4))
    for n in range(8):
        for name in ("easy_vqa", "chartqa-jsonl"):
            put(here / f"{name}/images/{n}.png", picture(n))
    for name in ("easy_vqa", "chartqa-jsonl"):
        put(here / f"{name}/qa.jsonl", [{"image": f"images/{n % 8}.png", "question": "Q?", "answer": "yes"} for n in range(16)])
    put(here / "nlvr/nlvr.jsonl", [{"image": "images/1.png", "sentence": "There is a box", "label": True}])
    put(here / "nlvr/images/1.png", picture(5))
    line = {"text": "ABC", "box_xyxy_frac": [0.1, 0.1, 0.5, 0.2]}
    put(here / "sroie/receipts.jsonl", [{"image": "images/5.jpg", "fields": {"total": "31.00"}, "lines": [line]}])
    put(here / "sroie/images/5.jpg", picture(6, "JPEG"))


def captions(here: Path) -> None:
    row = {"image_id": "a1", "caption_str": "a sign", "reference_strs": ["a sign", "the sign"], "set_name": "train"}
    put(here / "textcaps/TextCaps_0.1_train.json", {"data": [row, row]})
    put(here / "textcaps/train_images/a1.jpg", picture(1, "JPEG"))
    row = {"dataset_id": "mscoco_val2017", "image_id": "139", "annotator_id": 7, "caption": "In this image we can see a room."}
    put(here / "narratives/coco_val_captions.jsonl", [row, {**row, "annotator_id": 8, "caption": "A room."}])
    put(here / "coco/val2017/000000000139.jpg", picture(3, "JPEG"))
    row = {"question_id": "0", "image": image(2), "question": "Q", "answer": ["the bush"], "bbox": [1.0, 1.0, 3.0, 3.0]}
    parquet(here / "refcocog/data/val-00000-of-00001.parquet", [row])


def urls(here: Path) -> None:
    """The server and the open gate are those of the fixture `web`."""
    rows = [{"image_url": f"{WEB_URL}/ok/{n}", "caption": f"caption {n}", "transcripts": ["t"]} for n in range(4)]
    parquet(here / "pixmo-cap/data/train-00000-of-00001.parquet", rows)
    put(here / "list.tsv", "link\talt\n" + "".join(f"{WEB_URL}/ok/{n}\tcaption {n}\n" for n in range(9)))


def nothing(here: Path) -> None:
    """Scenes need no files."""


PAGES: dict[str, Callable[[Path], None]] = {
    "data": data,
    "formats/captions": captions,
    "formats/cauldron": cauldron,
    "formats/coco": coco,
    "formats/csv": csv,
    "formats/flickr8k": flickr8k,
    "formats/hf": saved,
    "formats/imagefolder": imagefolder,
    "formats/llava": llava,
    "formats/parquet": photos,
    "formats/questions": questions,
    "formats/records": records,
    "formats/scenes": nothing,
    "formats/text": plain_text,
    "formats/urls": urls,
    "formats/webdataset": wds,
}
WEB_URL = "http://images.test"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server on this host that is found under a public name; only its address and port are let through for it."""
    with serving() as server:
        find = gate.Gate.addresses

        async def addresses(self: gate.Gate, host: str, port: int) -> list[Address]:
            return [ip_address("127.0.0.1")] if host == "images.test" else await find(self, host, port)

        connect = gate.httpcore.AnyIOBackend.connect_tcp

        async def connect_tcp(self: httpcore.AnyIOBackend, host: str, port: int, *rest: Any) -> httpcore.AsyncNetworkStream:
            return await connect(self, host, server.port if port == 80 else port, *rest)

        monkeypatch.setattr(gate.Gate, "addresses", addresses)
        monkeypatch.setattr(gate.httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
        yield


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", PAGES)
def test_every_command_on_a_page_works_on_files_as_the_page_draws_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    name: str,
) -> None:
    if name == "formats/urls":
        request.getfixturevalue("web")
    PAGES[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = page_commands(name)
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["sightline", "data", "prepare"], command
        with pytest.raises(SystemExit) as caught:
            main([*words[1:], "--json", "--workers", "0"])
        out, err = capsys.readouterr()
        assert not caught.value.code, f"{command}\n{err}"
        result = json.loads(out)
        assert result["input"] == result["ok"] > 0, f"{command}\n{out}"
        dataset = open_dataset(tmp_path / result["out"])
        assert len(dataset) == result["ok"]
        dataset.verify()


def test_every_page_is_tested_and_every_format_has_a_page() -> None:
    pages = {f"formats/{path.stem}" for path in (DOCS / "formats").glob("*.md")}
    assert pages | {"data"} == set(PAGES)
    table = dict(
        re.findall(r"^\| `([a-z0-9_]+)` \| .* \| \[\w+\]\((formats/\w+)\.md\) \|$", (DOCS / "data.md").read_text(), re.MULTILINE)
    )
    assert set(table) == set(FORMATS)
    for name, page in table.items():
        assert f"--format {name} " in (DOCS / f"{page}.md").read_text("utf-8"), f"{page} shows no command for {name}"


def test_every_reason_for_a_skip_is_in_the_table() -> None:
    """Gathered from the code, so that none is forgotten."""
    told = set(re.findall(r"`([a-z_]+)`", (DOCS / "data.md").read_text("utf-8").partition("## Reasons for a skip")[2]))
    files = [SOURCES / "types.py", SOURCES / "runtime/workers.py"]
    files += [file for name in ("download", "images", "prepare", "readers") for file in (SOURCES / "data" / name).glob("*.py")]
    for file in files:
        text = file.read_text("utf-8")
        reasons = set(re.findall(r'(?:RecordError|_Passing|refused)\(\s*"([a-z_]+)"|TaskFailure\(\s*"([a-z_]+)"', text))
        missing = {reason for pair in reasons for reason in pair if reason} - told
        assert not missing, f"{file.name}: {missing}"


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [DOCS / "data.md", DOCS / "downloads.md", *(DOCS / "formats").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
