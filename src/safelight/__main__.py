"""`python -m safelight` is the `safelight` command; `./run` and the children of `safelight up` start it so."""

from safelight.cli.main import main

if __name__ == "__main__":
    main()
