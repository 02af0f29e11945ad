"""The results of an experiment as one page, and as a table of plain text."""
