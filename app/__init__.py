"""What a person or a client meets: knows most_core, never train."""
