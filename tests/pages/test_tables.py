"""Lines and tables show names as they are, and nothing in a name steers the terminal."""

from recyclelora.pages.tables import print_table, say


def test_names_cannot_steer_the_terminal(capsys):
    say("a\x1b[31m[bold]\udcff\r\nb")
    print_table(["\x1b]0;x\x07", "n"], [["[red]é", "\x1b[1m1"]], title="[x]\x1b[2J", footer=["\x1b", "\x9b"])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert out.splitlines()[:2] == [r"a\x1b[31m[bold]\udcff\r", "b"]
    for shown in (r"[x]\x1b[2J", r"\x1b]0;x\x07", "[red]é", r"\x1b[1m1", r"\x9b"):
        assert shown in out


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    say("hello")
    assert capsys.readouterr().out == ""
