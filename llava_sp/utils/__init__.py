"""Small helpers without any knowledge of models or data."""
