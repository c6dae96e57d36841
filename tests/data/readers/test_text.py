"""Plain text files become pieces of whole lines."""

from pathlib import Path

from tests.data.pictures import put, read


def pieces(folder: Path, text: str, characters: int = 20) -> list[str]:
    items, skips, _ = read("text", put(folder / "input.txt", text), characters=characters)
    assert not skips
    assert [item.record.id for item in items] == [f"piece-{number}" for number in range(len(items))]
    return [item.record.captions[0] for item in items]


def test_pieces_are_consecutive_lines_up_to_the_length(tmp_path: Path) -> None:
    assert pieces(tmp_path, "one two\nthree four\nfive\n") == ["one two\nthree four", "five"]  # 18 characters; 23 with the next
    assert pieces(tmp_path, "0123456789\n012345678\nx\n") == ["0123456789\n012345678", "x"]  # exactly 20
    assert pieces(tmp_path, "a\n\nb\n\n\n\n") == ["a\n\nb"]
    assert pieces(tmp_path, "\n\n  \nlast line without end") == ["last line without en", "d"]


def test_every_visible_character_is_in_one_piece_in_order(tmp_path: Path) -> None:
    text = "".join(f"{'Naïve façade — 東京 ' * (n % 4)}{n}\n" for n in range(200))
    found = pieces(tmp_path, text, 37)
    assert max(map(len, found)) <= 37
    assert "".join("".join(found).split()) == "".join(text.split())


def test_a_line_that_is_not_utf8_is_skipped_with_its_place(tmp_path: Path) -> None:
    items, skips, _ = read("text", put(tmp_path / "input.txt", b"good\n\xff\xfe bad\nalso good\n"))
    assert [item.record.captions for item in items] == [("good\nalso good",)]
    assert [(skip.where, skip.reason) for skip in skips] == [("input.txt:2", "bad_utf8")]
