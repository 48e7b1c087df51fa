"""The page: Gradio's tabs and tools, what the conversation's own modules fetch, and sessions as files."""
