"""Task queues: who waits for work, who gets it."""
