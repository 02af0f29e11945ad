"""What a stage does, as plain functions of paths and a config slice; usable without Snakemake."""
