import io
import sys

import pytest

import limner.progress as module
from limner.progress import progress, say, silent, track, visible


def test_words_go_to_standard_error(capsys: pytest.CaptureFixture[str]):
    say("[bold]as it is[/bold]")
    assert capsys.readouterr() == ("", "[bold]as it is[/bold]\n")


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("Training", 10) as advance:
        for done in range(1, 11):
            now[0] += 6.0
            advance(done, "fast")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Training: 3/10 fast", "Training: 6/10 fast", "Training: 9/10 fast"], "one in 15 seconds"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("Encoding", 4, start=1) as advance:
        advance(3, "[odd] facts")
    assert "Encoding" in terminal.getvalue() and "3/4" in terminal.getvalue()


def test_track_gives_what_it_gets():
    assert list(track(iter("abc"), title="Letters", total=3)) == ["a", "b", "c"]


def test_silence(capsys: pytest.CaptureFixture[str]):
    with silent() as advance:
        advance(1, "facts")
    assert capsys.readouterr() == ("", "")


def test_without_standard_error_nothing_is_said(monkeypatch: pytest.MonkeyPatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        say("unheard")


def test_blanks_and_what_joins_letters_stay_as_they_are():
    words = "a\u00a0b\u3000c \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f52c"
    assert visible(words) == words
    assert visible("a\nb\x1b\u202e\u200b") == r"a\nb\x1b\u202e\u200b"
