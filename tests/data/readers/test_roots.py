"""Names from data never lead out of the images folder, and nothing outside is opened."""

from pathlib import Path

import pytest

from sightline.data.readers.roots import FirstOf, Folder
from sightline.errors import RecordError
from tests.data.pictures import put


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret.png",
        "a/../../secret.png",
        "file:///etc/passwd",
        "C:\\x.png",
        "a\\..\\x.png",
        "",
        ".",
        "a\0b",
        "c:x",
    ],
)
def test_names_that_climb_or_are_absolute_are_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.png", b"secret")
    (tmp_path / "root").mkdir()
    with pytest.raises(RecordError) as caught:
        Folder(tmp_path / "root").fetch(name)
    assert caught.value.reason == "path_outside_root"


def test_links_may_stay_inside_but_not_lead_out(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", b"secret")
    root = tmp_path / "root"
    put(root / "a.png", b"a")
    (root / "inside.png").symlink_to("a.png")
    (root / "outside.png").symlink_to("../secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop.png").symlink_to("loop.png")
    assert Folder(root).fetch("inside.png") == root / "a.png"
    for name, reason in [
        ("outside.png", "path_outside_root"),
        ("folder/secret.png", "path_outside_root"),
        ("loop.png", "image_missing"),
        ("none.png", "image_missing"),
        ("x" * 5000, "image_missing"),
    ]:
        with pytest.raises(RecordError) as caught:
            Folder(root).fetch(name)
        assert caught.value.reason == reason, name


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RecordError) as caught:
        Folder(tmp_path).fetch("a.png")
    assert caught.value.reason == "image_not_a_file"


def test_places_are_asked_in_order_and_a_climb_is_not_retried(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    put(first / "a.png", b"1")
    put(second / "a.png", b"2")
    put(second / "b.png", b"2")
    places = FirstOf([Folder(first), Folder(second)])
    assert places.fetch("a.png") == first / "a.png"
    assert places.fetch("b.png") == second / "b.png"
    for name, reason in [("c.png", "image_missing"), ("../1/a.png", "path_outside_root")]:
        with pytest.raises(RecordError) as caught:
            places.fetch(name)
        assert caught.value.reason == reason
