"""Draw what is lost against bits and against channels, from the CSVs: docs/how-much.md and its pictures.

python -m benchmarks.curves            # rewrite them
python -m benchmarks.curves --check    # exit 1 when they are not what the CSVs say
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from html import escape
from pathlib import Path
from statistics import fmean

from benchmarks.manifest import REPOSITORY
from benchmarks.tables import Row, rows, table

PAGE = REPOSITORY / "docs" / "how-much.md"
START, END = "<!-- figures: written by `python -m benchmarks.curves` -->", "<!-- end of figures -->"
BITS = {"W8A8": "8 / 8", "W6A6": "6 / 6", "W4A4": "4 / 4", "W3A3": "3 / 3", "W2A4": "2 / 4"}
"""Settings along the first picture, weights / activations, and how its axis calls them."""
SHARES = {"P30": "30 %", "P50": "50 %"}
METHODS = ("closed_form", "best")

Losses = dict[tuple[str, str], dict[str, tuple[float, float, int]]]
"""(network, method) -> setting -> mean points of top-1 lost over seeds, largest standard error of one, seeds."""

_COLOURS = (
    "#0f6e6e", "#b4591a", "#4a5fb0", "#8a3f7c", "#6f9a2a", "#c02f2f", "#6b6f76", "#c9a01f", "#2a9fd8", "#000000",
    "#e07aa8", "#8c6d4f", "#34c08b", "#7b4fd0",
)  # fmt: skip
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 58, 190, 34, 46
_TICKS = (0, 1, 2, 5, 10, 20, 40, 60, 80)


def losses() -> Losses:
    """What the two tables of results tell of the settings drawn, every layer at its bits, no real image seen."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows("accuracy") + [one for one in rows("images") if one["images_from"].startswith("own")]:
        if row["method"] in METHODS and row["protocol"] == "layer_inputs" and row["setting"] in BITS | SHARES:
            known = found[row["network"], row["method"]][row["setting"]]
            if all(one["seed"] != row["seed"] for one in known):
                known.append(row)
    return {
        key: {
            setting: (
                fmean(float(one["fp32_top1"]) - float(one["top1"]) for one in several),
                max(float(one["standard_error"]) for one in several),
                len(several),
            )
            for setting, several in settings.items()
        }
        for key, settings in sorted(found.items())
    }


def pages() -> dict[Path, str]:
    """Files and what they should hold."""
    told = losses()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    body = "\n\n".join(["", _tables(told), ""])
    return {
        PAGE: before + START + body + END + after,
        PAGE.parent / "curves" / "bits.svg": picture(told, BITS, "bits of weights / activations"),
        PAGE.parent / "curves" / "channels.svg": picture(told, SHARES, "share of inner channels removed"),
    }


def picture(told: Losses, settings: dict[str, str], axis: str) -> str:
    """Points lost, on a square-root scale, one line for each network and method."""
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    worst = max((found[s][0] for found in told.values() for s in settings if s in found), default=1.0)
    names = sorted({network for (network, _), found in told.items() if any(s in found for s in settings)})
    step = wide / max(1, len(settings) - 1)

    def height(loss: float) -> float:
        return _TOP + tall * math.sqrt(max(0.0, loss) / worst)

    marks = ['<text x="6" y="16" class="t">points of top-1 lost (square-root scale, 0 at the top)</text>']
    for tick in (tick for tick in _TICKS if tick <= worst):
        y = height(tick)
        marks.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" class="e">{tick}</text>')
    for place, text in enumerate(settings.values()):
        marks.append(f'<text x="{_LEFT + place * step:.1f}" y="{_HEIGHT - 24}" class="m">{text}</text>')
    marks.append(f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 6}" class="m">{escape(axis)}</text>')
    for (network, method), found in told.items():
        known = [(place, found[s]) for place, s in enumerate(settings) if s in found]
        if not known:
            continue
        colour, dash = _COLOURS[names.index(network) % len(_COLOURS)], ' stroke-dasharray="6 4"' * (method == "best")
        spots = [(_LEFT + place * step, height(loss), loss, error) for place, (loss, error, _) in known]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in spots)
        marks.append(f'<polyline points="{line}" stroke="{colour}"{dash}/>')
        for x, y, loss, error in spots:
            fill = "#ffffff" if method == "best" else colour
            marks.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"><title>'
                f"{escape(network)}, {method}: {loss:.2f} points, one standard error {error:.2f}</title></circle>"
            )
    for place, network in enumerate(names):
        y = _TOP + 10 + 20 * place
        marks.append(
            f'<circle cx="{_WIDTH - _RIGHT + 22}" cy="{y - 4}" r="5" fill="{_COLOURS[place % len(_COLOURS)]}"/>'
        )
        marks.append(f'<text x="{_WIDTH - _RIGHT + 34}" y="{y}">{escape(network)}</text>')
    y = _TOP + 24 + 20 * len(names)
    marks.append(f'<text x="{_WIDTH - _RIGHT + 16}" y="{y}">full line: closed_form</text>')
    marks.append(f'<text x="{_WIDTH - _RIGHT + 16}" y="{y + 18}">dashes, open dots: best</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">'
        "<style>text{font-size:12px;fill:#333}.t{font-weight:bold}.e{text-anchor:end}.m{text-anchor:middle}"
        "line{stroke:#ddd}polyline{fill:none;stroke-width:2}circle{stroke-width:2}</style>"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>{"".join(marks)}</svg>\n'
    )


def _tables(told: Losses) -> str:
    """The same numbers as a table: points of top-1 lost, and the standard error of one seed's figure."""
    columns = {**BITS, **SHARES}
    body = []
    for (network, method), found in told.items():
        cells = [f"{found[s][0]:.2f} ± {found[s][1]:.2f}" if s in found else "" for s in columns]
        body.append([f"{network} ({_fp32(network)})", method, *cells])
    header = ["network (fp32 top-1)", "recipe", *BITS.values(), *(f"{share} gone" for share in SHARES.values())]
    return table(header, body)


def _fp32(network: str) -> str:
    return next((row["fp32_top1"] for row in rows("accuracy") + rows("images") if row["network"] == network), "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path, text in pages().items() if not options.check else ():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(REPOSITORY)}: {'is not what the CSVs say' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
