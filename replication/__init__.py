"""What crosses an ocean, and what happens when two regions wrote at once."""
