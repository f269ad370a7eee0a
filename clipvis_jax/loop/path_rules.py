"""Rules over the paths of a tree's leaves: who decays, who is sharded over devices."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

Rule = TypeVar("Rule")


def apply_rules(tree: Any, rules: Sequence[tuple[str, Rule]]) -> Any:
    """Give every leaf the value of the first rule whose pattern matches its whole path.

    Args:
        tree: Nested mappings; a path is the keys joined with slashes.
        rules: Pairs of a regular expression and a value.

    Returns:
        The values, in a tree like the given one.

    Raises:
        ValueError: No rule covers a leaf, or a rule covers none: a module was renamed and the rules were not.
    """
    used = set()

    def value_of(path: jax.tree_util.KeyPath, _: Any) -> Rule:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, value in rules:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return value
        raise ValueError(f"no rule covers the parameter {name}; add one")

    values = jax.tree_util.tree_map_with_path(value_of, tree)
    if idle := [pattern for pattern, _ in rules if pattern not in used]:
        raise ValueError(f"no parameter is covered by the rule {idle[0]}; remove or mend it")
    return values
