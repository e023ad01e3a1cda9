"""A report as a reader sees it."""

from __future__ import annotations

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Text, tags and attributes; every tag is closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes, self.open = "", [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def snippet(study, tmp_path) -> str:
    text = Reader(study.report(tmp_path / "r.html").read_text()).text
    return text[text.index("import noisykernels as nk") : text.index("\nNoise depends")]
