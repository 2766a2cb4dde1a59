"""Dissection, header by header: one function a kind of header, for all packets that have one at hand."""
