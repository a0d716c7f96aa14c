"""Serving: an OpenAI-compatible server, a chat in the terminal, and what vLLM needs to know."""
