"""Configuration of the documentation's site."""

from __future__ import annotations

from typing import Any

from ipython_pygments_lexers import IPython3Lexer

from snakepit_kernel import __version__

project = "snakepit_kernel"
copyright = "the authors of snakepit_kernel"  # noqa: A001 - the name that Sphinx reads
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "py:obj"  # a name between single backticks is a link to its description
suppress_warnings = ["ref.python"]  # several classes have an attribute of the same name

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"snakepit_kernel {release}"
html_logo = "../kernelspec/logo-64x64.png"
html_favicon = "../kernelspec/logo-32x32.png"
html_theme_options = {"sidebar_hide_name": False}


def setup(app: Any) -> None:
    """Have magics in code of notebooks read as such."""
    app.add_lexer("python", IPython3Lexer)
