"""YAML in which every key is written once: plain YAML readers keep the last and say nothing."""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class RepeatedKey(yaml.YAMLError):
    """A mapping names a key twice."""

    def __init__(self, key: object, line: int) -> None:
        super().__init__(f"key {key!r} appears twice (line {line}): keep one of the two")


def load_yaml(text: str | bytes) -> Any:
    """The document's value, by the safe loader.

    Raises:
        RepeatedKey: a mapping names a key twice; the message has the line.
        Exception: no YAML. PyYAML's constructors raise ValueError, KeyError, RecursionError, … beside YAMLError.
    """
    return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506  a SafeLoader


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key. What ``<<`` merges in may be overridden: that is what it is for."""

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
