"""A worker for hosts that start `python3 embed_server.py`, without arguments.

It is the command `embed-lockstep`, whose settings come from the environment, for hosts that are told a script's path. A
host that is told an interpreter's path, and adds a script's, is told that of the command itself.
"""

from bridge_client.lockstep import main

if __name__ == "__main__":
    main()
