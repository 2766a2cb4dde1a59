"""`python -m aikoryu.cli`: the command line where its script is not on PATH."""

from . import main

raise SystemExit(main())
