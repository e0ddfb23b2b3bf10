"""Loads the pytest plugin that adds the options and markers of the suite."""

pytest_plugins = ["validation.plugin"]
