"""Word, character and sentence error rates, their counts and alignments."""
