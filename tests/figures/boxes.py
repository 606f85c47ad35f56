"""Where the letters of a figure are, on the canvas of the Agg renderer."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def outside(figure, monkeypatch):
    """Draw a figure anew and return the texts that leave its canvas by more than a pixel."""
    drawn = []
    draw = Text.draw

    def noting(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", noting)
        FigureCanvasAgg(figure).draw()
    assert drawn, "a figure has text"
    canvas = figure.bbox.padded(1)
    return [
        (text, box.bounds)
        for text, box in drawn
        if not (canvas.contains(box.x0, box.y0) and canvas.contains(box.x1, box.y1))
    ]


def sizes(figure):
    """Return the sizes of all letters in points."""
    return {text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()}
