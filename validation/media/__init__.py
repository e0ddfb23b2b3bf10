"""A model's output: videos, fields, meshes and their renders, and the distance between two of them."""
