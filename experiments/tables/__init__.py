"""Tables and numbers of the pages, computed from the rows of result files."""
