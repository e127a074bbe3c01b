"""What is known of how tokens are routed: counts, co-activation, a window of routes, and their file."""
