"""What token world models share: the tokenizer interface, the quantizer, the dynamics."""
