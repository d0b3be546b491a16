"""Low-rank adapters: injected by PEFT, trained for all clients at once, differentiated example by
example.
"""
