"""`python -m eden_hf COMMAND`, the same as `eden COMMAND`."""

from eden_hf.cli import main

main()
