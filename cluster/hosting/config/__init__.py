"""What a node is told before it starts: its file, its options, and whether they make sense."""
