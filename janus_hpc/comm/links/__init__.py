"""Links: how bytes cross from one node to another."""
