"""The page that says what an exported agent is: the README.md of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from delta_iris.errors import UserError
from delta_iris.evaluation.episodes import mean_and_interval
from delta_iris.files import read_text

__all__ = ["model_card"]

CARD = """\
---
library_name: delta-iris
tags: [reinforcement-learning, world-model]
---

# {title}

An agent for `{environment}`, trained on {frames:,} frames with `delta-iris` on PyTorch Lightning.

| | |
|---|---|
| system | `{system}` |
| frames trained on | {frames:,} |
| return | {score} |

```python
from delta_iris import load_pretrained, make_env

agent, env = load_pretrained("{folder}"), make_env({arguments})
frame, _ = env.reset(seed=0)
frame, reward, terminated, truncated, _ = env.step(agent.act(frame))
```

On the command line:

```bash
delta-iris test --config {folder}/config.yaml --ckpt_path {folder}
```

Weights are in bf16, but for the codebook. The optimizers and the target network are left out.
"""


def model_card(checkpoint: dict[str, Any], results: Path, folder: str) -> str:
    """Describe an agent in Markdown.

    Args:
        checkpoint: its content.
        results: what `delta-iris test` has written of it, or would.
        folder: name of the folder of the exported agent.

    Raises:
        UserError: if the results are damaged.
    """
    data, frames = checkpoint["configuration"]["data"], checkpoint["frames_collected"]
    options = data.get("environment_options") or {}
    arguments = [json.dumps(data["environment"]), *(f"{key}={value!r}" for key, value in options.items())]
    return CARD.format(
        title=folder,
        environment=data["environment"],
        system=checkpoint["configuration"]["model"].get("class_path", "").rpartition(".")[2],
        frames=frames,
        score=_score(results, frames),
        folder=folder,
        arguments=", ".join(arguments),
    )


def _score(results: Path, frames: int) -> str:
    unmeasured = "not measured: `delta-iris test` does it"
    if not results.is_file():
        return unmeasured
    try:
        run = json.loads(read_text(results))
        returns, trained_on = [float(each) for each in run["reward"]], set(run["xs"])
        mean, interval = mean_and_interval(returns)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{results} is damaged ({str(error)[:100]}): remove it, or test again") from error
    if trained_on != {frames}:  # those of another checkpoint of this name
        return unmeasured
    return f"{mean:.2f} ± {interval:.2f} (95 %, {len(returns)} test episodes)"
