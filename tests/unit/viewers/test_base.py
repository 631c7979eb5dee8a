"""What all viewers share: their style sheet."""

import re

from medimg_utils.viewers import base


def test_each_rule_of_the_style_sheet_is_closed_and_stands_once() -> None:
    text = re.sub(r"/\*.*?\*/", "", base.STYLES, flags=re.DOTALL)
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", text)
    assert len(rules) == text.count("{") - len(re.findall(r"@media[^{]*\{", text))
    assert text.count("{") == text.count("}")
    assert len(set(rules)) == len(rules)
