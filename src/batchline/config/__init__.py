"""What a person can set: `settings` has the records, `loading` fills them, the rest reads tables.

The only reader of the environment.
"""
