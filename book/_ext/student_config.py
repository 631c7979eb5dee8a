"""Print the settings of the website without the solutions of the exercises.

Usage: python book/_ext/student_config.py > _config.yml
"""

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def student_config() -> dict:
    """Return the settings of _config.yml, with solutions hidden."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["config"]["hide_solutions"] = True
    local = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {
        name: str(ROOT / path) for name, path in local.items()
    }
    return config


if __name__ == "__main__":
    yaml.safe_dump(student_config(), sys.stdout, allow_unicode=True)
