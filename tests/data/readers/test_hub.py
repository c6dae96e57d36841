"""Sets that the `datasets` library opens, from folders, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from sightline.errors import DataError, UsageError
from sightline.runtime.optional import require
from tests.data.pictures import picture, prepared, put, read
from tests.data.readers.hub_server import hub_server


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def rows(*numbers: int) -> datasets.Dataset:
    values: list[dict[str, Any]] = [{"photo": {"bytes": picture(n), "path": None}, "said": f"c{n}", "extra": n} for n in numbers]
    return datasets.Dataset.from_list(values).cast_column("photo", datasets.Image())


MAPPING = {"image": "photo", "caption": "said"}


def test_a_saved_set_is_read_split_by_split_without_decoding(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": rows(0, 1), "validation": rows(2)}).save_to_disk(tmp_path / "in")
    items, skips, tally = read("hf", tmp_path / "in", mapping=MAPPING)
    assert not skips
    assert [(item.record.split, item.record.captions, item.images) for item in items] == [
        ("train", ("c0",), (picture(0),)),
        ("train", ("c1",), (picture(1),)),
        ("val", ("c2",), (picture(2),)),
    ]
    assert [item.record.id for item in items] == ["row-0", "row-1", "row-2"]
    assert tally.ignored == {"extra": 3}
    assert prepared("hf", tmp_path / "in", tmp_path / "out", source=_options())["splits"] == {"train": 2, "val": 1}


def _options() -> Any:
    from sightline.data.readers import SourceOptions

    return SourceOptions(mapping=MAPPING)


def test_a_folder_of_data_files_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "in/data").mkdir(parents=True)
    rows(0, 1).to_parquet(tmp_path / "in/data/train-00000-of-00001.parquet")
    rows(2).to_parquet(tmp_path / "in/data/test-00000-of-00001.parquet")
    items, _, _ = read("hf", tmp_path / "in", mapping=MAPPING)
    assert sorted((item.record.split, item.record.captions[0]) for item in items) == [
        ("test", "c2"),
        ("train", "c0"),
        ("train", "c1"),
    ]


def test_a_single_saved_split_is_read(tmp_path: Path) -> None:
    rows(4).save_to_disk(tmp_path / "in")
    assert read("hf", tmp_path / "in", mapping=MAPPING)[0][0].images == (picture(4),)


def test_columns_of_another_name_are_an_error_and_not_text(tmp_path: Path) -> None:
    rows(4).save_to_disk(tmp_path / "in")
    with pytest.raises(DataError, match=r"no column 'image' or 'images'; it has 'photo', 'said', 'extra'"):
        read("hf", tmp_path / "in", mapping={"caption": "said"})


def test_what_cannot_be_opened_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no path here, and as an id on the Hub"):
        read("hf", Path("nobody/nothing"))
    put(tmp_path / "in/x.parquet", b"PAR1 torn")
    with pytest.raises(DataError, match="in"):
        read("hf", tmp_path / "in")


def test_a_package_that_is_missing_comes_with_the_command_to_get_it() -> None:
    with pytest.raises(UsageError, match=r"Reading x needs the package 'no_such_package'\. pip install 'sightline\[data\]'"):
        require("no_such_package.part", "data", "Reading x")


def test_files_on_the_hub_that_no_split_is_made_of_are_named(tmp_path: Path) -> None:
    """In a process of its own, since the address of the Hub is read once."""
    rows = "".join(json.dumps({"text": f"caption {n}", "more": n}) + "\n" for n in range(2)).encode()
    files = {
        ".gitattributes": b"x",
        "README.md": b"---\nlicense: mit\n---\n",
        "data/train.jsonl": rows,
        "old/notes.txt": b"n",
        "photo.png": picture(1),
    }
    with hub_server(files) as address:
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        command = [sys.executable, "-m", "sightline", "data", "prepare", "user/set", "--format", "hf", "--text-only", "--json"]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out")], env=os.environ | home, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ok"], result["splits"]) == (2, {"train": 2})
    assert result["ignored"] == {"file_not_used": 2, "hidden": 1, "image_not_named": 1, "more": 2}
    assert result["ignored_names"] == {
        "file_not_used": ["README.md", "old/notes.txt"],
        "hidden": [".gitattributes"],
        "image_not_named": ["photo.png"],
    }
