"""How figures look and are written: sizes for print, colours, text that fits, PDF and PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from mldd.loop import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.4, 7.0  # inches: one and two columns of a journal's page
# Okabe and Ito's colours, which all kinds of colour vision tell apart, without yellow (too pale on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
TITLE, TEXT = 8.0, 7.0  # points
_LINE = 1.25  # line spacing of matplotlib with a little air, in heights of the text
_HANDLE = 3.4  # of a legend's entry, in heights of the text: handle, and space before and after the label
_STYLE: dict[str, Any] = {
    "font.size": TEXT,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelpad": 2.0,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.titlesize": TITLE,
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "legend.frameon": False,
    "legend.handlelength": 2.0,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 0.9,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.0,
    "pdf.fonttype": 42,  # fonts that an editor can change and a publisher takes
}


def figure_files(path: str | Path) -> list[Path]:
    """Return the files that a figure is written to: PDF and PNG, or the one kind that the suffix says.

    Parameters
    ----------
    path : str or Path
        With or without a suffix.

    Raises
    ------
    ValueError
        The suffix is no kind of picture.

    Examples
    --------
    >>> [file.name for file in figure_files("compare")], [file.name for file in figure_files("compare.svg")]
    (['compare.pdf', 'compare.png'], ['compare.svg'])
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    if not path.suffix:
        return [path.with_suffix(suffix) for suffix in (".pdf", ".png")]
    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"the figure {path} must end in one of .{' .'.join(kinds)}, or have no suffix: PDF and PNG")
    return [path]


@contextmanager
def drawing(path: str | Path | None, size: tuple[float, float], title: str) -> Iterator[Figure]:
    """Yield an empty figure and write it in the end; nothing global (pyplot, settings) is touched.

    Parameters
    ----------
    path : str, Path or None
        See `figure_files`; None: it is not written. A file is replaced when the new one is whole.
    size : tuple[float, float]
        Inches, width and height; a title comes on top.
    title : str
        Above the figure; empty: none.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = [] if path is None else figure_files(path)
    with matplotlib.rc_context(cast(Any, _STYLE)):
        figure = Figure(figsize=size, dpi=300, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if title:
            text = wrapped(title, size[0] - 0.1, TITLE)
            figure.suptitle(text)
            _grow(figure, text.count("\n") + 1, TITLE)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # whoever draws it again gets the same figure
        for file in files:
            with replacing(file) as new:
                figure.savefig(new)


def wrapped(text: str, inches: float, points: float = TEXT) -> str:
    """Return text with line breaks such that no line is wider than `inches`; dollars are no mathematics.

    Lines end behind a space, comma, colon, slash or equals sign where there is one behind their first third.

    Parameters
    ----------
    text : str
        What a user has written, a problem or a path say.
    inches : float
        Width.
    points : float
        Size of the letters.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)  # half of a pair, line breaks, bells
    lines = []
    while text:
        fit = len(text)
        while fit > 1 and width(text[:fit], points) > inches:
            fit -= max(1, fit // 20)
        if fit < len(text):
            end = max(text.rfind(mark, 0, fit) for mark in " ,:/=") + 1
            fit = end if end > fit // 3 else fit
        lines.append(text[:fit].rstrip())
        text = text[fit:].lstrip()
    return "\n".join(lines).replace("$", r"\$")


def width(text: str, points: float = TEXT) -> float:
    """Return how many inches a line of text is wide.

    Parameters
    ----------
    text : str
        One line.
    points : float
        Size of the letters.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=points), False)[0]) / 72


def add_legend(figure: Figure, handles: Sequence[Artist], title: str = "") -> None:
    """Put a legend below a figure, which grows by its height: as many columns as fit, long labels on several lines.

    Parameters
    ----------
    figure : Figure
        All its axes are there.
    handles : sequence of Artist
        Each with its label; none: no legend.
    title : str
        Above the entries; empty: none.
    """
    if not handles:
        return
    room = figure.get_figwidth() - 0.1
    frame = _HANDLE * TEXT / 72
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), room - frame))
    labels = [str(handle.get_label()) for handle in handles]
    widest = max(width(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(len(labels), int(room / (widest + frame + 0.05))))
    rows = -(-len(labels) // columns)
    shown = wrapped(title, room)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, title=shown or None)
    lines = [label.count("\n") + 1 for label in labels]
    tallest = max(sum(lines[start : start + rows]) for start in range(0, len(lines), rows))
    _grow(figure, tallest + (shown.count("\n") + 1 if shown else 0) + 1, TEXT)


def add_titles(figure: Figure, axes: NDArray[Any], titles: Sequence[str], spare: float = 0.7) -> None:
    """Put titles above panels, long ones on several lines; the figure grows by their height.

    Parameters
    ----------
    figure : Figure
        The figure.
    axes : ndarray of Axes, shape (columns,) or (rows, columns)
        Its panels, of which the last ones may have no title.
    titles : sequence of str
        In the order of the panels.
    spare : float
        Inches of the width that a panel cannot use.
    """
    room = figure.get_figwidth() / axes.shape[-1] - spare
    shown = [wrapped(title, room) for title in titles]
    for ax, text in zip(axes.flat, shown, strict=False):
        ax.set_title(text)
    rows = axes.size // axes.shape[-1]
    _grow(figure, rows * max(text.count("\n") + 1 for text in shown), TEXT)


def _grow(figure: Figure, lines: int, points: float) -> None:
    """Make a figure higher by some lines of text."""
    figure.set_figheight(figure.get_figheight() + lines * _LINE * points / 72)
