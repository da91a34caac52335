"""The site: sphinx-build -W docs build/site"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from stub_signatures import process_signature

project = "baracuda_kernels"
author = "The baracuda_kernels authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
nitpicky = True
html_theme = "furo"
html_title = "Baracuda kernels"
html_show_sphinx = False
html_copy_source = False

# The API reference. Where a framework is not installed its adapter is left out.
if not all(importlib.util.find_spec(name) for name in ("jax", "torch", "transformers")):
    suppress_warnings = ["autodoc.import_object"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
# Types in docstrings are prose, and those of other libraries are not on this site.
nitpick_ignore_regex = [("py:.*", ".*")]


def setup(app):
    """Compiled classes and functions get their signatures from the stubs."""
    app.connect("autodoc-process-signature", process_signature)
