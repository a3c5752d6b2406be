"""Text as a page may show it: Markdown, code and mathematics become HTML in which nothing can run, load or lead away.

HTML in the text is shown as it stands, links and images as their source. What the renderer makes is cut back to a list of elements
once more, so that a mistake in it cannot become one on the page.
"""

from __future__ import annotations

import functools
import html

import nh3
from latex2mathml import converter
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

MATHEMATICS = (
  "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd mstyle "
  "mpadded mphantom menclose mmultiscripts mprescripts none"
)
PLAIN = "p br hr em strong s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td div span"
ALLOWED = {*PLAIN.split(), *MATHEMATICS.split()}
ATTRIBUTES = {"math": {"display"}, "ol": {"start"}, "div": {"class"}, "span": {"class"}}


def markdown(text: str) -> str:
  """HTML of a Markdown text."""
  made = _renderer().render(text)
  return nh3.clean(made, tags=ALLOWED, attributes=ATTRIBUTES, clean_content_tags=set())


def conversation(content) -> list[dict[str, str]]:
  """A text or messages as turns: `role`, "" for a text, and `html`."""
  if isinstance(content, str):
    return [{"role": "", "html": markdown(content)}]
  return [{"role": turn["role"], "html": markdown(turn["content"])} for turn in content]


@functools.cache
def _renderer() -> MarkdownIt:
  made = MarkdownIt("commonmark", {"html": False, "breaks": True})
  made.enable(["table", "strikethrough"]).disable(["image", "link", "autolink", "reference"])
  return made.use(dollarmath_plugin, double_inline=True, renderer=_mathematics)


def _mathematics(source: str, options: dict) -> str:
  """MathML; the source itself where it cannot be read."""
  display = "block" if options.get("display_mode") else "inline"
  try:
    return converter.convert(source, display=display)
  except Exception:  # whatever a parser of LaTeX may raise at a text that somebody wrote
    return f"<code>{html.escape(source)}</code>"
