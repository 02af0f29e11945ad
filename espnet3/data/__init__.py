"""Corpora, manifests, data sets, batches."""
