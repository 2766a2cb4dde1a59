"""Peers, one a file: each is a server process of its own and the client its users would write."""
