"""The site: sphinx-build -W docs build/site"""

project = "baracuda_kernels"
author = "The baracuda_kernels authors"
copyright = author
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
nitpicky = True
html_theme = "furo"
html_title = "Baracuda kernels"
html_show_sphinx = False
html_copy_source = False
