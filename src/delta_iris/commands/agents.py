"""Loading an agent whose environment a command makes."""

from __future__ import annotations

from pathlib import Path

from delta_iris.commands.trust import ADVICE, check_file
from delta_iris.pretrained import Agent, load_pretrained

__all__ = ["load_agent"]


def load_agent(path: Path, trust: str | None) -> Agent:
    """Load an agent, and check what its environment imports.

    Args:
        path: an exported agent, or a checkpoint of a run.
        trust: top-level packages, separated by commas, whose classes and environments the agent may name.

    Raises:
        UserError: if it cannot be loaded, or names something that is not trusted.
    """
    packages = [name.strip() for name in trust.split(",")] if trust else []
    agent = load_pretrained(path, packages, ADVICE)
    # Of a stranger's file too: the id of an environment can name a module to import.
    check_file({"data": agent.configuration["data"]}, str(path), packages)
    return agent
