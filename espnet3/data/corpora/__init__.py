"""Builders that turn a source into a corpus: ``corpus.jsonl``, one line a recording, and its audio files."""
