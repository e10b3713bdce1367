"""The settings of each method and each evaluation, one file each, free of torch."""
