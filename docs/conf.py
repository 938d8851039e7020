"""The site of these pages: `make docs` builds it with Sphinx."""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "rnn_triton"
author = copyright = "rnn_triton contributors"
release = re.findall(r'^version = "(.*)"$', (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # a code block of GitHub's
myst_heading_anchors = 3

default_role = "py:obj"  # docstrings write `name`: a link where the site has the name, else code
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = f"rnn_triton {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False
html_math_renderer = "mathml"


# docutils draws bars as "_", above and below, and puts what is subscribed to a barred letter under it
_BARS = (
    (r'<munderover>\s*(<mi>\w</mi>)\s*(.*?)\s*<mo accent="true">_</mo>\s*</munderover>', r"<msub><mover>\1<mo>‾</mo></mover>\2</msub>"),
    (r"<munder>((?:(?!<munder>).)*?)<mo>_</mo>\s*</munder>", r'<mrow class="underline">\1</mrow>'),
    (r'<mo accent="true">_</mo>', "<mo>‾</mo>"),
)


def _math(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Writes MathML, which browsers show by themselves: the site loads nothing from elsewhere."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    for drawn, meant in _BARS:
        formula = re.sub(drawn, meant, formula, flags=re.DOTALL)
    self.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def _as_myst(app: Sphinx, page: str, source: list[str]) -> None:
    """Inline math is $`x`$ on GitHub and $x$ in MyST."""
    source[0] = re.sub(r"\$`(.+?)`\$", r"$\1$", source[0])


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
    app.connect("source-read", _as_myst)
