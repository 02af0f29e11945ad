"""Configuration: compose, validate, slice, fingerprint, instantiate. Imports neither torch nor any speech code."""
