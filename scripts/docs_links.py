"""A hook of mkdocs: links that are right in the repository lead to the same page of the site.

`docs/results`, `docs/contributing.md` and `docs/changelog.md` are symbolic links to what stands outside `docs/`.
"""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = (
    (re.compile(r"\]\((?:\.\./)?evals/results/"), "](results/"),
    (re.compile(r"\]\(\.\./CONTRIBUTING\.md"), "](contributing.md"),
    (re.compile(r"\]\(\.\./CHANGELOG\.md"), "](changelog.md"),
    (re.compile(r"\]\((?:\.\./)*docs/"), "]("),
)
SOURCE = re.compile(r"\[([^\]]+)\]\(\.\./(?:gram|kernels|distributed|evals|scripts|tests)/[^)]*\)")
PAGE = re.compile(r'href="([\w-]+)\.md([#"])')


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    for pattern, wanted in OUTSIDE:
        markdown = pattern.sub(wanted, markdown)
    return SOURCE.sub(r"\1", markdown)  # the site holds no sources


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Called with the HTML of each page; mkdocs itself has no look at the links of a notebook."""
    return PAGE.sub(r'href="\1.html\2', html) if page.file.src_uri.endswith(".ipynb") else html
