"""The command `recyclelora`, also called as `python -m recyclelora`."""

import sys


def main() -> None:
    """Run the command line; if its packages are not installed, say in one line which command installs them."""
    try:
        from recyclelora.cli import run
    except ModuleNotFoundError as error:
        from recyclelora.errors import MissingExtraError

        print(f"error: {MissingExtraError('the command line', error.name or str(error))}", file=sys.stderr)
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
