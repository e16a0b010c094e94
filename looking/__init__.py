"""What lies in a machine's memory, decoded for people: ring pages, grant tables, maptracks, trees,
event words. It reads copies, and changes nothing.
"""
