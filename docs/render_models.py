"""Renew the cards in docs/models.md, all that follows its introduction.

python docs/render_models.py
"""

from pathlib import Path

from outcrop import models
from outcrop.cli._cards import card_lines, network_lines, option_lines

# Options whose networks have other figures than the default's.
VARIANTS = {
    "faultseg3d": ({}, {"version": "2018"}),
    "faultssl": ({"mode": "iou"}, {"mode": "precision"}),
    "deepismnet": ({"use_norm": False}, {"use_norm": True}),
    "gem": ({"base": 64}, {"base": 32}),
}


def main() -> None:
    """Write the page."""
    page = Path(__file__).with_name("models.md")
    parts = [page.read_text().split("\n## ")[0]]
    for name in models.names():
        parts.append(f"\n## {name}\n\n")
        lines = (*card_lines(models.card(name)), *option_lines(name))
        parts += [f"- {heading}: {text}\n" for heading, text in lines]
        for options in VARIANTS.get(name, ({},)):
            network = models.load(name, weights="seeded", **options)
            made = ", ".join(f"{k}={v!r}" for k, v in options.items())
            others = [
                line
                for line in card_lines(network.card)
                if line[0] in ("input 1", "axes") and line not in lines
            ]
            facts = "; ".join(
                f"{heading}: {text}"
                for heading, text in (*others, *network_lines(network, network.card))
            )
            parts.append(f"- {made + ': ' if made else ''}{facts}\n")
    page.write_text("".join(parts))


if __name__ == "__main__":
    main()
