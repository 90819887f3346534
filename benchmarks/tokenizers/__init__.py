"""Proof of what tokenizers are worth: `python -m benchmarks.tokenizers`, one module a part."""
