"""Anchor attention beside what else could be run on the same tokens."""
