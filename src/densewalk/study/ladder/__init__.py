"""What lies between two evaluations: settings that are turned one after the other."""
