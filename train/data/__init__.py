"""Text and speech to learn from: nano's world, open English, synthesized voices, and readers of public corpora."""
