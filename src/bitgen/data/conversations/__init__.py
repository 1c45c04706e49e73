"""Conversations about pictures: records, templates, and batches of ids with labels."""
