"""Networks: features, encoders, decoders and losses. Nothing here knows of files of an experiment, Lightning or Snakemake."""
