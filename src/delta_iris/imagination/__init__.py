"""World models as environments, and rollouts in them."""
