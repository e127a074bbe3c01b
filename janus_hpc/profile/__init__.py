"""Measurements that later runs decide by."""
