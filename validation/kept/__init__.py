"""Kept files of two runs against each other: videos, images, arrays and meshes, alone or in two folders."""
