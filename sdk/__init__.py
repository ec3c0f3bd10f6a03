"""What a user's program imports; knows the wire and nothing behind it."""
