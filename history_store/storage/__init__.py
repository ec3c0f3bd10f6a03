"""The Raft log and the rows on disk (SQLite) and in memory, under one contract."""
