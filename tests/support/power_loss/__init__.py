"""Power cuts, simulated: what a disk may hold after one, and what a client had been told before it.

A real server, its workers and its jobs run under strace while a real client uses them. Afterwards,
for any place in the trace, images of the disk are made in which only what was synced is sure.
Decision 0013 says what is assumed of a file system and why.

    recording.py    starting a server under strace; its calls as steps on a file system
    survival.py     how much of what nobody synced a power cut leaves
    file_system.py  the model: which states are possible then, and one of them
    told.py         what the server had answered up to a place in the trace
    job.py          what the client does while everything is recorded
    checks.py       an image, looked at without a server and then with one
"""
