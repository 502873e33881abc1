"""One page from result files: `read` brings them into the shapes of `inputs`, `figures` and `plots` draw, `page` writes.

Needs the extra ``report`` (matplotlib and jinja2). Knows result documents, and nothing of models.
"""
