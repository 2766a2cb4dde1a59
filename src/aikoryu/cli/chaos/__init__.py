"""Every fault in turn under load, and whether every call got its one right answer."""
