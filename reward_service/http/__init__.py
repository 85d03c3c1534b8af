"""HTTP: the front of a reward, its client, and what crosses the wire."""
