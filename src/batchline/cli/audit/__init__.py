"""`batchline audit`: whether a batch's files hold each line of its input exactly once.

command.py   what is typed, and where the files come from
auditing.py  the audit: one pass over each file, then the comparison
ledger.py    ids compared in memory that does not grow with the files
lines.py     what a line of a file must look like
report.py    what was found, for people and for programs
"""
