"""The models of config.yaml."""
