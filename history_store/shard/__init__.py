"""What a shard is: an image of rows, the transactions that change it, and the runs read from it. Pure."""
