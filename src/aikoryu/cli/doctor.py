
def add(c): pass
