"""Models with the places where ops can be mounted, one folder per model.

`validation.samples.registry` finds them: a folder's ``__init__`` is imported for its ``OPTIONS`` and must be light; its
module ``model`` defines ``MODEL``, a subclass of `validation.samples.model.Model`, and may take seconds to import.
"""
