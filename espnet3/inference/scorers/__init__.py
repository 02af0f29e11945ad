"""Models as scorers of the beam search: Transformer decoders and language models, ESPnet2's, Hugging Face's, n-grams."""
