"""``python -m stepcheck``."""

from stepcheck.cli import main

if __name__ == "__main__":
    main()
