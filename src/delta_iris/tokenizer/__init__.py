"""Discrete autoencoders of what changes from frame to frame."""

from delta_iris.tokenizer.cnn import CNNTokenizer
from delta_iris.tokenizer.module import Tokenizer
from delta_iris.tokenizer.transformer import TransformerTokenizer

__all__ = ["CNNTokenizer", "Tokenizer", "TransformerTokenizer"]
