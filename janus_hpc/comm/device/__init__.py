"""The exchange inside a node of GPUs that open each other's memory."""
