"""Configurations as YAML that may come from a stranger, plain values only, and as flat keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from delta_iris.errors import UserError

__all__ = ["flatten", "has_aliases", "parse_yaml"]

MAX_NODES = 20_000
"""Most values of a configuration after its aliases are expanded; those of this project have some hundred."""

MAX_DEPTH = 40
"""Deepest nesting; those of this project have eight levels."""

PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse a configuration.

    The graph of nodes is checked before any value is made: a few aliases of aliases could expand to gigabytes.

    Args:
        text: the YAML.
        source: the file it is from, for messages.

    Raises:
        UserError: if it is no mapping in YAML with plain values, or it is out of proportion.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _check(node, {})
            content = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except _Refused as error:
        raise UserError(f"{source} is not a configuration: {error}") from error
    except RecursionError as error:
        raise UserError(f"{source} is not a configuration: it is nested too deeply") from error
    # Besides its own errors, the parser passes on those of int() and float().
    except (yaml.YAMLError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} is not a configuration: it must be a YAML mapping")
    return content


def has_aliases(text: str) -> bool:
    """Whether text, read as YAML, has aliases.

    Args:
        text: a value of a configuration.
    """
    try:
        return any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return False


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of a configuration as they are written on the command line, without `init_args`, and their values.

    Args:
        config: whole or in part.
        prefix: of the keys.
    """
    if isinstance(config, Mapping) and config:
        for name, item in config.items():
            yield from flatten(item, prefix if name == "init_args" else f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, config


class _Refused(Exception):
    """A node that a configuration may not have."""


def _check(node: yaml.Node, sizes: dict[int, int], depth: int = 0) -> int:
    """Count the nodes below a node, and refuse what is not plain.

    Args:
        node: of the graph, in which aliases are edges.
        sizes: of the nodes seen before, by identity; 0 for those that are being counted.
        depth: of the node.
    """
    line = f"line {node.start_mark.line + 1}"
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise _Refused(f"{line}: it contains itself")
        return sizes[id(node)]
    if depth > MAX_DEPTH:
        raise _Refused(f"{line}: it is nested too deeply")
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # <<: *defaults
                key.value = "<<"
            elif key.tag != "tag:yaml.org,2002:str":
                raise _Refused(f"line {key.start_mark.line + 1}: the key {str(key.value)[:40]!r} is not text: quote it")
            if key.value in keys:
                raise _Refused(f"line {key.start_mark.line + 1}: the key {key.value[:100]!r} is there twice")
            keys.add(key.value)
            size += 1 + _check(value, sizes, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, sizes, depth + 1) for item in node.value)
    if node.tag not in PLAIN_TAGS:
        raise _Refused(f"{line}: values of type {node.tag.removeprefix('tag:yaml.org,2002:')[:100]} are not allowed")
    if size > MAX_NODES:
        raise _Refused(f"{line}: it has more than {MAX_NODES} values")
    sizes[id(node)] = size
    return size
