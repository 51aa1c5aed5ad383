"""Runs the suite and prints how many checks each method passes: `python tests/adapter/conformance/count.py [-v]`.

With `-v` the failures are listed with their reasons. Other arguments go to pytest.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OWN = "recyclelora's own"
"""The checks that make no sense for LoRA, in `test_own.py`."""


class Counter:
    """A plugin that keeps, for each method, the outcome of every check."""

    def __init__(self) -> None:
        self.methods: dict[str, str] = {}
        self.outcomes: dict[str, dict[str, str | None]] = defaultdict(dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            self.methods[item.nodeid] = str(parameters.get("method", OWN))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        held = self.outcomes[self.methods[report.nodeid]]
        if report.failed:
            held[report.nodeid] = reason(report)
        elif report.when == "call":
            held.setdefault(report.nodeid, None)


def reason(report: pytest.TestReport) -> str:
    """The last error in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join((crash.message if crash else str(report.longrepr)).split())[:160]


def main(arguments: list[str]) -> int:
    counter = Counter()
    listed = "-v" in arguments
    rest = [a for a in arguments if a != "-v"]
    given = [] if any(Path(a.partition("::")[0]).exists() for a in rest) else [str(HERE)]
    status = pytest.main(["--no-header", "--no-summary", "--tb=long", *given, *rest], plugins=[counter])
    for method, outcomes in sorted(counter.outcomes.items()):
        failures = {name: why for name, why in outcomes.items() if why is not None}
        if listed:
            for name, why in failures.items():
                print(f"{method}: {name.rpartition('/')[2]}: {why}")
        print(f"{method}: {len(outcomes) - len(failures)} of {len(outcomes)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
