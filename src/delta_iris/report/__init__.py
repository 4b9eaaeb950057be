"""Reports of runs: event files and Crafter's run files as one HTML page and PNGs."""
