"""`python -m delta_iris` is the `delta-iris` command."""

from delta_iris.commands.cli import main

if __name__ == "__main__":
    main()
