"""YAML in which every key is written once, and which holds no more than it says.

Plain YAML readers keep the last of two equal keys and say nothing. They also follow every reference: a few lines whose
references lead to references stand for thousands of millions of values.
"""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
#: values of a document, each counted as often as references lead to it
_MOST_VALUES = 100_000
#: characters of a number; Python takes minutes for one of a million
_LONGEST_NUMBER = 100


class RepeatedKey(yaml.YAMLError):
    """A mapping names a key twice."""

    def __init__(self, key: object, line: int) -> None:
        super().__init__(f"key {key!r} appears twice (line {line}): keep one of the two")


class Bomb(yaml.YAMLError):
    """A document stands for far more than its own length, or for a number that nobody means."""


def load_yaml(text: str | bytes) -> Any:
    """The document's value, by the safe loader.

    Raises:
        RepeatedKey: a mapping names a key twice; the message has the line.
        Bomb: references lead to more than 100,000 values or to themselves, or a number has more than 100 characters.
        Exception: no YAML. PyYAML's constructors raise ValueError, KeyError, RecursionError, … beside YAMLError.
    """
    return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  a SafeLoader


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key. What ``<<`` merges in may be overridden: that is what it is for."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > _LONGEST_NUMBER:
            raise Bomb(f"a number has more than {_LONGEST_NUMBER} characters (line {node.start_mark.line + 1})")
        number: int | float = (
            self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)
        )
        return number

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # here, and not where mappings are constructed: a merge writes its keys into the node
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = key_node.value if key_node.tag == _MERGE else self.construct_object(key_node)
            if key in seen:
                raise RepeatedKey(key, key_node.start_mark.line + 1)
            seen.add(key)
        return node


for _tag in ("int", "float"):
    _UniqueKeys.add_constructor(f"tag:yaml.org,2002:{_tag}", _UniqueKeys.construct_number)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for.

    Raises:
        Bomb: they are too many, or without end.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] == 0:
            raise Bomb(f"a value holds itself (line {node.start_mark.line + 1})")
        return known[id(node)]
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
    number = 1 + sum(_count(part, known) for part in parts)
    if number > _MOST_VALUES:
        raise Bomb(f"more than {_MOST_VALUES:,} values, references followed (line {node.start_mark.line + 1})")
    known[id(node)] = number
    return number
