def save(e,p): pass
