"""What a model makes: videos, fields, meshes and their renders, and how far two of them are apart."""
