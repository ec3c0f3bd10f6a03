"""What leaves for other shards and nodes: calls to leaders, actions on other runs, reads of all shards."""
