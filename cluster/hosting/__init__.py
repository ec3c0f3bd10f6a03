"""Drives Raft groups and shards: rounds, persistence, timers, tasks."""
