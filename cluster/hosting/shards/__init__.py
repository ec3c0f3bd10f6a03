"""What groups hold: runs at work, the region's namespaces, and a shard that becomes two."""
