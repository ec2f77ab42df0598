"""The files that browsers load, and their paths. They load nothing from other places."""

from pathlib import Path


PAGE_FOLDER = Path(__file__).parent / "page"
DOCS_FILES = {"/docs": "docs.html", "/docs.js": "docs.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}
PAGE_FILES = {"/": "index.html", "/page.js": "page.js"}
