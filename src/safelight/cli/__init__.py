"""The command line. `main.py` names the commands; each loads its own file when it is called."""
