"""How packets are read: captures, dissection, flows, rule sets, the pace of replay. Arrays in, arrays out."""
