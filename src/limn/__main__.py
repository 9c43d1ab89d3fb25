"""`python -m limn` is the `limn` command."""

from limn.cli import main

if __name__ == "__main__":
    main()
