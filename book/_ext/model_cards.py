"""Check or write the pages of model cards from the stored results.

Usage: python book/_ext/model_cards.py [--write]
"""

import sys
from pathlib import Path

from medimg_utils.challenges import cards

FOLDER = Path(__file__).parents[1] / "reference" / "cards"


def pages(folder: Path = FOLDER) -> dict[Path, str]:
    """Return the text that each page should have."""
    return {folder / f"{name}.md": cards.page(name) for name in cards.WORDS}


def stale(folder: Path = FOLDER) -> list[Path]:
    """Return the pages that are missing or differ from the results."""
    return [
        path
        for path, text in pages(folder).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Run the command line."""
    if arguments == ["--write"]:
        FOLDER.mkdir(exist_ok=True)
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
        return 0
    old = stale()
    for path in old:
        print(f"{path}: run make cards", file=sys.stderr)
    return int(bool(old))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
