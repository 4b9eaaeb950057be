"""`python -m delta_iris` is the `delta-iris` command."""

from delta_iris.commands.main import main

if __name__ == "__main__":
    main()
