"""Conversation data: records, templates, images, batches."""
