"""The commands of ``clipvis``: each a dataclass of its options with a method ``run``, imported when it runs."""
