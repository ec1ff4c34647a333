"""Sphinx configuration; warnings are errors and every code cell is executed."""

import adtn

project = "adtn"
copyright = "The adtn authors"
author = "The adtn authors"
version = release = adtn.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = "adtn"
exclude_patterns = ["_build", "jupyter_execute"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
# the Unicode symbols of the calculus, as they are in the code
mathjax3_config = {"tex": {"macros": {"bar": ["\\overline{#1}", 1]}}}
