"""Sphinx extension: pages that ask no other host for anything and are accessible.

jupyterquiz writes its JavaScript into the page. That script may load MathJax from the
internet, and fails while MathJax is still loading: both are mended here. sphinx-thebe,
which Jupyter Book always loads, would run cells on a remote machine: it is taken out.
docutils calls footnotes and references a list of no items for screen readers: the
claim is dropped.
"""

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

REMOTE_MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-svg.js"


def mend_quiz(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Point the quiz at the MathJax of the site, and let it wait for it."""
    body = context.get("body")
    if not body or REMOTE_MATHJAX not in body:
        return
    local = context["pathto"](f"_static/{app.config.mathjax_path}", resource=True)
    body = body.replace(REMOTE_MATHJAX, local)
    context["body"] = body.replace("version[0] ==", "version?.[0] ==")


def mend_lists(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Drop the role of lists whose children are not list items."""
    if context.get("body"):
        context["body"] = context["body"].replace('<div role="list" ', "<div ")


def remove_thebe(app: Sphinx, config: Config) -> None:
    """Take the listeners and the style sheet of sphinx-thebe out of the build."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            one for one in listeners if one.handler.__module__ != "sphinx_thebe"
        ]
    styles = app.registry.css_files
    styles[:] = [one for one in styles if one[0] != "sphinx-thebe.css"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("config-inited", remove_thebe)
    app.connect("html-page-context", mend_quiz)
    app.connect("html-page-context", mend_lists)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
