"""A page that is open in a browser without a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect

# How many viewers of this project the page describes; they appear a little later.
COUNT_VIEWERS = """() => {
  const parse = kind => [...document.querySelectorAll(
    `script[type="application/vnd.jupyter.widget-${kind}+json"]`
  )].map(node => JSON.parse(node.textContent));
  const models = Object.assign({}, ...parse("state").map(one => one.state));
  const id = one => models[one.model_id]?.state._anywidget_id ?? "";
  return parse("view").filter(one => id(one).startsWith("medimg_utils.")).length;
}"""


# Rules of axe about colours: between the themes nothing else differs.
COLOUR = ["color-contrast", "link-in-text-block"]

# A chapter has thousands of coloured words of code in a dozen colours, and hundreds of
# cells in tables: one of each colour is enough to judge its contrast, and saves most of
# the time. axe judges no single character. Words leave the page, since axe walks through
# what is hidden, too; rows may be told apart by another theme.
LEAVE_OUT_WHAT_REPEATS = """() => {
  const seen = new Set();
  const repeats = kinds => {
    const known = kinds.every(kind => seen.has(kind));
    kinds.forEach(kind => seen.add(kind));
    return known;
  };
  const behind = part => {
    const colour = getComputedStyle(part).backgroundColor;
    const clear = colour === "rgba(0, 0, 0, 0)" && part.parentElement;
    return clear ? behind(part.parentElement) : colour;
  };
  // All is read before anything changes: a changed page is laid out anew when asked.
  const words = [...document.querySelectorAll(".highlight pre")].flatMap(pre => {
    const shown = pre.checkVisibility({visibilityProperty: true, opacityProperty: true});
    const block = pre.closest(".cell_input, .cell_output, .admonition")?.className;
    const place = `in ${block} on ${behind(pre)}`;
    return [...pre.querySelectorAll("span")].map(
      word => ({word, shown, kind: `${word.className} ${place}`})
    );
  });
  for (const {word, shown, kind} of words) {
    if (!shown || word.textContent.length < 2 || repeats([kind])) word.remove();
  }
  const all = [...document.querySelectorAll("tbody tr")];
  all.forEach(row => { row.hidden = false; });
  const rows = all.filter(row => row.checkVisibility()).map(row => [
    row,
    [...row.cells].map(cell => {
      const {color, fontSize, fontWeight} = getComputedStyle(cell);
      return [cell.tagName, color, fontSize, fontWeight, behind(cell)].join();
    })
  ]);
  for (const [row, kinds] of rows) {
    row.hidden = repeats(kinds) && !row.querySelector("td *, th *");
  }
}"""


@dataclass
class Visit:
    """An open page and what went wrong while it was open."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: Path, query: str = "") -> Page:
        """Load a local page and wait for its viewers."""
        self.page.goto(path.as_uri() + query, wait_until="load")
        self.page.wait_for_function(
            "n => document.querySelectorAll('.medimg-viewer[data-ready]').length >= n",
            arg=self.viewers(),
            timeout=30_000,
        )
        return self.page

    def viewers(self) -> int:
        """How many viewers the page describes."""
        return int(self.page.evaluate(COUNT_VIEWERS))

    def turn_dark(self) -> None:
        """Ask for the dark theme and wait for it."""
        self.page.emulate_media(color_scheme="dark")
        expect(self.page.locator("html")).to_have_attribute("data-theme", "dark")

    def barriers(
        self, rules: list[str] | None = None, inside: str | None = None
    ) -> list[str]:
        """Violations of accessibility that axe calls serious or critical.

        Words of code and rows of tables that look like earlier ones leave the page.

        Args:
            rules: the names of those that axe shall look at; all where None.
            inside: selector of the parts to look at; the whole page where None.
        """
        self.page.evaluate(LEAVE_OUT_WHAT_REPEATS)
        # Without the selectors of all that passes, which take half of the time; and
        # without fetching style sheets, which a page from the disk may not.
        options: dict[str, object] = {"resultTypes": ["violations"], "preload": False}
        if rules is not None:
            options["runOnly"] = {"type": "rule", "values": rules}
        found = Axe().run(self.page, inside, options).response["violations"]
        return [
            f"{one['id']}: {node['html']} {[why['message'] for why in node['any']]}"
            for one in found
            if one["impact"] in {"serious", "critical"}
            for node in one["nodes"]
        ]


@contextmanager
def offline(browser: Browser) -> Iterator[Visit]:
    """A fresh page without a network; a request that leaves the disk is noted, and fails."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_offline(True)
    record = Visit(context.new_page())

    def note(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            record.requests.append(request.url)

    context.on("request", note)
    record.page.on("websocket", lambda socket: record.requests.append(socket.url))
    record.page.on(
        "console",
        lambda message: (
            record.errors.append(message.text) if message.type == "error" else None
        ),
    )
    record.page.on(
        "requestfailed", lambda request: record.errors.append(f"lacks {request.url}")
    )
    record.page.on("pageerror", lambda error: record.errors.append(str(error)))
    yield record
    context.close()
