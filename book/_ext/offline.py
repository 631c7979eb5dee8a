"""Sphinx extension: keep the pages free of other hosts, and accessible.

jupyterquiz writes its JavaScript into the page. That script may load MathJax from
the internet, or fail when MathJax is still loading; both are mended here.
"""

from typing import Any

from sphinx.application import Sphinx

REMOTE_MATHJAX = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-svg.js"
LOCAL_MATHJAX = "../vendor/mathjax/tex-svg.js"


def mend_quiz(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Point the quiz at the MathJax of the site and let it wait for it."""
    body = context.get("body")
    if not body or "jupyterquiz" not in body.lower() and REMOTE_MATHJAX not in body:
        return
    local = context["pathto"](f"_static/{LOCAL_MATHJAX}", resource=True)
    body = body.replace(REMOTE_MATHJAX, local)
    context["body"] = body.replace("version[0] ==", "version?.[0] ==")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("html-page-context", mend_quiz)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
