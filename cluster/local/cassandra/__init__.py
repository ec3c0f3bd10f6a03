"""Real Cassandra nodes on loopback, one for each region: from Maven's jars, without a container or root."""
