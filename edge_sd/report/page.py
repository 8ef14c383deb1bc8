"""What every page of a report is made with: templates, panels of a figure in words, SVG that follows the page's colours, PNG."""

import base64
import io
import re
import statistics
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from edge_sd.files import plain_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of series, on white; in a page's SVG each becomes a property of style.css.j2, which has another one for the dark.
SERIES = ("#1f6fb4", "#c0311e", "#1b7f45", "#8a3fb0", "#a85400", "#00717f", "#7a5c00", "#5f5f5f")
BLUE, RED, GREEN, PURPLE, ORANGE, TEAL, OCHRE, GREY = SERIES
_INK = "#000000"
_WIDTH, _HEIGHT = 4.3, 2.9  # inches: what a phone shows at full width with letters that can be read


@dataclass(frozen=True)
class Panel:
    """One figure and what it says.

    Attributes:
        name: a plain file name without its ending, of no other panel of the page.
        title: what it is of.
        alt: what is seen, for who cannot see it.
    """

    name: str
    title: str
    alt: str
    figure: "Figure"

    def __post_init__(self) -> None:
        if plain_name(self.name) != self.name:
            raise ValueError(f"{self.name!r} is no plain name")

    def svg(self) -> str:
        """For a page: transparent, letters as letters, lines and letters in the page's own colours."""
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _inline(buffer.getvalue(), self.name, self.alt)

    def png(self) -> bytes:
        """For Markdown: on white, with its title."""
        self.figure.suptitle(self.title, fontsize="medium", wrap=True)
        return png(self.figure)


def _inline(svg: str, name: str, alt: str) -> str:
    """A file's SVG as a part of a page: no declarations, names of its own, colours by the page's properties."""
    from markupsafe import escape

    box = re.search(r'viewBox="([^"]+)"', svg)
    body = svg[svg.index("</metadata>") + len("</metadata>") : svg.rindex("</svg>")]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    # Two panels may not have one name for two things.
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', body).replace("xlink:href=", "href=")
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r"; ?font-family: [^;\"]+|font-family: [^;\"]+;? ?", "", body)
    body = re.sub(r"(font: [^;\"]*?\d(?:\.\d+)?px) [^;\"]+", r"\1 sans-serif", body)
    for index, colour in enumerate(SERIES):
        body = body.replace(colour, f"var(--s{index})")
    body = body.replace(_INK, "currentColor")
    view = box.group(1) if box else "0 0 310 209"
    return f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="{view}">{body}</svg>'


def panel(width: float = _WIDTH, height: float = _HEIGHT) -> "tuple[Figure, Axes]":
    """One pair of axes of a panel's size."""
    figure, (ax,) = subplots(1, width, height)
    return figure, ax


def legend(figure: "Figure", columns: int = 2) -> None:
    """What its lines are, below the axes, where it covers none of them."""
    handles = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = {label if len(label) <= 48 else f"{label[:47]}…": handle for label, handle in handles.items()}
    if shown:
        longest = max(map(len, shown))
        figure.legend(
            shown.values(), shown.keys(), loc="outside lower left", ncols=1 if longest > 24 else columns,
            frameon=False, fontsize="small",
        )  # fmt: skip


def subplots(columns: int, width: float = 4.6, height: float = 3.2) -> "tuple[Figure, list[Axes]]":
    """Axes side by side, each of `width` × `height` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for ax in axes:
        ax.grid(color=GREY, alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def template(name: str) -> Any:
    """A template of this folder; it may include others. Text that goes into HTML is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda other: (files("edge_sd.report") / other).read_text("utf-8")),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": in_bytes,
        "middle": statistics.median,
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    }
    return environment.get_template(name)


def in_bytes(count: float | None) -> str:
    """An amount of memory or disk, in the unit that suits it."""
    if count is None:
        return "–"
    size, unit = next(
        ((size, unit) for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if count >= size), (1, "B")
    )
    return f"{count / size:.0f} {unit}" if unit == "B" or count / size >= 100 else f"{count / size:.3g} {unit}"


def png(figure: "Figure") -> bytes:
    """A figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
