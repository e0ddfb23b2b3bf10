"""Renders records for people and machines: the terminal table, one self-contained HTML file, JUnit XML."""
