"""How packets are read: captures, dissection, flows, rule sets, replay. The network system brings its first module."""
