"""World models: tokenizers and dynamics."""
