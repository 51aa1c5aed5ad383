"""Self-contained HTML pages, from the templates; all of them extend `page.html.j2`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def write_page(path: str | Path, template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> Path:
    """Write a page whole or not at all; an existing file is replaced."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("recyclelora"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= dict(filters)
    page = environment.get_template(template).render(**values)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path
