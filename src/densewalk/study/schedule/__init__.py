"""In which order a study's jobs are started, and a summary of those that would run."""
