"""Runs by the dozen: each a process, claimed by a lock so that starts share them, its failures recorded."""
