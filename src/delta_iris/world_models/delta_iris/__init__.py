"""The tokenizers of Δ-IRIS: they encode what changed between frames."""

from delta_iris.world_models.delta_iris.cnn_tokenizer import CNNTokenizer
from delta_iris.world_models.delta_iris.transformer_tokenizer import TransformerTokenizer

__all__ = ["CNNTokenizer", "TransformerTokenizer"]
