"""Check or write the table of run sizes in README.md from the stored results.

Usage: python book/_ext/run_sizes.py [--write]
"""

import re
import sys
from pathlib import Path
from typing import Any

from medimg_utils import results
from medimg_utils.settings import SIZES

README = Path(__file__).parents[2] / "README.md"
START = "<!-- run sizes: written by book/_ext/run_sizes.py -->"
END = "<!-- end of run sizes -->"
HEAD = "| use case | size | hardware | minutes of training | measured (95 % interval) | on |"


def row(name: str, result: dict[str, Any]) -> str:
    """Return one line of the table, for the stored result called ``name``."""
    use_case, size = name.rsplit("-", 1)
    headline = result["headline"]
    measured = [
        f"{name} {value:.2f} ({low:.2f} to {high:.2f})"
        for name, (value, low, high) in headline["measures"].items()
    ]
    cells = [
        use_case,
        f"`{size}`",
        headline["hardware"],
        f"{headline['minutes']:.0f}",
        ", ".join(measured),
        headline["on"],
    ]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """Return the whole table; a sentence where no result is stored yet."""
    stored = [name for name in results.names() if name.rsplit("-", 1)[-1] in SIZES]
    if not stored:
        return "No results are stored yet."
    rows = [row(name, results.load(name)) for name in stored]
    rule = "|---" * HEAD.count(" | ") + "|---|"
    return "\n".join([HEAD, rule, *rows])


def update(text: str) -> str:
    """Return the README with the present table."""
    if START not in text or END not in text:
        raise ValueError(f"README.md lacks the lines {START!r} and {END!r}")
    between = re.escape(START) + r".*?" + re.escape(END)
    wanted = f"{START}\n\n{table()}\n\n{END}"
    return re.sub(between, lambda _: wanted, text, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    """Run the command line."""
    text = README.read_text(encoding="utf-8")
    wanted = update(text)
    if arguments == ["--write"]:
        README.write_text(wanted, encoding="utf-8")
        return 0
    if text != wanted:
        print("README.md: run make run-sizes", file=sys.stderr)
    return int(text != wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
