"""Reads pages back, and a text that would run if a page did not escape it."""

from html.parser import HTMLParser

VOID = {"br", "col", "hr", "img", "meta"}


class Reader(HTMLParser):
    """Checks that elements close in order, and keeps what a browser would show and load."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    assert reader.open == []
    return reader


EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;"
