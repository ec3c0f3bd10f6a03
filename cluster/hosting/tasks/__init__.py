"""Between workers and shards: polls, waiting tasks, what is handed out and what comes back."""
