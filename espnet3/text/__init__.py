"""Text: token lists and tokenizers."""
