"""Hook of mkdocs: pages of the repository that docs link to become pages of the site.

The docs are read on a code host as well, where ``../README.md`` is a file. On the site such a file
is shown under ``repository/``. A link to what is not there fails the build, which is strict.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"""(\]\(|(?:src|srcset)=")([^)#"\s:]+)(?=[)#"])""")


def on_files(files, config):
    """Add the files that pages link to, and those that they link to in turn."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for link in _LINK.findall((ROOT / _path(page)).read_text(encoding="utf-8")):
            path = _linked(page, link[1])
            if (ROOT / path).is_file() and _uri(path) not in files.src_uris:
                content = (ROOT / path).read_bytes()
                files.append(File.generated(config, _uri(path), content=content))
                if path.endswith(".md"):
                    waiting.append(_uri(path))
    return files


def on_page_markdown(markdown, page, **_):
    """Point links to where the site has the files."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri) or "."
    return _LINK.sub(lambda m: m[1] + posixpath.relpath(_uri(_linked(uri, m[2])), here), markdown)


def _linked(page, link):
    """Path in the repository of what a page links to; of a folder its README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_path(page)), link))
    return posixpath.join(path, "README.md") if (ROOT / path).is_dir() else path


def _path(uri):
    """Path in the repository of a file of the site."""
    inside = uri.removeprefix("repository/")
    return inside if inside != uri else f"docs/{uri}"


def _uri(path):
    """Place on the site of a file of the repository."""
    inside = path.removeprefix("docs/")
    return inside if inside != path else f"repository/{path}"
