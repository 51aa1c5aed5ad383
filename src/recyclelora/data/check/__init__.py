"""Checks a data set file by file and reports what was found as a table and a page."""
