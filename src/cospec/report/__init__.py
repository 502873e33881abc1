"""One page from result files.

`read` brings them into the shapes of `inputs`; `figures`, `frontier` and `plots` draw; `page` and
`markdown` write. Needs the extra ``report`` (matplotlib and jinja2). Knows result documents, but
no models.
"""
