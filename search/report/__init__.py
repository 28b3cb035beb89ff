"""The report of a run: ``build`` gathers what it says, ``html`` and ``text`` say it. No renderer asks for more."""
