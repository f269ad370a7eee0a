"""The commands of ``clipvis``: each a dataclass of its options with a method ``run``.

Imports of anything large stand in the methods that need it, so that --help and bad options answer at once.
"""
