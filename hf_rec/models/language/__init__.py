"""Parts around a causal LM: its compact head, its states at the end of a prompt, a fresh small one."""
