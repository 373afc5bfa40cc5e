"""Draw docs/images/fold.svg: a three-branch block before and after folding."""

from __future__ import annotations

from pathlib import Path

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2933}"
    ".box{fill:#fff;stroke:#52606d;stroke-width:1.2}"
    ".conv{fill:#dbeafe}.bn{fill:#fef3c7}.one{fill:#bbf7d0}"
    ".wire{stroke:#52606d;stroke-width:1.4;fill:none;marker-end:url(#tip)}"
    ".quiet{fill:#52606d}"
)


def box(x: int, y: int, text: str, kind: str, width: int = 92) -> str:
    """One operation."""
    return (
        f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="30" rx="6"/>'
        f'<text x="{x + width // 2}" y="{y + 20}" text-anchor="middle">{text}</text>'
    )


def wire(*points: tuple[int, int]) -> str:
    """An arrow through points."""
    return f'<path class="wire" d="M{" L".join(f"{x},{y}" for x, y in points)}"/>'


def picture() -> str:
    """The whole drawing."""
    parts = [box(90, 20, "3x3 conv", "conv"), box(200, 20, "BN", "bn")]
    parts += [box(90, 70, "1x1 conv", "conv"), box(200, 70, "BN", "bn"), box(200, 120, "BN", "bn")]
    for y in (35, 85):
        parts += [wire((40, 85), (60, 85), (60, y), (88, y)), wire((182, y), (198, y))]
    parts.append(wire((40, 85), (60, 85), (60, 135), (198, 135)))
    for y in (35, 85, 135):
        parts.append(wire((292, y), (330, y), (330, 85), (346, 85)))
    parts.append('<circle class="box" cx="360" cy="85" r="13"/>')
    parts.append('<text x="360" y="90" text-anchor="middle">+</text>')
    parts += [wire((374, 85), (392, 85)), box(394, 70, "ReLU", "", 60), wire((454, 85), (478, 85))]
    parts.append('<text class="quiet" x="250" y="175" text-anchor="middle">trained</text>')
    parts.append('<text x="505" y="92" text-anchor="middle" font-size="24">=</text>')
    parts += [wire((530, 85), (558, 85)), box(560, 70, "3x3 conv", "one")]
    parts += [wire((652, 85), (668, 85)), box(670, 70, "ReLU", "", 60), wire((730, 85), (754, 85))]
    parts.append('<text class="quiet" x="645" y="175" text-anchor="middle">deployed</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 190" role="img" '
        'aria-label="A block of a 3x3, a 1x1 and an identity branch, each with BN, equals one '
        '3x3 convolution"><style>' + STYLE + "</style><defs>"
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#52606d"/></marker></defs>'
        '<rect width="780" height="190" fill="#ffffff"/>' + "".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("docs", "images", "fold.svg").write_text(picture())
