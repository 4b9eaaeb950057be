"""Names of version 0.1, mapped to the present ones when configurations, weights and TensorBoard tags are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["canonical_tag", "is_legacy_configuration", "upgrade_configuration", "upgrade_weights"]

T = TypeVar("T")

OPTIMIZER = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_steps",
    "final_fraction": "min_lr_factor",
    "decay_steps": "lr_decay_steps",
    "gradient_clip": "max_grad_norm",
}
CODEBOOK = {
    "codebook_size": "size",
    "code_dim": "dim",
    "codebook_decay": "decay",
    "settled_threshold": "late_reset_threshold",
}
CNN = {
    "channels": "base_channels",
    "multipliers": "channel_mults",
    "halvings": "downsample_after",
    "latent_channels": "latent_channels",
}
FRAME_CNN = {
    "frame_channels": "base_channels",
    "frame_multipliers": "channel_mults",
    "frame_halvings": "downsample_after",
}
MOTION = {"motions": "num_transforms", "least_painted": "min_synthesis_weight"}
AGENT = {
    "hidden": "lstm_size",
    "discount": "gamma",
    "entropy_weight": "entropy_coef",
    "target_decay": "target_ema_decay",
    "critic_gradient": "critic_grad_scale",
    "passes": "update_epochs",
    "parts": "num_minibatches",
    "clip": "clip_coef",
}
LINKED = ("frame_size", "num_actions", "window", "burn_in")
TRAINER = (
    "accelerator",
    "devices",
    "num_nodes",
    "precision",
    "max_epochs",
    "check_val_every_n_epoch",
    "log_every_n_steps",
    "strategy",
)


def is_legacy_configuration(config: Any) -> bool:
    """Whether a configuration is written in the names of version 0.1.

    Args:
        config: content of a YAML file.
    """
    if not isinstance(config, Mapping):
        return False
    model = config.get("model")
    old_model = isinstance(model, Mapping) and bool({"world_model", "agent", "accelerate"} & set(model))
    # A tokenizer may also stand there in a present configuration that leaves out `init_args`.
    tokenizer = model.get("tokenizer") if isinstance(model, Mapping) else None
    arguments = tokenizer.get("init_args") if isinstance(tokenizer, Mapping) else None
    flat = {*OPTIMIZER, *CODEBOOK, *CNN, *FRAME_CNN, *MOTION}
    old_tokenizer = isinstance(arguments, Mapping) and bool(flat & set(arguments))
    return "loop" in config or old_model or old_tokenizer


def upgrade_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration of version 0.1, whole or in part.

    Args:
        config: content of the YAML file, or of a checkpoint's `configuration`.
    """
    new: dict[str, Any] = {key: config[key] for key in ("seed_everything", "ckpt_path") if key in config}
    if "trainer" in config:
        new["trainer"] = {key: config["trainer"][key] for key in TRAINER if key in config["trainer"]}
        name = ((config["trainer"].get("logger") or {}).get("init_args") or {}).get("name")
        if name:
            new["name"] = name
    init_args: dict[str, Any] = {}
    data = dict(config.get("data") or {})
    if "recordings" in data:
        data["recorded_episodes"] = data.pop("recordings")
    sampling = {
        "window": "segment_length",
        "priority": "priority_exponent",
        "agent_frames": "imagination_recent_frames",
    }
    for old, name in sampling.items():
        if old in data:
            init_args[name] = data.pop(old)
    data.pop("burn_in", None)
    if data:
        new["data"] = data
    model = config.get("model") or {}
    if "accelerate" in model:
        init_args["compile"] = model["accelerate"]
    for old, name in (("tokenizer", "tokenizer"), ("world_model", "dynamics"), ("agent", "actor_critic")):
        if old in model:
            init_args[name] = _upgrade_module(old, model[old])
    schedule = dict(config.get("loop") or {})
    for old, name in (("world_model", "dynamics"), ("agent", "actor_critic")):
        if old in schedule:
            schedule[name] = schedule.pop(old)
    if schedule:
        init_args["schedule"] = schedule
    if init_args:
        new["model"] = {"class_path": "delta_iris.training.systems.DeltaIris", "init_args": init_args}
    return new


def _upgrade_module(name: str, module: Mapping[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = dict(module.get("init_args") or {})
    class_name = str(module.get("class_path") or "").rpartition(".")[2]
    for key in LINKED:
        if not (name == "agent" and key == "burn_in"):
            args.pop(key, None)
    groups: dict[str, dict[str, str]] = {"optimizer": OPTIMIZER}
    renamed: dict[str, str] = {}
    if name == "tokenizer":
        package = "delta_iris.world_models.delta_iris."
        groups["codebook"] = CODEBOOK
        # The CNN tokenizer's `frame_channels` is an argument of its own; the Transformer's is that of a CNN.
        if class_name == "CNNTokenizer" or "channels" in args:
            groups["cnn"] = CNN
        else:
            groups["frame_cnn"] = FRAME_CNN
        renamed = MOTION
        weights = args.pop("loss_weights", None)
        if weights is not None:
            args["loss_weights"] = {{"max_pixel": "max_error"}.get(term, term): w for term, w in weights.items()}
    elif name == "world_model":
        package = "delta_iris.world_models.tokens.dynamics."
        class_name = "TokenDynamics" if class_name else ""
        groups |= {"frame_cnn": FRAME_CNN, "transformer": {key: key for key in ("dim", "layers", "heads", "dropout")}}
        for key in ("tokens_per_frame", "codebook_size"):
            args.pop(key, None)
    else:
        package = "delta_iris.actor_critic.module."
        class_name = "ActorCritic" if class_name else ""
        groups["cnn"] = CNN
        renamed = AGENT
    new: dict[str, Any] = {}
    for group, names in groups.items():
        values = {present: args.pop(old) for old, present in names.items() if old in args}
        if values:
            new[group] = values
    new |= {renamed.get(key, key): value for key, value in args.items()}
    return ({"class_path": package + class_name} if class_name else {}) | {"init_args": new}


WEIGHTS = [
    (r"^world_model\.dynamics\.", "dynamics.network."),
    (r"^agent\.(network|target)\.cnn\.", r"actor_critic.\1.encoder."),
    (r"^agent\.", "actor_critic."),
    (r"^(tokenizer\.encoder|tokenizer\.decoder|dynamics\.network)\.within$", r"\1.block_position_embedding"),
    (r"^(tokenizer\.decoder|dynamics\.network)\.time$", r"\1.time_embedding"),
    (r"^tokenizer\.decoder\.copies\.", "tokenizer.decoder.upsample_position_embedding."),
    (r"^tokenizer\.decoder\.paint\.", "tokenizer.decoder.to_pixels."),
    (r"^tokenizer\.direction\.", "tokenizer.motion_vector."),
    (r"^tokenizer\.quantizer\.threshold$", "tokenizer.quantizer.reset_threshold"),
    (r"^tokenizer\.quantizer\.updates$", "tokenizer.quantizer.num_updates"),
]


def upgrade_weights(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename the weights of a state dict of version 0.1; present names stay as they are.

    Args:
        weights: by name.
    """
    return {_substitute(WEIGHTS, name): value for name, value in weights.items()}


TAGS = [
    (r"^held_out/tokenizer_copy_", "held_out/copy_"),
    (r"^held_out/tokenizer_", "held_out/reconstruction_"),
    (r"^held_out/world_model_", "held_out/dynamics_"),
    (r"^drift/imagined_", "open_loop_l2/"),
    (r"^drift/copied_", "copy_l2/"),
    (r"^world_model/", "dynamics/"),
    (r"^agent/", "actor_critic/"),
    (r"^throughput/world_model_", "throughput/dynamics_"),
    (r"^throughput/agent_", "throughput/actor_critic_"),
    (r"^tokenizer/max_pixel$", "tokenizer/max_error"),
    (r"^tokenizer/codewords_in_use$", "tokenizer/codes_used"),
    (r"^tokenizer/revived$", "tokenizer/codes_reset"),
    (r"/objectives_unlocked$", "/achievements_per_episode"),
    (r"^pictures/", "images/"),
]


def canonical_tag(tag: str) -> str:
    """The present name of a TensorBoard tag, which may be of version 0.1.

    Args:
        tag: as it is in an event file.
    """
    return _substitute(TAGS, tag)


def _substitute(patterns: list[tuple[str, str]], name: str) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name
