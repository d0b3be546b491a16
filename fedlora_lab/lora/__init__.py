"""Low-rank adapters where PEFT would place them, trained for all clients at once and differentiated
example by example; PEFT reads and writes them.
"""
