"""What each agent consists of: its modules and its phases."""
