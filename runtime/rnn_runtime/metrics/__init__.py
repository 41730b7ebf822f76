"""How good predictions are, in numbers: counted one by one, in memory that doesn't grow with them.

Training and inference use it. It knows neither models nor files. `describe.py` alone makes text of the numbers.
"""
