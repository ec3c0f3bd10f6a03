"""One region's memory: what happened, and never forgets it."""
