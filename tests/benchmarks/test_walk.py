"""What the walks are counted from: the functions of a made-up package that a call enters."""

import importlib
import sys

import pytest

import walk

ENTRY = """\
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from {package}.parts import inner


def on_import():
    return 3


NUMBER = on_import()


class Entry:
    size = len([on_import() for _ in range(2)])

    def start(self):
        from {package} import late

        def add(number):
            return number + 1

        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(in_a_thread, add).result()
        return found + decorated(
            1
        ) + inner.outer(add) + late.late()


@cache
def decorated(
    number,
):
    return number


def in_a_thread(call):
    return call(NUMBER)


def never():
    return on_import()
"""

INNER = """\
LATER = lambda number: (
    number + 2
)


def outer(call):
    numbers = [twice(call(number)) for number in range(2)]
    return sum(map(lambda number: LATER(number), numbers))



def twice(number):
    return 2 * number
"""

LATE = """\
def made():
    return 5


FIVE = made()


def late():
    return FIVE
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    name = "made_up_walk"
    root = tmp_path / name
    (root / "parts").mkdir(parents=True)
    for file, text in {"entry.py": ENTRY, "parts/inner.py": INNER, "late.py": LATE, "__init__.py": ""}.items():
        (root / file).write_text(text.replace("{package}", name))
    monkeypatch.syspath_prepend(tmp_path)
    yield root
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[each]


@pytest.fixture
def entry(package):
    return importlib.import_module(f"{package.name}.entry").Entry()


def found(walked):
    return [(each.file, each.name, each.first, each.last) for each in walked]


def test_functions_are_whole_and_each_is_counted_once(package, entry):
    walked = walk.functions_entered(entry.start, package)
    assert found(walked) == [
        ("entry.py", "Entry.start", 17, 27),
        ("entry.py", "decorated", 30, 34),
        ("parts/inner.py", "outer", 6, 8),
        ("parts/inner.py", "twice", 12, 13),
        ("parts/inner.py", "<lambda>", 1, 3),
        ("late.py", "late", 8, 9),
        ("entry.py", "in_a_thread", 37, 38),
    ]
    assert walk.lines_by_file(walked) == {"entry.py": 18, "parts/inner.py": 8, "late.py": 2}
    assert walk.changes_of_file(walked) == 3


def test_a_walk_ends_where_the_function_named_first_returns(package, entry):
    walked = walk.functions_entered(entry.start, package, until="outer")
    assert [each.name for each in walked] == ["Entry.start", "decorated", "outer", "twice", "<lambda>", "in_a_thread"]


def test_nothing_is_recorded_after_an_error(package, entry):
    def fail():
        raise ValueError("no way")

    before = sys.getprofile()
    with pytest.raises(ValueError, match="no way"):
        walk.functions_entered(fail, package)
    assert sys.getprofile() is before is None
    assert walk.functions_entered(lambda: None, package) == []


def test_two_functions_on_one_line_share_it():
    pair = [walk.Function("a.py", name, 4, 4) for name in ("f.<lambda>", "g.<lambda>")]
    assert walk.lines_by_file(pair) == {"a.py": 1}


def test_the_table_names_files_and_functions_where_asked(capsys):
    measured = {"a way": [walk.Function("a.py", "f", 1, 4), walk.Function("b.py", "g", 2, 3)]}
    walk.print_walks(measured)
    assert capsys.readouterr().out.splitlines() == ["walk   files  lines  changes of file",
                                                    "a way      2      6                1"]  # fmt: skip
    walk.print_walks(measured, files=True, functions=True)
    rest = capsys.readouterr().out.splitlines()[2:]
    assert rest == ["", "a way", "      4  a.py", "      2  b.py", "      4  a.py:1  f", "      2  b.py:2  g"]
