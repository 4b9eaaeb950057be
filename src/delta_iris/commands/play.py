"""Play an agent's game on a local web page.

    delta-iris play pretrained/crafter_cnn

prints an address and opens it in a browser: the agent or you, in the real game or inside the world model.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from delta_iris.commands.agents import load_agent
from delta_iris.errors import UserError

__all__ = ["play"]

NEEDED = ("starlette", "uvicorn", "websockets")
"""Packages of the extra `play`."""


def play(
    agent: Path,
    host: str = "127.0.0.1",
    port: int = 8700,
    open: bool = True,
    seed: int = 0,
    trust: str | None = None,
) -> None:
    """Open a web page on which the agent or you play its game, in reality or inside the world model.

    Args:
        agent: an exported agent, or a checkpoint of a run.
        host: address to serve at; by default only this machine can reach it.
        port: port to serve at; 0 for any free one.
        open: whether to open the page in a browser.
        seed: of the first episode, and of what is sampled.
        trust: top-level packages, separated by commas, whose classes and environments the agent may name.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"playing needs {', '.join(missing)}, which is not installed: python -m pip install 'delta-iris[play]'"
        )
    from delta_iris.play.messages import MAX_SEED
    from delta_iris.play.server import open_socket, serve

    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed is {seed}: it must be between 0 and {MAX_SEED}")
    with open_socket(host, port) as listener:
        loaded = load_agent(agent, trust)
        print(f"Warming up {agent} …", flush=True)
        serve(loaded, agent.name, host, listener, open, seed)
