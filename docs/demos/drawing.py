# MIT licence. Part of Marginalia.
"""What the demonstrations share: one flag, and pictures of one style."""

import argparse
import io
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"


def out_flag(about: str) -> str:
    """What follows --out on the command line, or nothing."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--out", default="", help="a PNG file for the picture")
    return parser.parse_args().out


def panels(number: int, height: float = 3.0) -> tuple[Any, list]:
    """A figure and its panels, side by side."""
    from matplotlib.figure import Figure  # only where a picture is asked for

    figure = Figure((4.2 * number, height), layout="constrained")
    axes = list(figure.subplots(1, number, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#E6E6E6")
        ax.set_axisbelow(True)
        ax.title.set_fontsize(10)
    return figure, axes


def save(figure: Any, out: str) -> None:
    """Write it with 64 colours, which is enough for lines and small for a repository."""
    from PIL import Image

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    image = Image.open(data).convert("RGB").quantize(64)
    image.save(out, optimize=True)
    print(f"{out}: {Path(out).stat().st_size / 1000:.0f} KB")
