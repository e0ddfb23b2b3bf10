"""Frames: how far two videos are apart, and their files."""
