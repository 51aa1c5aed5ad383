"""Self-contained HTML pages, written from templates; all of these extend `page.html.j2`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from recyclelora.files import write_text


def write_page(path: str | Path, template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> Path:
    """Write a page whole or not at all; an existing file is replaced.

    Args:
        template: name of a file in `templates/`.
        filters: how the template writes values, by name.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("recyclelora.pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= dict(filters)
    path = Path(path)
    write_text(path, environment.get_template(template).render(**values))
    return path
