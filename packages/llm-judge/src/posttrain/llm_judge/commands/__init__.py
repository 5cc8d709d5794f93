"""What the commands are made of: which judge and which match is meant, and what is shown of it."""
