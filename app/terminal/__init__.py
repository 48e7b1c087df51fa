"""A spoken conversation in the terminal, through this machine's microphone and speaker."""
