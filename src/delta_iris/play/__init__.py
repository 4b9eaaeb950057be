"""Playing in the real game and inside the world model, on a local web page."""
