"""The expert side of a MoE layer: gate, placement, expert computation."""
