"""What token world models share: the tokenizer interface, the quantizer, the dynamics."""

from delta_iris.world_models.tokens.dynamics import WorldModel

__all__ = ["WorldModel"]
