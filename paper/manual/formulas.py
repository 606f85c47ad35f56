"""The page of methods in the manual: `paper/methods.md` with its references, as Sphinx reads Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pypandoc

PAPER = Path(__file__).parents[1]
# What MyST reads: tables, formulas between dollars, and nothing that is pandoc's own.
READABLE = "markdown_strict+pipe_tables+tex_math_dollars+backtick_code_blocks-raw_html"


def plain(text: str) -> str:
    """Write formulas with what docutils makes MathML of: it knows neither tags nor dots of a kind that fits."""
    return re.sub(r"\s*\\tag\{(\d+)\}", r" \\qquad (\1)", text).replace(r"\dots", r"\ldots")


def write(folder: Path) -> None:
    """Write the page if it has changed."""
    folder.mkdir(exist_ok=True)
    options = ["--citeproc", f"--bibliography={PAPER / 'paper.bib'}", "--wrap=preserve"]
    source = plain((PAPER / "methods.md").read_text(encoding="utf-8"))
    text = pypandoc.convert_text(source, READABLE, "markdown", extra_args=options)
    path = folder / "methods.md"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
