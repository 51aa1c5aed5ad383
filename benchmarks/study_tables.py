"""The tables and plots of docs/study.md, from the records of study.py.

    python benchmarks/study_tables.py

Each table lies between `<!-- SOURCE PART -->` or `<!-- claims -->` and `<!-- end -->`; what else the document says is
left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import study
from recyclelora.files import read_json, write_text
from recyclelora.study.analyze import MEASURES
from recyclelora.study.summary import UNSEEN, Comparison, draw_comparison, summarise
from study import ABLATIONS, CORE, OPTIONS, OURS, SEEN, recorded

DOCUMENT = Path(__file__).parents[1] / "docs" / "study.md"
CLAIMS: dict[str, tuple[str, str]] = {
    "adapting beats the frozen backbone": (OURS, "frozen"),
    "better than full fine-tuning": (OURS, "full"),
    "better than a plain LoRA of the same size": (OURS, "lora"),
    "better than a plain LoRA at the same scale, 1/36": (OURS, "lora s=1/36"),
    "better than a plain LoRA at the same scale, 1": ("recyclelora s=1", "lora"),
    "better than PiSSA": (OURS, "pissa"),
    "better than SoMA": (OURS, "soma"),
    "better than Rein": (OURS, "rein"),
    "the sub adapter adds to the main one": (OURS, "recyclelora-main"),
    "main alone is better than sub alone": ("recyclelora-main", "recyclelora-sub"),
    "a scale of 1/36 is better than one of 1": (OURS, "recyclelora s=1"),
    "a scale of 1/36 is better than one of 1 for a plain LoRA": ("lora s=1/36", "lora"),
}
"""What says that the first of two variants is better than the second."""


def tables(source: str, pictures: Path) -> dict[str, str]:
    """Markdown of what is there of a source, by the name of its place in the document; draws the plots as well."""
    cells = recorded(source)
    parts = {
        part: [cell for cell in cells if cell.variant in names and cell.variant != OURS]
        for part, names in (("core", CORE), ("ablations", ABLATIONS), ("options", OPTIONS))
    }
    seeds = {cell.seed for cell in parts["ablations"]}
    alone = [cell for cell in parts["core"] if cell.variant == "recyclelora-main" and cell.seed in seeds]
    parts["ablations"] = [*(replace(cell, variant="sub rank 0") for cell in alone), *parts["ablations"]]
    made = {}
    for part, others in parts.items():
        seeds = {cell.seed for cell in others}
        own = [cell for cell in cells if cell.variant == OURS and cell.seed in seeds]
        if own and others:
            chosen, baselines = [*own, *others], [OURS]
            if part == "core":
                chosen.sort(key=cells.index)
                baselines.append("frozen")
            found = [summarise(chosen, each, [SEEN[source]]) for each in baselines]
            hours = sum(cell.wall_seconds or 0 for cell in chosen) / 3600
            made[part] = f"{_scores(found)}\n\n{len(chosen)} trainings, {hours:.1f} hours of their processes."
            for kind, drawing in zip(("", "-difference"), draw_comparison(found[0]), strict=True):
                write_text(pictures / f"{source}-{part}{kind}.svg", drawing)
    return made | _rates(source) | _analysis(source)


def claims() -> str:
    """A table of differences on unseen domains, with what they say of each claim."""
    rows = [["", *SEEN]]
    for claim, (one, other) in CLAIMS.items():
        found = []
        for source in SEEN:
            both = [cell for cell in recorded(source) if cell.variant in (one, other)]
            row = summarise(both, other, [SEEN[source]]).variants.get(one, {})
            d = row.get("difference", {}).get(UNSEEN)
            found.append("" if not d else f"{_signed(d)} {_verdict(d)}")
        rows.append([claim, *found])
    return _table(rows)


def _verdict(difference: Mapping[str, float]) -> str:
    """Of one seed an interval tells of images alone."""
    if difference["seeds"] > 1 and difference["low"] > 0:
        return "**holds**"
    return "**the opposite**" if difference["seeds"] > 1 and difference["high"] < 0 else "not shown"


def _signed(d: Mapping[str, float]) -> str:
    return f"{100 * d['mean']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"


def write_tables(document: Path) -> list[str]:
    """Put what there is into its places in the document, and the plots into the folder of its name beside it.

    Returns:
        The places that were filled.
    """
    text = document.read_text(encoding="utf-8")
    pictures = document.with_suffix("")
    made = {f"{source} {part}": table for source in SEEN for part, table in tables(source, pictures).items()}
    filled = []
    for place, table in {**made, "claims": claims()}.items():
        content = f"<!-- {place} -->\n\n{table}\n\n<!-- end -->"
        place_of = re.compile(f"<!-- {re.escape(place)} -->.*?<!-- end -->", re.DOTALL)
        text, count = place_of.subn(lambda _, content=content: content, text)
        filled += [place] * count
    write_text(document, text)
    return filled


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of rows of cells, the first being the head."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def _analysis(source: str) -> dict[str, str]:
    file = study.RESULTS / f"{source}-analysis.json"
    found = read_json(file) if file.is_file() else {}
    columns = [
        (name if len(run["means"]) == 1 else f"{name}: {role}", run["means"][role], run["cka"])
        for name, run in found.items()
        for role in run["means"]
    ]
    if not columns:
        return {}
    rows = [["", *(label for label, _, _ in columns)]]
    for key, title in MEASURES.items():
        rows.append([title, *("–" if means[key] is None else f"{means[key]:.3g}" for _, means, _ in columns)])
    for label in columns[0][2]:
        rows.append([f"CKA of the last block, {label}", *(f"{cka[label][-1]:.2f}" for _, _, cka in columns)])
    return {"weights": _table(rows)}


def _rates(source: str) -> dict[str, str]:
    file = study.RESULTS / source / "rates.json"
    rows = [["", "chosen", "mIoU on validation images of the source, by rate"]]
    for variant, row in read_json(file).items() if file.is_file() else ():
        tried = ", ".join(f"{rate}: {100 * miou:.1f}" for rate, miou in row["miou"].items())
        rows.append([variant, f"{row['chosen']:g}", tried])
    return {"rates": _table(rows)} if len(rows) > 1 else {}


def _scores(found: Sequence[Comparison]) -> str:
    """Scores, and the differences to each baseline in the last column; what is the same for all is left out."""
    columns = found[0].columns
    differences = [f"{columns[-1]}, minus {each.baseline}" for each in found]
    rows = [["", *columns, *differences, "seeds", "trained", "s", "rate"]]
    for name, row in found[0].variants.items():
        cells = [name]
        for column in columns:
            score = row.get("scores", {}).get(column)
            deviation = f" ± {100 * score['std']:.1f}" if score and score["std"] is not None else ""
            cells.append(f"{100 * score['mean']:.1f}{deviation}" if score else "diverged")
        for each in found:
            d = each.variants[name].get("difference", {}).get(columns[-1])
            cells.append(_signed(d) if d else "")
        cells += [str(len(row["seeds"])), f"{row['parameters']['adapters']:,}" if "parameters" in row else ""]
        cells += [f"{row['scale']:.3g}" if row["scale"] else "–", f"{row['lr']:g}"]
        rows.append(cells)
    head, body = rows[0], list(zip(*rows[1:], strict=True))
    kept = [i for i, title in enumerate(head) if title not in ("trained", "s", "rate") or len(set(body[i])) > 1]
    return _table([[row[i] for i in kept] for row in rows])


if __name__ == "__main__":
    print(f"{DOCUMENT.name}: {', '.join(write_tables(DOCUMENT))}")
