"""Reads a page as a browser does."""

import base64
import io
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
from PIL import Image

LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
"""The attributes by which a page loads or links something."""


class Page(HTMLParser):
    """Tags with their attributes, texts by their tag, and the tables as rows of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.tables, self.best, self.open = [], defaultdict(list), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("br", "img", "meta"):  # they have no end
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "td" and ("class", "best") in attributes:
            self.best.append((len(self.tables[-1]) - 1, len(self.tables[-1][-1]) - 1))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]].append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] = f"{self.tables[-1][-1][-1]} {data}".strip()

    def images(self):
        """The pictures in their order, as arrays."""
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))) for src in sources]
