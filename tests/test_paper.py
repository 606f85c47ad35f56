"""The pages in paper/: results.md is what the files say, numbers of the paper have a file, and all become HTML."""

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "paper"
sys.path.insert(0, str(HERE))  # its scripts import one another

import build  # noqa: E402 (from that folder)


def test_the_page_of_results_is_what_the_files_say():
    assert (HERE / "results.md").read_text(encoding="utf-8") == build.results(), "run python paper/build.py --results"
    for *_, command, _, _ in build.SECTIONS:
        for script in re.findall(r"\S+\.py", command):
            if "/" in script:
                assert (HERE.parent / script).is_file()


def test_numbers_of_the_paper_are_in_a_table_of_results():
    assert build.unfounded((HERE / "paper.md").read_text(encoding="utf-8")) == []
    assert build.unfounded("it takes 98765 steps, as [@someone2024] has `7777` of $1234$") == ["98765"]


def test_citations_are_in_the_bibliography():
    keys = set(re.findall(r"@\w+\{(\w+),", (HERE / "paper.bib").read_text(encoding="utf-8")))
    for page in build.PAGES:
        text = re.sub(r"`[^`]*`|```.*?```", "", (HERE / f"{page}.md").read_text(encoding="utf-8"), flags=re.S)
        cited = {key for group in re.findall(r"\[(@[^]]*)\]", text) for key in re.findall(r"@(\w+)", group)}
        assert cited <= keys


def test_pages_become_html(tmp_path, monkeypatch):
    pytest.importorskip("pypandoc")
    monkeypatch.setattr("sys.argv", ["build.py", "--out", str(tmp_path)])
    build.main()
    text = (tmp_path / "methods.html").read_text(encoding="utf-8")
    assert "<math" in text and "Bank, Randolph" in text and "citation-not-found" not in text
    assert 'href="results.html"' in (tmp_path / "paper.html").read_text(encoding="utf-8")
