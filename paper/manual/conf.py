"""How Sphinx builds the manual: `make manual`, or `python -m sphinx -W paper/manual build/manual`.

Pages are Markdown, notebooks are Markdown with code cells; the pages of the interface (`interface.py`) and that of the
methods (`formulas.py`) are written anew by every build. Formulas become MathML, so that a page needs no
network when it is read either.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import formulas  # noqa: E402 (it stands beside this file)
import interface  # noqa: E402 (as does this)

import mldd  # noqa: E402

project = "mldd"
version = release = mldd.__version__
copyright = "the mldd developers"  # noqa: A001 (Sphinx wants this name)

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "myst_nb"]
exclude_patterns = ["requirements.txt"]
html_theme = "furo"
html_title = "mldd"
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_copy_source = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # a cache would keep results of code that has changed
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

# Types stand in the entries of the docstrings, and members of a class are written by autodoc.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
default_role = "code"

# Kernels of notebooks start in a folder of their own, with this checkout's mldd, on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
logging.getLogger("traitlets").setLevel(logging.ERROR)  # no line for every notebook


def math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line."""
    self.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def displayed(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def literal(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Mark formulas as such: what is set in behind an empty line, below text that is not."""
    found: list[str] = []
    for line in lines:
        above = [text for text in found if text]
        after_text = (
            bool(above) and not above[-1].startswith((" ", "-", "*", "=", ">")) and not above[-1].endswith("::")
        )
        if line.startswith("    ") and found and not found[-1] and after_text:
            found += ["::", ""]
        found.append(line)
    lines[:] = found


def setup(app: Sphinx) -> None:
    """Write the pages of the interface and of the methods before Sphinx looks for pages; draw formulas as MathML."""
    app.connect("autodoc-process-docstring", literal, priority=400)  # before numpydoc, which has 500
    interface.write(HERE / "api")
    formulas.write(HERE / "formulas")
    app.add_html_math_renderer("mathml", (math, None), (displayed, None))
