"""The likely format of a source that was given without one."""

from pathlib import Path

import pytest

from sightline.data.readers.guess import format_needed, likely_formats


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("folder/Flickr8k.token.txt", "a.jpg#0\ta dog\n", ["flickr8k"]),
        ("folder/captions.txt", "image,caption\n", ["flickr8k"]),
        ("folder/captions.jsonl", "{}\n", ["flickr8k", "coco"]),
        ("folder/records.jsonl", "{}\n", ["records"]),
        ("folder/captions_val2017.json", "{}", ["coco"]),
        ("folder/00000.tar", "", ["webdataset"]),
        ("folder/nlvr.jsonl", "", ["nlvr"]),
        ("folder/qa.jsonl", "", ["chartqa", "easy_vqa"]),
        ("folder/train-0.parquet", "", ["parquet"]),
        ("folder/dogs/a.jpg", "", ["imagefolder"]),
        ("folder/notes.pdf", "", []),
        ("inputs.csv", "b64string_images,caption\n", ["csv"]),
        ("laion.csv", 'URL,"TEXT"\n', ["urls"]),
        ("shakespeare.txt", "First Citizen:", ["text"]),
        ("val.json", '{"info": {}, "licenses": [], "images": []}', ["coco"]),
        ("chat.json", '[{"id": "1", "image": "a.jpg", "conversations": []}]', ["llava"]),
        ("long.json", '[{"id": "1", "image": "a.jpg", "conversations": [{"value": "' + "x" * 100_000, ["llava"]),
        ("lines.jsonl", '{"url": "https://x.test/a.jpg", "caption": "a"}\n{', ["urls"]),
        ("own.jsonl", '{"id": "1", "captions": ["a"]}', ["records"]),
        ("odd.jsonl", "\x00\ud7ff[[[", []),
        ("deep.json", "[" * 50_000, []),
        ("model.bin", "", []),
    ],
)
def test_names_and_beginnings_tell_the_format(tmp_path: Path, name: str, content: str, wanted: list[str]) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(content, "utf-8")
    assert likely_formats(tmp_path / name.split("/")[0]) == wanted


def test_generators_hub_names_and_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert likely_formats(Path("-")) == ["scenes"]
    assert likely_formats(Path("lmms-lab/flickr30k")) == ["hf"]
    (tmp_path / "runs").mkdir()
    assert likely_formats(Path("runs/typo")) == []
    assert likely_formats(tmp_path / "none") == []
    assert likely_formats(Path("/dev/zero")) == []


def test_the_error_has_the_guess_and_all_formats(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\n", "utf-8")
    text = str(format_needed(tmp_path))
    assert f"{tmp_path} looks like 'flickr8k': --format flickr8k." in text
    assert "Formats are cauldron, chartqa, coco, csv," in text
