"""The filter language of List and Count, and the SQL projection of executions that it reads."""
