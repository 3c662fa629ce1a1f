"""``python -m sb3_gippo``: the command line."""

from sb3_gippo.cli.main import main

if __name__ == "__main__":
    main()
