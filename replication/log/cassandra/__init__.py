"""The log on Apache Cassandra: the only place that knows CQL and its driver."""
